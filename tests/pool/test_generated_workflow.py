"""What segue generates, run by hand as a user would, on HTCondor 23.9: the oldest that generated files must run on.

Everything else in the suite runs on 25; SEGUE_SUITE=forky runs these on it too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagman.pool import EmbeddedPool
from tests.conftest import _fresh
from tests.pool.generated import Generated

pytestmark = [pytest.mark.pool, pytest.mark.slow]


@pytest.fixture(scope="module", params=[os.environ.get("SEGUE_SUITE", "trixie")])
def condor(request: pytest.FixtureRequest) -> Iterator[EmbeddedPool]:
    for directory in _fresh("p-"):
        with EmbeddedPool(directory, suites=(request.param,)) as running:
            yield running


def test_chain_by_hand_from_another_directory_with_an_eviction(condor: EmbeddedPool, workdir: Path) -> None:
    # Given a workflow generated from a relative path, in another directory than run.toml's,
    run = Generated(condor, workdir, steps=120, segments="count = 1\nreserve = 1\nsave_interval = 20")
    elsewhere = workdir / "elsewhere"
    elsewhere.mkdir()
    made = run.segue("dag", "../run.toml", "--to", "flow", cwd=elsewhere)
    dag = Path(made.stdout.strip())
    assert dag == elsewhere / "flow" / "run.dag"
    run.workflow = dag.parent
    # when condor_submit_dag is run by hand, from the top directory, and the first attempt is evicted once it has a commit,
    run.tool("condor_submit_dag", os.path.relpath(dag, "/"), cwd=Path("/"))

    def status() -> dict[str, object]:
        found: dict[str, object] = json.loads(run.segue("status", str(dag.parent), "--json").stdout)
        return found

    run.status = status  # type: ignore[method-assign, assignment]
    seen = run.wait("a commit", lambda status: status["step"] >= 20)
    refused = run.segue("dag", "../run.toml", "--to", "flow", cwd=elsewhere, check=False)
    assert refused.returncode == 2 and "this workflow is running (condor_dagman, process" in refused.stderr
    job = seen["segments"][0]["attempts"][-1]["job"]
    run.tool("condor_vacate_job", job)
    seen = run.wait_for_end()
    # then the run is complete, the eviction is in the timeline with its epoch,
    assert (seen["state"], seen["step"], seen["evictions"]) == ("complete", 120, 1), run.said()
    assert [segment["state"] for segment in seen["segments"]] == ["finished", "skipped"]
    attempts = seen["segments"][0]["attempts"]
    assert [(a["outcome"], a["epoch"], a["job"]) for a in attempts] == [("evicted", 1, job), ("finished", 2, job)]
    # the log of the evicted attempt is still there,
    said = run.segue("logs", str(dag.parent), "--attempt", "1").stdout
    assert "step 1\n" in said and "epoch 1 on" in said
    # and the result lies where it belongs.
    assert [path.name for path in (workdir / "staging" / "segue" / "run" / "final").iterdir()] != []
    summary = json.loads((dag.parent / "summary.json").read_text())
    assert summary["state"] == "complete"


def test_failed_run_fails_the_dag_says_why_and_goes_on_after_mending(condor: EmbeddedPool, workdir: Path) -> None:
    # Given a trainer that crashes in step 30 each time,
    run = Generated(
        condor,
        workdir,
        steps=60,
        step_s=0.02,
        args=("crash", "30"),
        segments="count = 1\nreserve = 1\nsave_interval = 10",
    )
    run.segue("submit", "run.toml")
    status = run.wait_for_end()
    # then there is one sentence, DAGMan's exit code is not 0 although FINAL ran, and no retry was wasted on it.
    assert status["state"] == "failed" and "segment_000: " in status["reason"] and "step 30" in status["reason"]
    assert "return value 0" not in (run.workflow / "run.dag.dagman.log").read_text()
    assert json.loads((run.workflow / "summary.json").read_text())["state"] == "failed"
    assert [attempt["exit_code"] for attempt in status["segments"][0]["attempts"]] == [78]
    shown = run.segue("status", "run.toml")
    assert "step 30" in shown.stdout and shown.stderr.startswith("next: mend the cause")
    # When the trainer is mended (the code is another, and the user says so) it goes on from the newest commit.
    code = workdir / "code" / "train.py"
    code.write_text(code.read_text().replace('if end == ["crash", str(step)]', "if False"))
    refused = run.segue("submit", "run.toml", check=False)
    assert refused.returncode == 2 and "--accept-change code" in refused.stderr
    run.segue("submit", "run.toml", "--accept-change", "code")
    status = run.wait_for_end()
    assert (status["state"], status["step"]) == ("complete", 60), run.said()
    earlier = [attempt["earlier"] for attempt in status["segments"][0]["attempts"]]
    assert earlier == [True, False]
    handover = json.loads((run.workflow / "handovers" / "segment-000.json").read_text())
    assert handover["restored"]["step"] >= 20


def test_run_whose_directory_was_removed_is_not_begun_anew_unless_it_is_submitted_again(
    condor: EmbeddedPool, workdir: Path
) -> None:
    # Given a run that failed in step 30 and has commits, whose directory in staging is moved away,
    segments = "count = 1\nreserve = 1\nsave_interval = 10"
    run = Generated(condor, workdir, steps=60, step_s=0.02, args=("crash", "30"), segments=segments)
    run.segue("submit", "run.toml")
    known = run.wait_for_end()["last_commit_step"]
    store = workdir / "staging" / "segue" / "run"
    store.rename(workdir / "moved")
    # when its DAG is run once more, by hand,
    dag = run.workflow / "run.dag"
    run.tool("condor_submit_dag", "-f", str(dag))
    status = run.wait_for_end()
    # then the job says what it misses and makes nothing in its place, and status says it, too;
    assert status["state"] == "failed", run.said()
    handover = status["segments"][0]["handover"]
    assert (handover["exit_code"], handover["starts"]) == (78, 0)
    assert f"{store}: has no commit, although this run had published step {known}" in status["reason"]
    assert status["next"].startswith(f"bring {store} back") and not store.exists()
    # a submission is the way to begin anew, and says so.
    assert f"had published step {known}: the run begins anew at step 0" in run.segue("dag", "run.toml").stderr
    run.tool("condor_submit_dag", "-f", str(dag))
    status = run.wait_for_end()
    assert "step 30" in status["reason"] and status["segments"][0]["handover"]["restored"] is None
    assert status["step"] == known and store.exists()


def test_retry_after_a_fault_of_the_machine_asks_for_another(condor: EmbeddedPool, workdir: Path) -> None:
    # Given the handover of an attempt that failed on this pool's only machine,
    run = Generated(condor, workdir, steps=60, avoid=True)
    run.segue("dag", "run.toml")
    machine = run.tool("condor_status", "-af", "Machine").split()[0]
    (run.workflow / "handovers" / "segment-000.json").write_text(
        f'{{\n "format": 1,\n "state": "temporary",\n "machine": "{machine}"\n}}\n'
    )
    # when DAGMan submits the segment,
    run.tool("condor_submit_dag", str(run.workflow / "run.dag"))
    status = run.wait("the segment's submission", lambda status: status["segments"][0]["state"] == "queued")
    # then its job avoids that machine, and waits.
    log = (run.workflow / "events.log").read_text()
    cluster = re.findall(r"^000 \((\d+)\.", log, re.MULTILINE)[-1]
    asked = run.tool("condor_q", cluster, "-af:r", "Requirements")
    assert f'(TARGET.Machine != "{machine}")' in asked
    assert status["next"] == "segment_000 waits for a machine"
    run.tool("condor_rm", "-all")
    ended = run.wait_for_end()
    assert (ended["state"], ended["segments"][0]["state"]) == ("removed", "removed")
