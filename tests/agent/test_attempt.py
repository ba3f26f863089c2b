"""Whole attempts with a real trainer process: planned ends, crashes, hangs, signals, a store that goes away."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import Pace, Wandb
from agent.processes import descendants
from tests.agent.support import ROOT, VERSIONS, Run, alive, interpreter, state_after, wait_for


def test_a_run_completes_in_one_segment(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=60)
    with run.attempt() as attempt:
        assert attempt.end() == 0
    handover = attempt.handover()
    assert (handover["state"], handover["exit_code"], handover["step"], handover["epoch"]) == ("complete", 0, 60, 1)
    assert (handover["starts"], handover["redone_steps"], handover["restored"]) == (1, 0, None)
    assert handover["class"] == "short" and handover["commit"] == "000000060.e000001.tar"
    assert set(handover["goodput"]) >= {"restore_s", "startup_s", "train_s", "publish_stall_s", "idle_s"}
    assert run.final_state() == state_after(60)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_agent_runs_on_every_python_without_a_warning(tmp_path: Path, version: str) -> None:
    run = Run(tmp_path, steps=30)
    with run.attempt(python=[interpreter(version), "-W", "error"]) as attempt:
        assert attempt.end() == 0, attempt.log()
    assert run.final_state() == state_after(30)
    assert attempt.handover()["warnings"] == []


def test_a_complete_run_starts_no_trainer(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=20)
    for _ in range(2):
        with run.attempt() as attempt:
            assert attempt.end() == 0
    assert attempt.handover()["starts"] == 0
    assert attempt.handover()["state"] == "complete"
    assert not (attempt.scratch / "inputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["plain", "by-last-step"])
def test_planned_ends_redo_nothing(tmp_path: Path, recipe: str) -> None:
    """Three segments here; twenty with the reference trainer on the pool in `make faults`."""
    run = Run(tmp_path, steps=100_000, recipe=recipe, limit_s=6.0, margin_s=1.5, args=("step_s=0.01",))
    reached = [0]
    for segment in range(3):
        with run.attempt(segment) as attempt:
            assert attempt.end() == 0, attempt.log()
        handover = attempt.handover()
        assert (handover["state"], handover["redone_steps"]) == ("time-used", 0)
        assert handover["restored"] is None if segment == 0 else handover["restored"]["step"] == reached[-1]
        assert attempt.step() == handover["step"] > reached[-1]
        assert handover["ended"] - handover["began"] < 6.0
        reached.append(handover["step"])
    assert run.final_state() == state_after(reached[-1])


def test_a_crash_at_the_same_step_ends_after_three_starts_and_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path, args=("crash_at=37",), save_interval=10)
    with run.attempt() as attempt:
        assert attempt.end() == 78
    handover = attempt.handover()
    assert (handover["starts"], handover["state"], handover["step"]) == (3, "failed", 30)
    assert "step 37" in handover["reason"]
    assert handover["failure"] == {"class": "unknown", "exit_code": 1, "signal": None, "step": 36}
    assert any("boom in step 37" in line for line in handover["last_lines"])


def test_three_starts_end_a_resumed_run_only_on_a_machine_where_it_makes_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, args=("xid_at=25",), save_interval=10)
    for crash_at, code, starts in ((0, 75, 1), (21, 75, 3), (23, 78, 3)):
        if crash_at:
            run.job = replace(run.job, args=(f"crash_at={crash_at}",))
        with run.attempt() as attempt:
            assert attempt.end() == code, attempt.log()
        assert attempt.handover()["starts"] == starts
    assert "in step 23" in attempt.handover()["reason"]


@pytest.mark.parametrize("recipe", ["by-last-step", "by-itself"])
def test_a_trainer_that_does_not_save_at_its_last_step_is_told_so(tmp_path: Path, recipe: str) -> None:
    run = Run(tmp_path, steps=20, recipe=recipe, args=("saves_until=10", "step_s=0.1"), save_interval=10)
    with run.attempt() as attempt:
        assert attempt.end() == 78, attempt.log()
    handover = attempt.handover()
    assert (handover["failure"]["class"], handover["step"]) == ("early-end", 10)
    assert "step 21" not in handover["reason"]
    assert "before its last step" not in handover["reason"]
    assert "no finished checkpoint of step 20" in handover["reason"]
    assert "SEGUE_LAST_STEP" in handover["reason"]


def test_a_trainer_that_stops_without_the_save_it_was_asked_for_is_told_so(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=100_000, limit_s=6.0, args=("saves_until=10", "step_s=0.01"), save_interval=10)
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    handover = attempt.handover()
    assert (handover["state"], handover["step"]) == ("time-used", 10)
    assert f"asked to and saved nothing after step 10, so {attempt.step() - 10} steps are lost" in handover["reason"]
    assert "SEGUE_STOP_FILE" in handover["reason"]


def test_a_start_is_not_judged_by_the_lines_of_the_one_before(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=40, args=("stumbles=1", "step_s=0.01"), save_interval=10)
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    assert attempt.handover()["starts"] == 3
    assert "start 2 failed after step 0: start:" in attempt.handover()["warnings"][1]
    assert "FileNotFoundError: data" in attempt.handover()["last_lines"]


def test_checkpoints_that_can_never_be_published_do_not_cost_the_whole_slot(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=100_000, args=("leads_out=1", "step_s=0.01"), save_interval=10)
    with run.attempt() as attempt:
        assert attempt.end() == 78, attempt.log()
    assert "checkpoints in a row could not be published, and waiting does not help" in attempt.log()
    assert "leads out of the checkpoint" in attempt.handover()["reason"]


def test_a_progress_file_that_is_no_file_holds_up_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=40, args=("pipe=1", "step_s=0.01"), save_interval=10)
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()


def test_a_last_look_that_fails_loses_nothing_of_what_waits(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=40, args=("crash_at=25", "step_s=0.01"), save_interval=10)
    breaking = """
import agent.publishing
look = agent.publishing.Publisher.last_look
def once(self, whole):
    agent.publishing.Publisher.last_look = look
    raise PermissionError(13, "Permission denied", "checkpoints")
agent.publishing.Publisher.last_look = once
"""
    (tmp_path / "sitecustomize.py").write_text(breaking)
    with run.attempt(environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as attempt:
        assert attempt.end() == 78, attempt.log()
    assert attempt.handover()["step"] == 20
    assert "in step 25" in attempt.handover()["reason"]
    assert any("looking at the trainer's checkpoints failed" in text for text in attempt.handover()["warnings"])


def test_checkpoints_that_vanish_from_scratch_are_restored_from_staging(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=40, args=("lose_at=25",), save_interval=10)
    with run.attempt() as attempt:
        attempt.saw("published step 20")
        (attempt.scratch / "lose").touch()
        assert attempt.end() == 0, attempt.log()
    assert (attempt.handover()["starts"], attempt.handover()["redone_steps"]) == (2, 4)
    assert run.final_state() == state_after(40)


def test_a_hang_at_the_same_step_ends_after_three_starts_with_its_stack(tmp_path: Path) -> None:
    run = Run(tmp_path, args=("hang_at=37", "workers=1"), save_interval=10, hang_min_s=0.6, hang_factor=3.0)
    with run.attempt() as attempt:
        assert attempt.end() == 78
    handover = attempt.handover()
    assert (handover["starts"], handover["failure"]["class"]) == (3, "hang")
    assert "step 37" in handover["reason"]
    assert any("stuck_in_a_collective" in line for line in handover["last_lines"])


def test_an_import_error_is_not_tried_again(tmp_path: Path) -> None:
    run = Run(tmp_path, args=("import_error=1",))
    with run.attempt() as attempt:
        assert attempt.end() == 78
    handover = attempt.handover()
    assert (handover["starts"], handover["failure"]["class"]) == (1, "import-error")
    assert any("there_is_no_such_module" in line for line in handover["last_lines"])


def test_sigterm_saves_publishes_and_leaves_in_time(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=100_000, args=("step_s=0.01", "workers=2"), save_interval=100_000)
    with run.attempt() as attempt:
        attempt.reached(20)
        began = time.monotonic()
        attempt.process.terminate()
        assert attempt.end() == 75
        assert time.monotonic() - began < 10
    handover = attempt.handover()
    assert handover["state"] == "temporary"
    assert handover["step"] >= 20
    assert handover["step"] == attempt.step()
    with run.attempt() as second:
        second.reached(handover["step"] + 5)
        assert f"restored step {handover['step']}" in second.log()


def test_sigterm_with_no_time_leaves_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=100_000, args=("step_s=0.01",), save_interval=30)
    (tmp_path / "machine.ad").write_text("MachineMaxVacateTime = 1 * 1\n")
    with run.attempt(environment={"_CONDOR_MACHINE_AD": str(tmp_path / "machine.ad")}) as attempt:
        attempt.saw("published step")
        attempt.process.terminate()
        assert attempt.end() == 75
    assert attempt.handover()["step"] % 30 == 0


def test_under_nohup_the_end_of_the_terminal_ends_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=40, args=("wait_at=20",), save_interval=10)
    with run.attempt(python=("nohup", sys.executable)) as attempt:
        attempt.saw("published step 10")
        attempt.process.send_signal(signal.SIGHUP)
        (attempt.scratch / "go").touch()
        assert attempt.end() == 0, attempt.log()


def test_a_second_sigterm_leaves_now(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=1000, args=("step_s=0.01", "hang_at=40", "stubborn=1", "workers=1"), kill_grace_s=600.0)
    with run.attempt() as attempt:
        attempt.reached(39)
        below = descendants(attempt.process.pid)
        attempt.process.terminate()
        attempt.saw("SIGTERM: leaving within")
        attempt.process.terminate()
        assert attempt.end() == 75
        assert [pid for pid in below if alive(pid)] == []
    assert "told twice" in attempt.handover()["reason"]


def test_nothing_survives_sigkill_of_the_agent_and_the_next_attempt_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=200, args=("step_s=0.01", "workers=2", "stubborn=1"), save_interval=20)
    with run.attempt() as attempt:
        attempt.saw("published step")
        below = descendants(attempt.process.pid)
        assert len(below) >= 4
        attempt.process.kill()
        wait_for(lambda: not any(alive(pid) for pid in below), "the end of all processes")
    with run.attempt() as second:
        assert second.end() == 0
    handover = second.handover()
    assert handover["restored"]["step"] >= 20
    assert run.final_state() == state_after(200)
    assert [name for name in run.commits() if not name.endswith(".tar") or name.startswith(".")] == []


@pytest.mark.parametrize("victim", ["trainer", "worker", "keeper"])
def test_a_killed_process_is_restarted_within_the_attempt(tmp_path: Path, victim: str) -> None:
    run = Run(tmp_path, steps=150, args=("step_s=0.01", "workers=1", "wait_at=50"), save_interval=20)
    with run.attempt() as attempt:
        attempt.saw("published step")
        keeper, trainer, worker = attempt.family()
        os.kill({"trainer": trainer, "worker": worker, "keeper": keeper}[victim], signal.SIGKILL)
        (attempt.scratch / "go").touch()
        attempt.saw("start 2")
        assert not any(alive(pid) for pid in (keeper, trainer, worker))
        assert attempt.end() == 0
    handover = attempt.handover()
    assert (handover["starts"], handover["state"]) == (2, "complete")
    assert handover["redone_steps"] < 40
    assert run.final_state() == state_after(150)


def test_staging_may_go_away_and_come_back(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=400, args=("step_s=0.01",), save_interval=20)
    with run.attempt() as attempt:
        attempt.saw("published step")
        away = run.staging.with_name("away")
        run.staging.rename(away)
        before = attempt.step()
        attempt.saw("training goes on")
        attempt.reached(before + 50)
        away.rename(run.staging)
        assert attempt.end() == 0, attempt.log()
    warnings = [line for line in attempt.handover()["warnings"] if "training goes on" in line]
    assert len(warnings) == 1
    assert run.final_state() == state_after(400)


def test_a_superseded_attempt_stops_and_does_not_fail_the_node(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=100_000, args=("step_s=0.01",), save_interval=20)
    with run.attempt() as older:
        older.saw("published step")
        with run.attempt() as newer:
            newer.saw("training from")
            below = descendants(older.process.pid)
            assert older.end() == 0
            assert not any(alive(pid) for pid in below)
            newer.saw("published step")
    assert older.handover()["state"] == "superseded"
    assert "epoch 2" in older.handover()["reason"]


@pytest.mark.parametrize(("newer_job", "code"), [("12", 0), ("14", 78)])
def test_only_a_superseded_attempt_of_another_job_ends_its_workflow(tmp_path: Path, newer_job: str, code: int) -> None:
    """The same job, lost and started elsewhere, is no failure; another workflow of the same run must not be fought for ever."""
    run = Run(tmp_path, steps=100_000, args=("step_s=0.01",), save_interval=20)
    for number in ("12", newer_job):
        (tmp_path / f"job-{number}.ad").write_text(f"ClusterId = {number}\nProcId = 0\n")
    with run.attempt(environment={"_CONDOR_JOB_AD": str(tmp_path / "job-12.ad")}) as older:
        older.saw("published step")
        with run.attempt(environment={"_CONDOR_JOB_AD": str(tmp_path / f"job-{newer_job}.ad")}) as newer:
            newer.saw("training from")
            assert older.end() == code
    handover = older.handover()
    assert handover["state"] == "superseded"
    assert ("another workflow runs this run: job 14.0 on" in handover["reason"]) is (code == 78)


def test_a_changed_configuration_is_refused_field_by_field(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=20)
    with run.attempt() as attempt:
        assert attempt.end() == 0
    run.job = replace(run.job, fingerprint={"recipe": "plain", "args": "other"}, steps=40)
    run.job = replace(run.job, fingerprint={"recipe": "changed"})
    with run.attempt() as attempt:
        assert attempt.end() == 78
    assert "recipe: was 'plain', is now 'changed'" in attempt.handover()["reason"]


def test_absent_staging_is_temporary(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.staging.rmdir()
    with run.attempt() as attempt:
        assert attempt.end() == 75
    assert attempt.handover()["state"] == "temporary"
    assert str(run.staging) in attempt.handover()["reason"]


SHORT: dict[str, Any] = {"limit_s": 6.0, "margin_s": 2.0}
"""A segment with time left at its end to keep what was measured."""


def test_a_segment_shorter_than_one_save_says_so_and_the_next_attempt_plans_with_what_was_measured(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, steps=1000, args=("step_s=0.05",), recipe="by-last-step", save_interval=900, **SHORT)
    run.job = replace(run.job, pace=replace(run.job.pace, step_s=0.001))
    with run.attempt() as attempt:
        assert attempt.end() == 75
    assert "no checkpoint came out of this segment" in attempt.handover()["reason"]
    assert "choose a longer class" in attempt.handover()["reason"]
    with run.attempt() as second:
        assert second.end() == 0, second.log()
    assert second.handover()["step"] > 0


def test_segments_that_can_never_save_end_with_the_second_attempt(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=1000, args=("step_s=600",), **SHORT)
    codes = []
    for _ in range(2):
        with run.attempt() as attempt:
            codes.append(attempt.end())
    assert codes == [75, 78], attempt.log()
    reason = attempt.handover()["reason"]
    assert (
        "no checkpoint came out of this segment of 6 s: the trainer reported no step" in reason
        and "is shorter" not in reason
    )


@pytest.mark.parametrize(
    ("recipe", "steps", "how"),
    [
        ("by-last-step", 30, "a clean end"),
        ("plain", 100_000, "a stop that was asked for"),
        ("by-itself", 100_000, "the limit"),
    ],
)
def test_checkpoints_that_are_never_found_end_the_first_attempt_and_are_named(
    tmp_path: Path, recipe: str, steps: int, how: str
) -> None:
    run = Run(
        tmp_path, steps=steps, recipe=recipe, save_interval=10, args=("step_s=0.01", "prefix=model-"), limit_s=4.0
    )
    with run.attempt() as attempt:
        assert attempt.end() == 78, f"{how}: {attempt.log()}"
    handover = attempt.handover()
    assert handover["starts"] == 1
    assert f"no finished checkpoint in {attempt.scratch / 'checkpoints'}" in handover["reason"]
    assert "model-10, model-20, model-30" in handover["reason"]


def test_a_save_that_is_far_too_long_is_final_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=1000, args=("step_s=0.01", "save_s=600"), limit_s=3.0, save_interval=10)
    run.job = replace(run.job, pace=replace(run.job.pace, save_s=30.0))
    with run.attempt() as attempt:
        assert attempt.end() == 78
    assert "one save (30.0 s)" in attempt.handover()["reason"]


def test_steps_slower_than_thought_end_at_the_last_checkpoint_that_fits(tmp_path: Path) -> None:
    run = Run(
        tmp_path, steps=1000, args=("step_s=0.02",), recipe="by-last-step", limit_s=5.0, margin_s=1.5, save_interval=40
    )
    run.job = replace(run.job, pace=replace(run.job.pace, step_s=0.005))
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    handover = attempt.handover()
    assert handover["state"] == "time-used"
    assert handover["step"] in (40, 80, 120, 160)
    assert handover["ended"] - handover["began"] < 5.0


def test_a_trainer_that_ends_only_at_the_runs_end_is_stopped_after_a_save(tmp_path: Path) -> None:
    """It is faster than thought, and goes on beyond the step that was planned: nothing of that may be lost but the tail of an interval."""
    run = Run(
        tmp_path, steps=100_000, args=("step_s=0.01",), recipe="by-itself", limit_s=6.0, margin_s=1.5, save_interval=40
    )
    run.job = replace(run.job, pace=replace(run.job.pace, step_s=0.05))
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    handover = attempt.handover()
    assert handover["state"] == "time-used"
    assert handover["step"] % 40 == 0 and handover["step"] >= 80
    assert attempt.step() - handover["step"] < 40


def test_a_trainer_with_an_interval_of_its_own_is_ended_after_the_last_checkpoint_that_fits(tmp_path: Path) -> None:
    # Its checkpoints come after 3, 6 and 9 s and more: two fit, with room for a slow machine, the third never does.
    args = ("step_s=0.05", "every=60", "deaf=1")
    run = Run(tmp_path, steps=100_000, recipe="of-its-own", limit_s=9.2, args=args)
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    handover = attempt.handover()
    assert handover["state"] == "time-used" and handover["step"] == 120
    assert handover["reason"].partition("; ")[2].startswith("the next checkpoint would not be published"), attempt.log()
    assert attempt.step() - handover["step"] < 30


def test_a_save_that_is_under_way_is_waited_for_at_the_end_of_the_time(tmp_path: Path) -> None:
    # Saves take 3 s and end after 4.2, 8.4 and 12.6 s and more: the second fits, though the agent thinks that saving is quick.
    run = Run(
        tmp_path,
        steps=100_000,
        recipe="by-itself",
        limit_s=11.2,
        save_interval=60,
        args=("step_s=0.02", "every=60", "save_s=3", "deaf=1"),
    )
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    handover = attempt.handover()
    assert (handover["state"], handover["step"]) == ("time-used", 120), attempt.log()


def test_a_save_that_is_under_way_at_a_notice_is_waited_for_when_the_grace_allows(tmp_path: Path) -> None:
    pace = Pace(step_s=0.01, save_s=3.0, publish_s=0.1, restore_s=0.1, startup_s=0.2)
    run = Run(
        tmp_path, steps=100_000, recipe="by-last-step", save_interval=30, pace=pace, args=("step_s=0.01", "save_s=2")
    )
    ad = tmp_path / "machine.ad"
    for grace_s, step in ((20, 30), (1, 30)):  # the second leaves with nothing new: its save cannot be waited for
        ad.write_text(f"MachineMaxVacateTime = {grace_s}\n")
        with run.attempt(environment={"_CONDOR_MACHINE_AD": str(ad)}) as attempt:
            attempt.reached(step if grace_s == 20 else 60)
            attempt.process.terminate()
            assert attempt.end() == 75, attempt.log()
        assert attempt.handover()["step"] == step, attempt.log()


def carried_pace(run: Run, handover: dict[str, Any]) -> dict[str, float]:
    """What the newest commit's manifest says of the pace."""
    with tarfile.open(run.store / "checkpoints" / handover["commit"]) as tar:
        file = tar.extractfile("segue-manifest.json")
        assert file is not None
        found: dict[str, float] = json.load(file)["pace"]
        return found


def test_a_trainer_that_says_nothing_of_its_steps_is_known_by_its_checkpoints(tmp_path: Path) -> None:
    # Checkpoints after 2, 4, 6 and 8 s and more: three fit, or two on a slow machine.
    args = ("step_s=0.05", "every=40", "deaf=1", "mute=1")
    run = Run(tmp_path, steps=100_000, recipe="of-its-own", limit_s=7.8, args=args)
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    handover = attempt.handover()
    assert handover["state"] == "time-used" and handover["step"] in (80, 120)
    assert handover["reason"].partition("; ")[2].startswith("the next checkpoint would not be published"), attempt.log()
    pace = carried_pace(run, handover)
    assert 0.05 <= pace["step_s"] < 0.1 and pace["startup_s"] < 2


def test_a_trainer_is_ended_while_its_last_checkpoint_is_published(tmp_path: Path) -> None:
    # A publish takes 2 s, in which 40 steps would be made for nothing. Of checkpoints after 3, 6 and 9 s two fit.
    args = ("step_s=0.05", "every=60", "deaf=1", "pad_mb=60")
    run = Run(tmp_path, steps=100_000, recipe="of-its-own", limit_s=11.1, args=args, publish_bytes_per_s=30e6)
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    handover = attempt.handover()
    assert (handover["state"], handover["step"]) == ("time-used", 120), attempt.log()
    assert attempt.step() - 120 < 20


def test_how_long_a_save_takes_is_learned_from_saves(tmp_path: Path) -> None:
    args = ("step_s=0.05", "save_s=1.5", "deaf=1")
    run = Run(tmp_path, steps=60, recipe="by-itself", save_interval=20, args=args)
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    pace = carried_pace(run, attempt.handover())
    assert 1.4 < pace["save_s"] < 5
    assert 0.05 + 1.4 / 20 < pace["step_s"] < 0.3, "with what the saves took"


def test_the_log_and_the_reach_of_an_evicted_attempt_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=100_000, args=("step_s=0.01", "deaf=1", "saves_until=30"), save_interval=30)
    (tmp_path / "machine.ad").write_text("MachineMaxVacateTime = 3\n")
    with run.attempt(environment={"_CONDOR_MACHINE_AD": str(tmp_path / "machine.ad")}) as attempt:
        attempt.saw("published step")
        attempt.reached(45)
        attempt.process.terminate()
        assert attempt.end() == 75
    kept = gzip.decompress((run.store / "logs" / "000001.log.gz").read_bytes()).decode()
    assert "training from 0" in kept
    lines = [
        json.loads(line) for line in gzip.decompress((run.store / "logs" / "000001.jsonl.gz").read_bytes()).splitlines()
    ]
    assert lines[-1]["event"] == "end"
    reached, published = lines[-1]["step"], attempt.handover()["step"]
    assert reached > published == 30
    with run.attempt() as second:
        second.reached(reached + 10)
        second.process.terminate()
        second.end()
    assert second.handover()["redone_steps"] == reached - published


def test_caches_travel_to_the_next_attempt(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=100_000, args=("step_s=0.01", "cache=1"), carry=(".cache",), save_interval=20)
    for said in ("compiling", "compiled already"):
        with run.attempt() as attempt:
            attempt.saw("published step")
            attempt.process.terminate()
            assert attempt.end() == 75
        assert said in attempt.log()
    assert len(list((run.store / "carry").iterdir())) == 1


def test_without_a_mounted_staging_the_store_is_in_the_sandbox_and_htcondor_is_asked_to_move_it(tmp_path: Path) -> None:
    key, wandb = "not-a-key-" + "s" * 30, Wandb("arm", "plain-1", mode="offline", key_file="wandb.key")
    args = ("step_s=0.01", "print_env=1")
    run = Run(tmp_path, steps=150, args=args, staging="", checkpoint_exit=True, save_interval=50, wandb=wandb)
    scratch = tmp_path / "sandbox"
    scratch.mkdir()
    (scratch / "wandb.key").write_text(key)
    codes = []
    while not codes or codes[-1] == 85:
        with run.attempt(scratch=scratch) as attempt:
            codes.append(attempt.end())
            assert (scratch / "wandb.key").exists() == (codes[-1] == 85), "and there for the execution that follows"
        assert '"WANDB_API_KEY": "WANDB_API_KEY"' in attempt.log()
        assert "a key file is here" not in attempt.log(), "removed before each training"
    assert codes[-1] == 0 and 85 in codes and len(codes) < 8
    assert attempt.handover()["state"] == "complete"
    assert (scratch / "segue-store" / "checkpoints" / f"000000150.e{len(codes):06d}.tar").exists()
    assert attempt.handover()["redone_steps"] == 0


@pytest.mark.parametrize(("left_s", "code"), [(10.0, 0), (60.0, 85)])
def test_a_job_is_moved_and_started_again_only_where_that_leaves_time_for_a_step(
    tmp_path: Path, left_s: float, code: int
) -> None:
    moved_s = 20.0
    run = Run(
        tmp_path,
        steps=100_000,
        args=("step_s=0.005",),
        checkpoint_exit=True,
        save_interval=100,
        limit_s=2 * moved_s + left_s + 0.5,
    )
    scratch = tmp_path / "scratch"
    (scratch / ".segue").mkdir(parents=True)
    (scratch / ".segue" / "restarted").write_text(f"{time.time() - moved_s}")
    (scratch / "ad").write_text(f"JobCurrentStartDate = {time.time() - moved_s}\n")
    with run.attempt(scratch=scratch, environment={"_CONDOR_JOB_AD": str(scratch / "ad")}) as attempt:
        assert attempt.end() == code, attempt.log()
    assert attempt.handover()["step"] == 100
