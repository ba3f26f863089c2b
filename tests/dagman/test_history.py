"""The timeline of a run, from event logs in both of HTCondor's formats, handovers and claims."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dagman.epochs import ClaimSeen
from dagman.events import read_events
from dagman.history import History, NewestCommit, Observed, timeline
from dagman.status import as_data
from tests.dagman.eventlog import BEGAN, EventLog

CLASSES = {f"segment_{number:03d}": "short" for number in range(4)}


@pytest.fixture(params=["23.9", "25"])
def log(request: pytest.FixtureRequest) -> EventLog:
    """The event log of the nodes, with the stage node behind it."""
    return EventLog(request.param).submit(2, 1, "stage").execute(2, 2).end(2, 3)


@pytest.fixture
def running() -> EventLog:
    """DAGMan's own log, of a DAG that runs."""
    return EventLog().submit(1, 0).execute(1, 0, None)


def seen(directory: Path, log: EventLog, dag: EventLog, skips: EventLog | None = None, **more: Any) -> History:
    for name, content in (("events.log", log), ("dag.log", dag), ("nodes.log", skips or EventLog())):
        (directory / name).write_text(content.text)
    values: dict[str, Any] = {"run": "run", "steps": 400, "classes": CLASSES, **more}
    return timeline(
        Observed(
            node_events=read_events(directory / "events.log"),
            skip_events=read_events(directory / "nodes.log"),
            dag_events=read_events(directory / "dag.log"),
            **values,
        )
    )


def outcomes(history: History, segment: int = 0) -> list[str]:
    return [attempt.outcome for attempt in history.segments[segment].attempts]


def states(history: History) -> list[str]:
    return [segment.state for segment in history.segments]


def test_not_submitted_run_says_how_to_begin(tmp_path: Path) -> None:
    history = seen(tmp_path, EventLog(), EventLog())
    assert (history.state, states(history), history.next) == (
        "not-submitted",
        ["waiting"] * 4,
        "submit it: segue submit",
    )


def test_evicted_attempt_is_repeated_in_the_same_segment(tmp_path: Path, log: EventLog, running: EventLog) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).evict(3, 60).execute(3, 90, "gpu2")
    history = seen(tmp_path, log, running)
    segment = history.segments[0]
    assert (segment.state, segment.evictions, outcomes(history)) == ("running", 1, ["evicted", "running"])
    first, second = segment.attempts
    assert (first.began - BEGAN, first.ended, first.machine, first.slot) == (10, BEGAN + 60, "gpu1", "slot1_1@gpu1")
    assert (first.reason, second.machine, second.ended, second.number) == ("Job vacated by schedd", "gpu2", None, 2)
    assert history.next == "segment_000 trains to step 400"
    assert history.nodes == {"stage": "finished"}


def test_evicted_job_waits_for_a_machine_until_it_runs_again(tmp_path: Path, log: EventLog, running: EventLog) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).evict(3, 60)
    history = seen(tmp_path, log, running)
    assert (states(history)[0], history.next) == ("queued", "segment_000 waits for a machine")


def test_killed_agent_is_a_failed_attempt_and_the_retry_is_the_next(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).end(3, 60, None, 9)
    between = seen(tmp_path, log, running)
    assert between.next == "segment_000 failed (killed by signal 9): it is tried again while it has retries left"
    log.submit(4, 62, "segment_000").execute(4, 65).end(4, 100)
    history = seen(tmp_path, log, running)
    failed, good = history.segments[0].attempts
    assert (failed.outcome, failed.reason, failed.exit_code, failed.job) == (
        "failed",
        "killed by signal 9",
        None,
        "3.0",
    )
    assert (good.outcome, good.exit_code, good.job, good.number) == ("finished", 0, "4.0", 2)
    assert (states(history)[0], history.segments[0].evictions) == ("finished", 0)


def test_failure_that_no_retry_helps_is_not_said_to_be_tried_again(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).end(3, 60, 78)
    assert (
        seen(tmp_path, log, running).next
        == "segment_000 failed (exit code 78): no retry can help, so the workflow ends"
    )


def test_dead_shadow_leaves_no_event_and_the_next_start_says_so(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).execute(3, 20)
    history = seen(tmp_path, log, running)
    lost, now = history.segments[0].attempts
    assert (lost.outcome, lost.ended, lost.reason) == ("lost", BEGAN + 20, "nothing was said of its end")
    assert (now.outcome, history.segments[0].evictions) == ("running", 1)


def test_lost_connection_is_told_while_it_lasts_and_ends_either_way(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).disconnect(3, 20)
    history = seen(tmp_path, log, running)
    assert outcomes(history) == ["running"]
    assert history.segments[0].attempts[0].reason == (
        "disconnected: Socket between submit and execute hosts closed unexpectedly"
    )
    assert history.next.startswith("segment_000 is cut off from ") and "the job's lease" in history.next
    log.reconnect(3, 30)
    assert seen(tmp_path, log, running).segments[0].attempts[0].reason is None
    log.disconnect(3, 40).reconnect_failed(3, 50).evict(3, 50, "Job not found at execution machine", 1008).execute(
        3, 60
    )
    history = seen(tmp_path, log, running)
    assert outcomes(history) == ["lost", "running"]
    assert history.segments[0].attempts[0].reason == "Job not found at execution machine"


def test_shadow_exception_ends_an_attempt(tmp_path: Path, log: EventLog, running: EventLog) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).shadow_exception(3, 20, "Error from slot1_1@gpu1: no space")
    history = seen(tmp_path, log, running)
    assert (outcomes(history), states(history)[0]) == (["lost"], "queued")
    assert history.segments[0].attempts[0].reason == "Error from slot1_1@gpu1: no space"


def test_held_job_says_why_and_what_to_do_and_goes_on_when_released(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    why = "Job has gone over cgroup memory limit of 65536 megabytes"
    log.submit(3, 5, "segment_000").execute(3, 10).evict(3, 60, why, 34).hold(3, 60, why, 34)
    history = seen(tmp_path, log, running)
    assert (states(history)[0], outcomes(history), history.reason) == ("held", ["held"], f"segment_000 is held: {why}")
    assert history.next == (
        "segment_000 used more memory than it asked for: condor_qedit 3.0 RequestMemory MB, then condor_release 3.0; "
        "raise resources.memory_mb for the next submission"
    )
    log.release(3, 90).execute(3, 95)
    history = seen(tmp_path, log, running)
    assert (states(history)[0], outcomes(history), history.reason) == ("running", ["held", "running"], None)


def test_job_held_before_it_ran_has_no_attempt(tmp_path: Path, log: EventLog, running: EventLog) -> None:
    log.submit(3, 5, "segment_000").hold(3, 10, "Transfer input files failure", 13)
    history = seen(tmp_path, log, running)
    assert (states(history)[0], outcomes(history)) == ("held", [])
    assert history.reason == "segment_000 is held: Transfer input files failure"
    assert history.next == "segment_000 is held: mend the cause, then condor_release 3.0"


def test_held_helper_is_told_as_well(tmp_path: Path, running: EventLog) -> None:
    log = EventLog().submit(2, 1, "stage").hold(2, 9, "Transfer input files failure", 13)
    history = seen(tmp_path, log, running)
    assert (history.nodes, history.reason) == ({"stage": "held"}, "stage is held: Transfer input files failure")
    assert history.next == "stage is held: mend the cause, then condor_release 2.0"
    log = EventLog().submit(2, 1, "consolidate").execute(2, 3).hold(2, 9, "Job has gone over cgroup memory limit", 34)
    assert seen(tmp_path, log, running).next == (
        "consolidate used more memory than it asked for: condor_qedit 2.0 RequestMemory MB, then condor_release 2.0; "
        "raise resources.helper_memory_mb for the next submission"
    )


def test_skipped_segments_are_told_from_those_that_wait(tmp_path: Path, log: EventLog, running: EventLog) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).end(3, 60)
    skips = EventLog().preskip("segment_001", 61).preskip("segment_002", 62, 2)
    history = seen(tmp_path, log, running, skips)
    assert states(history) == ["finished", "skipped", "skipped", "waiting"]


def test_removed_dag_takes_its_job_along(tmp_path: Path, log: EventLog, running: EventLog) -> None:
    why = "DAG Removed: User removed scheduler job from queue."
    log.submit(3, 5, "segment_000").execute(3, 10).evict(3, 60, why, 1023).abort(3, 60, why)
    running.evict(1, 61, "removed").abort(1, 61)
    history = seen(tmp_path, log, running)
    assert (history.state, states(history)[0], outcomes(history)) == ("removed", "removed", ["removed"])
    assert (history.reason, history.next) == (
        "via condor_rm (by user bbadger)", "go on from the newest commit: segue submit",
    )  # fmt: skip


def test_earlier_submission_does_not_look_like_the_newest(tmp_path: Path, log: EventLog) -> None:
    # Given a submission that ended after two segments, the second one failed,
    log.submit(3, 5, "segment_000").execute(3, 10).end(3, 60)
    log.submit(4, 62, "segment_001").execute(4, 65).end(4, 90, 78)
    skips = EventLog().preskip("segment_003", 63)
    dag = EventLog().submit(1, 0).execute(1, 0, None).end(1, 100, 1)
    assert seen(tmp_path, log, dag, skips).state == "failed"
    # when it is submitted again (condor_submit_dag -f replaces DAGMan's own log; the event log goes on),
    dag = EventLog().submit(5, 200).execute(5, 200, None)
    history = seen(tmp_path, log, dag, skips)
    # then nothing of it is running or done, and its attempts are marked.
    assert (history.state, states(history), history.nodes) == ("running", ["waiting"] * 4, {"stage": "waiting"})
    assert [attempt.earlier for segment in history.segments for attempt in segment.attempts] == [True, True]
    assert history.next == "stage verifies the inputs" and history.reason is None
    log.submit(6, 210, "stage").execute(6, 211).end(6, 212).submit(7, 215, "segment_000").execute(7, 220)
    history = seen(tmp_path, log, dag, skips)
    assert states(history) == ["running", "waiting", "waiting", "waiting"]
    assert [(a.number, a.earlier) for a in history.segments[0].attempts] == [(1, True), (2, False)]


def test_nodes_of_the_rescue_file_are_done_in_the_newest_submission(tmp_path: Path, log: EventLog) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).end(3, 60)
    dag = EventLog().submit(1, 0).execute(1, 0, None).abort(1, 61).submit(5, 200).execute(5, 200, None)
    history = seen(tmp_path, log, dag, done=frozenset({"stage", "segment_000"}))
    assert (states(history), history.nodes) == (["finished", "waiting", "waiting", "waiting"], {"stage": "finished"})
    assert history.next == "segment_001 is submitted"


def test_job_numbers_that_begin_again_in_a_new_pool_are_told_apart(tmp_path: Path, log: EventLog) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).evict(3, 60)
    log.submit(2, 205, "stage").execute(2, 206).end(2, 207).submit(3, 208, "segment_000").execute(3, 210)
    dag = EventLog().submit(9, 0).execute(9, 0, None).submit(1, 200).execute(1, 200, None)
    history = seen(tmp_path, log, dag)
    assert (history.state, history.began, history.dag_job) == ("running", BEGAN + 200, "1.0")
    assert outcomes(history) == ["evicted", "running"]


def hand_over(epoch: int, job: str, began: float, **more: Any) -> Mapping[str, Any]:
    return {"epoch": epoch, "job_id": job, "began": BEGAN + began, "state": "time-used", **more}


def test_every_attempt_has_its_epoch_from_claims_handovers_and_counting(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    # Given three evictions, a handover of segment 0, and claims of the newest epochs alone (the store keeps no more),
    log.submit(3, 5, "segment_000").execute(3, 10).evict(3, 60).execute(3, 70).end(3, 90)
    log.submit(4, 100, "segment_001").execute(4, 110).evict(4, 120).execute(4, 130).evict(4, 140).execute(4, 150)
    claims = [ClaimSeen(5, "4.0", BEGAN + 150.2)]
    history = seen(tmp_path, log, running, handovers={0: hand_over(2, "3.0", 70.4)}, claims=claims)
    # then the two that are not named follow from their number.
    assert [a.epoch for segment in history.segments for a in segment.attempts] == [1, 2, 3, 4, 5]


def test_attempt_that_made_no_claim_leaves_its_neighbours_unknown_not_wrong(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).evict(3, 11).execute(3, 20).evict(3, 30).execute(3, 40)
    history = seen(tmp_path, log, running, claims=[ClaimSeen(2, "3.0", BEGAN + 40.5)])
    assert [a.epoch for a in history.segments[0].attempts] == [None, None, 2]


def test_clock_of_a_machine_may_be_off_by_seconds(tmp_path: Path, log: EventLog, running: EventLog) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).evict(3, 60).execute(3, 61)
    claims = [ClaimSeen(1, "3.0", BEGAN + 7), ClaimSeen(2, "3.0", BEGAN + 58)]
    history = seen(tmp_path, log, running, claims=claims)
    assert [a.epoch for a in history.segments[0].attempts] == [1, 2]


@pytest.mark.parametrize(
    ("handover", "said"),
    [
        (hand_over(1, "3.0", 10, state="failed", reason="the trainer crashed at step 37 three times: boom"),
         "segment_000: the trainer crashed at step 37 three times: boom"),
        (hand_over(1, "2.9", 10, state="temporary", reason="of another attempt"), "segment_000: exit code 78"),
        ({}, "segment_000: exit code 78"),
    ],
)  # fmt: skip
def test_failure_is_told_in_the_words_of_the_attempt_that_failed(
    tmp_path: Path, log: EventLog, running: EventLog, handover: Mapping[str, Any], said: str
) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).end(3, 60, 78)
    history = seen(tmp_path, log, running.end(1, 70, 1), handovers={0: handover} if handover else {})
    assert (history.state, states(history)[0], history.reason) == ("failed", "failed", said)
    assert history.next == "mend the cause, then go on from the newest commit: segue submit"


def test_workflow_whose_run_another_has_taken_is_not_to_be_submitted(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10).end(3, 60, 78)
    running.end(1, 70, 1)
    taken = {0: hand_over(1, "3.0", 10, state="superseded", reason="another workflow runs this run: job 9.0")}
    history = seen(tmp_path, log, running, handovers=taken)
    assert history.reason == "segment_000: another workflow runs this run: job 9.0"
    assert "segue submit" not in history.next
    assert history.next == (
        "another workflow has this run: let that one go on, or end it before this one is submitted again; "
        "how far the run is: segue commits"
    )
    assert "segue" not in seen(tmp_path, log, running, handovers=taken, staging_visible=False).next
    # What an earlier attempt handed over is of another time.
    taken[0]["job_id"] = "2.9"
    assert seen(tmp_path, log, running, handovers=taken).next.endswith("segue submit")


def test_steps_that_were_raised_while_the_workflow_runs_are_told(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10)
    assert seen(tmp_path, log, running, asked_steps=800).next == (
        "segment_000 trains to step 400; run.toml asks for 800 steps now: submit it again once this workflow, which goes to 400, has ended"
    )
    for asked in (400, 200, None):
        assert seen(tmp_path, log, running, asked_steps=asked).next == "segment_000 trains to step 400"
    # A command to type stays the last word.
    log.hold(3, 20, "by hand")
    assert seen(tmp_path, log, running, asked_steps=800).next.endswith("condor_release 3.0")


def test_failed_helper_is_told_by_its_last_line(tmp_path: Path, running: EventLog) -> None:
    log = EventLog().submit(2, 1, "stage").execute(2, 2).end(2, 3, 78)
    words = {"stage": "segue: error: dataset-1.tar: digest differs"}
    history = seen(tmp_path, log, running.end(1, 9, 1), last_words=words)
    assert history.reason == "stage: dataset-1.tar: digest differs"
    assert seen(tmp_path, log, running).reason == "stage: exit code 78; see logs/stage.err"


def test_what_a_running_attempt_cannot_publish_is_said_while_it_runs(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    log.submit(3, 5, "segment_000")
    assert seen(tmp_path, log, running, unpublished="no room").reason is None
    log.execute(3, 10)
    assert seen(tmp_path, log, running).reason is None
    assert seen(tmp_path, log, running, unpublished="no room").reason == "segment_000: not published: no room"
    log.end(3, 60)
    assert seen(tmp_path, log, running, unpublished="no room").reason is None


def test_step_is_the_commits_else_the_handovers(tmp_path: Path, log: EventLog, running: EventLog) -> None:
    commit = NewestCommit("000000160.e000002.tar", 160, 2, 10, BEGAN, 0.5)
    handovers = {0: hand_over(1, "3.0", 10, step=120, pace={"step_s": 2.0}, commits=[{"step": 120}])}
    history = seen(tmp_path, log, running, commit=commit, handovers=handovers)
    assert (history.step, history.step_s, history.left_s) == (160, 0.5, 120.0)
    history = seen(tmp_path, log, running, staging_visible=False, handovers=handovers)
    assert (history.step, history.step_s, history.left_s) == (120, 2.0, 560.0)
    assert seen(tmp_path, log, running).left_s is None


def test_log_that_ends_in_the_middle_of_an_event_is_read_up_to_there(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10)
    whole = log.text
    log.evict(3, 60)
    for length in range(len(whole), len(log.text) - 4, 80):
        cut = EventLog()
        cut.parts = [log.text[:length]]
        assert outcomes(seen(tmp_path, cut, running)) == ["running"], log.text[len(whole) : length]


def test_rubbish_in_the_log_does_not_lose_what_stands_before_it(
    tmp_path: Path, log: EventLog, running: EventLog
) -> None:
    log.submit(3, 5, "segment_000").execute(3, 10)
    log.parts.append("\0\0\0 no event at all\n...\nmore\n")
    assert outcomes(seen(tmp_path, log, running)) == ["running"]


def test_status_of_ten_thousand_segments_takes_no_two_seconds(tmp_path: Path, running: EventLog) -> None:
    log = EventLog()
    for number in range(5_000):
        cluster, at = number + 2, 10 * number
        log.submit(cluster, at, f"segment_{number:03d}").execute(cluster, at + 1).evict(cluster, at + 2)
        log.execute(cluster, at + 3).end(cluster, at + 4)
    classes = {f"segment_{number:03d}": "short" for number in range(10_000)}
    claims = [ClaimSeen(10_000, "5001.0", BEGAN + 49_993.5)]
    began = time.process_time()
    history = seen(tmp_path, log, running, classes=classes, claims=claims)
    text = json.dumps(as_data(history, BEGAN))
    spent = time.process_time() - began
    assert (history.evictions, states(history).count("waiting")) == (5_000, 5_000)
    assert history.segments[0].attempts[0].epoch == 1 and len(json.loads(text)["segments"]) == 10_000
    assert spent < 6.0, "processor time; about one second on an idle machine"
