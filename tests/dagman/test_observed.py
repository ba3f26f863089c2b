"""What a run left on the disk is read tolerantly: damaged, half written and missing files leave the rest of the story whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from agent.config import JobConfig, dump
from dagman.epochs import ClaimSeen
from dagman.observed import (
    newest_commit,
    observe,
    read_claims,
    read_classes,
    read_done,
    read_handovers,
    read_history,
    read_last_words,
)
from dagman.runs import find_run
from tests.dagman.eventlog import BEGAN, EventLog
from tests.dagman.samples import golden_workflow


def commit(store: Path, step: int, epoch: int, at: float) -> None:
    path = store / "checkpoints" / f"{step:09d}.e{epoch:06d}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * step)
    os.utime(path, (at, at))


def test_newest_commit_is_of_the_highest_epoch_then_of_the_highest_step(tmp_path: Path) -> None:
    assert newest_commit(tmp_path) is None
    commit(tmp_path, 900, 1, BEGAN)
    commit(tmp_path, 100, 2, BEGAN + 50)
    commit(tmp_path, 140, 2, BEGAN + 70)
    for other in (".000000999.e000009.tar.tmp-1", "000000999.e000009.tar.bad-e000010", "notes"):
        (tmp_path / "checkpoints" / other).write_text("")
    found = newest_commit(tmp_path)
    assert found is not None
    assert (found.step, found.epoch, found.bytes, found.at) == (140, 2, 140, BEGAN + 70)
    assert found.step_s == 0.5, "20 s for 40 steps"


def test_pace_is_not_taken_over_a_change_of_epochs(tmp_path: Path) -> None:
    commit(tmp_path, 100, 1, BEGAN)
    commit(tmp_path, 140, 2, BEGAN + 5000)
    found = newest_commit(tmp_path)
    assert found is not None and found.step_s is None


def test_damaged_claims_and_handovers_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "epochs").mkdir()
    good = {"epoch": 2, "job": "7.0", "segment": 0, "machine": "m", "began": 5.0}
    (tmp_path / "epochs" / "000002.json").write_text(json.dumps(good))
    (tmp_path / "epochs" / "000003.json").write_text('{"job": "8.')
    (tmp_path / "epochs" / "000004.json").write_text("[]")
    assert read_claims(tmp_path) == [ClaimSeen(2, "7.0", 5.0)]
    (tmp_path / "handovers").mkdir()
    for name, said in (("000", '{"state": "pending"}'), ("001", '{"state": "complete"}'), ("002", "{"), ("x", "{}")):
        (tmp_path / "handovers" / f"segment-{name}.json").write_text(said)
    assert read_handovers(tmp_path) == {1: {"state": "complete"}}


def test_last_words_are_of_the_helpers(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "stage.err").write_text("one\nsegue: error: two\n\n")
    (tmp_path / "logs" / "consolidate.err").write_text("")
    (tmp_path / "logs" / "segment-000.err").write_text("three\n")
    assert read_last_words(tmp_path) == {"stage": "segue: error: two"}


def test_classes_are_read_from_the_dag_that_was_generated(tmp_path: Path) -> None:
    workflow = golden_workflow("chtc", Path("/home/bbadger/run"), Path("/staging/b/bbadger"))
    (dag,) = (file for file in workflow.files if file.path.endswith(".dag"))
    (tmp_path / dag.path).write_text(dag.text)
    assert read_classes(tmp_path / dag.path) == {f"segment_{number:03d}": "short" for number in range(4)}
    assert read_classes(tmp_path / "other.dag") == {}


@pytest.fixture
def dag(tmp_path: Path) -> Path:
    (tmp_path / "run.dag.dagman.log").write_text(EventLog().submit(1, 0).submit(5, 200).text)
    return tmp_path / "run.dag"


def rescue(dag: Path, number: str, at: float, *nodes: str) -> None:
    path = dag.with_name(f"{dag.name}.rescue{number}")
    path.write_text("# Rescue DAG file\n" + "".join(f"DONE {node}\n" for node in nodes))
    os.utime(path, (at, at))


def done(dag: Path) -> set[str]:
    from dagman.events import read_events

    return set(read_done(dag, read_events(dag.with_name("run.dag.dagman.log"))))


def test_rescue_file_counts_for_submissions_after_it(dag: Path) -> None:
    assert done(dag) == set()
    rescue(dag, "001", BEGAN + 100, "stage", "segment_000")
    assert done(dag) == {"stage", "segment_000"}
    # The newest submission failed as well: what it left is for the next one.
    rescue(dag, "002", BEGAN + 300, "stage", "segment_000", "segment_001")
    assert done(dag) == {"stage", "segment_000"}


def test_rescue_file_that_a_forced_submission_put_aside_does_not_count(dag: Path) -> None:
    rescue(dag, "001.old", BEGAN + 100, "stage", "segment_000")
    assert done(dag) == set()


def test_workflow_that_was_never_submitted_and_staging_that_is_away(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(dump(JobConfig("run", str(tmp_path / "away"), 400, "command")))
    seen = observe(find_run(str(tmp_path)))
    assert (seen.staging_visible, seen.commit, seen.claims) == (False, None, [])
    history = read_history(find_run(str(tmp_path)))
    assert (history.state, history.step, history.segments) == ("not-submitted", 0, ())


def test_directory_of_the_run_that_is_gone_from_staging_is_said_with_what_is_known_of_it(tmp_path: Path) -> None:
    staging, workflow = tmp_path / "staging", tmp_path / "workflow"
    checkpoints = staging / "segue" / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (workflow / "handovers").mkdir(parents=True)
    (workflow / "job.json").write_text(dump(JobConfig("run", str(staging), 400, "command")))
    (workflow / "run.dag.dagman.log").write_text(EventLog().submit(1, 0).execute(1, 0, None).text)
    handover = {"state": "time-used", "step": 120, "commit": "000000120.e000001.tar"}
    (workflow / "handovers" / "segment-000.json").write_text(json.dumps(handover))
    commit = checkpoints / "000000120.e000001.tar"
    commit.touch()
    assert read_history(find_run(str(workflow))).reason is None
    commit.unlink()
    assert "has no commit any more, and step 120 had been published" in str(
        read_history(find_run(str(workflow))).reason
    )
    shutil.rmtree(checkpoints.parent)
    history = read_history(find_run(str(workflow)))
    assert history.reason == f"the run's directory {checkpoints.parent} is gone, and step 120 had been published there"
    assert history.next == f"bring {checkpoints.parent} back: no segment goes on without it, and none begins anew"
    # A staging that cannot be seen from here says nothing.
    shutil.rmtree(staging)
    assert read_history(find_run(str(workflow))).reason is None
