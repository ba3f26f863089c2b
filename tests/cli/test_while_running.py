"""What is told of a workflow that runs: nothing to paste that would be refused, and where its checkpoints are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.store import Claimant, Metadata, Store
from tests.cli.conftest import RUN, Segue
from tests.cli.test_next_step import ARGS, begun, next_of, ways
from tests.dagman.eventlog import EventLog
from tests.store.trees import make_checkpoint


class TestWhileTheWorkflowRuns:
    """Nothing that is named to be done next may be refused because DAGMan runs, or end what runs."""

    @pytest.fixture
    def dagman(self, segue: Segue, run_toml: Path) -> Iterator[int]:
        """A process with DAGMan's name and arguments, and the log that HTCondor would have begun for job 7.0."""
        assert segue("dag", run_toml).code == 0
        dag = run_toml.parent / "run" / "run.dag"
        Path(f"{dag}.dagman.log").write_text(EventLog().submit(7, 0).execute(7, 1, None).text)
        process = subprocess.Popen(
            ["condor_dagman", "-c", "input()", "-Dag", str(dag)], executable=sys.executable, stdin=subprocess.PIPE
        )
        while b"condor_dagman" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            pass
        yield process.pid
        process.kill()
        process.communicate()

    def test_plan_says_who_runs_and_does_not_suggest_submitting(
        self, segue: Segue, run_toml: Path, dagman: int
    ) -> None:
        asked = segue("plan", run_toml)
        assert asked.code == 0
        said = f"{run_toml.parent / 'run'}: this workflow is running (condor_dagman, process {dagman}); wait for it, or condor_rm 7.0, "
        assert f"segue: warning: `segue submit` will refuse: {said}" in asked.err
        assert next_of(asked.err).startswith(f"segue status {run_toml}   # ")
        assert json.loads(segue("plan", run_toml, "--json").out)["refused"][0].startswith(said)
        refused = segue("submit", run_toml)
        assert refused.code == 2 and "condor_rm 7.0" in refused.sentence()

    def test_status_sees_steps_that_were_raised_meanwhile(self, segue: Segue, run_toml: Path, dagman: int) -> None:
        assert "now" not in next_of(segue("status", run_toml).err)
        run_toml.write_text(RUN.replace("100", "200"))
        for typed in ways(run_toml.parent):
            assert "; run.toml asks for 200 steps now: " in next_of(segue("status", typed).err), typed
        run_toml.write_text(RUN + "frob = 1\nsteps = 'many'")
        assert segue("status", run_toml.parent / "run").code == 0

    def test_nor_is_a_result_named_that_is_not_there_yet(self, segue: Segue, run_toml: Path, dagman: int) -> None:
        begun(run_toml.parent, ARGS, 100)
        assert next_of(segue("plan", run_toml).err).startswith(f"segue status {run_toml}   # ")


class TestCheckpointsThatHtcondorMoves:
    def test_status_says_where_they_are_while_the_segment_goes_on(self, segue: Segue, run_toml: Path) -> None:
        run_toml.write_text(RUN.replace('staging = "staging"\n', "") + "[agent]\ncheckpoint_exit = true\n")
        assert segue("dag", run_toml).code == 0
        flow = run_toml.parent / "run"
        (flow / "run.dag.dagman.log").write_text(EventLog().submit(7, 0).execute(7, 1, None).text)
        log = EventLog().submit(8, 2, "segment_000").execute(8, 3)
        (flow / "events.log").write_text(log.text)
        away = "what segment_000 has saved is with HTCondor (SPOOL) until it ends"
        asked = segue("status", run_toml).out
        assert "  no commit here yet\n" in asked and away in asked
        # An eviction leaves them there; what an earlier segment brought is no reason to be silent.
        (flow / "events.log").write_text(log.evict(8, 9).text)
        store = Store(flow / "segue-store")
        made = make_checkpoint(run_toml.parent / "made", 50)
        store.publish(store.claim(Claimant(), ARGS), made, Metadata(50, "50"))
        asked = segue("status", run_toml).out
        assert "newest commit 000000050" in asked and away in asked
        (flow / "events.log").write_text(log.execute(8, 10).end(8, 20).text)
        assert "SPOOL" not in segue("status", run_toml).out

    def test_where_staging_is_mounted_nothing_is_with_htcondor(self, segue: Segue, run_toml: Path) -> None:
        assert segue("dag", run_toml).code == 0
        (run_toml.parent / "run" / "run.dag.dagman.log").write_text(EventLog().submit(7, 0).execute(7, 1, None).text)
        (run_toml.parent / "run" / "events.log").write_text(EventLog().submit(8, 2, "segment_000").execute(8, 3).text)
        asked = segue("status", run_toml).out
        assert "  no commit yet\n" in asked and "SPOOL" not in asked
