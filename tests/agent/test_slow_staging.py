"""Staging that is away or full at the wrong moment: no slot waits longer than it helps, and no work is lost that need not be."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.attempt import Attempt
from agent.config import BudgetRule, InputArchive, Pace
from agent.inputs import InputMissing, fetch
from agent.keeping import keep, ledger_of
from agent.opening import longest_wait_s
from agent.pacing import Experience
from agent.publishing import Publisher
from agent.staging import Staging
from agent.stopping import Stopping
from agent.store import StoreUnavailable
from agent.store.errors import RunGone
from tests.agent.plain_recipes import Plain
from tests.agent.support import ROOT, Run, state_after
from tests.agent.test_companions import place


def test_a_crash_while_staging_is_away_is_restarted_at_once_from_scratch(tmp_path: Path) -> None:
    # given: a checkpoint that cannot be published
    run = Run(tmp_path, steps=400, args=("step_s=0.01", "workers=1"), save_interval=20)
    with run.attempt() as attempt:
        attempt.saw("published step")
        away = run.staging.with_name("away")
        run.staging.rename(away)
        attempt.saw("training goes on")
        # when the trainer crashes
        _, trainer, _ = attempt.family()
        os.kill(trainer, signal.SIGKILL)
        # then it starts again while staging is still away, and what waits is published later
        attempt.saw("start 2")
        away.rename(run.staging)
        assert attempt.end() == 0, attempt.log()
    handover = attempt.handover()
    assert (handover["state"], handover["starts"]) == ("complete", 2)
    assert handover["redone_steps"] < 40
    assert run.final_state() == state_after(400)


def test_a_planned_end_without_room_in_staging_ends_soon_and_for_good(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=30, limit_s=600.0, budget=BudgetRule(bytes=1000, items=1000))
    with run.attempt() as attempt:
        assert attempt.end() == 78
    handover = attempt.handover()
    assert "step 30 could not be published" in handover["reason"]
    assert handover["state"] == "failed"


def test_a_budget_of_its_own_that_is_used_up_ends_the_run_after_two_further_checkpoints(tmp_path: Path) -> None:
    """Waiting mends it no more than training does: what is trained until the limit would be lost."""
    run = Run(
        tmp_path,
        steps=1_000_000,
        limit_s=40_000.0,
        args=("step_s=0.01",),
        save_interval=20,
        budget=BudgetRule(bytes=1000, items=1000),
    )
    with run.attempt() as attempt:
        assert attempt.end() == 78, attempt.log()
    handover = attempt.handover()
    assert handover["state"] == "failed" and "could not be published" in handover["reason"]
    assert "raise budget.gb to" in handover["reason"] and "segue prune" not in handover["reason"]
    assert "3 checkpoints in a row could not be published, and waiting does not help" in attempt.log()
    assert "raise budget.gb to" in ledger_of(run.store / "logs", 1).unpublished


def test_ledger_tells_what_cannot_be_published_until_it_is(tmp_path: Path) -> None:
    said: list[dict[str, object]] = []

    def told() -> str:
        source = tmp_path / "telemetry.jsonl"
        source.write_text("".join(f"{json.dumps(one)}\n" for one in said))
        keep(tmp_path / "logs", 1, {"jsonl": source}, 3)
        return ledger_of(tmp_path / "logs", 1).unpublished

    assert told() == ""
    said += [{"event": "unpublished", "reason": "no room"}, {"step": 12, "loss": 0.1}]
    assert told() == "no room"
    said.append({"event": "commit", "step": 20})
    assert told() == ""


def test_a_run_that_the_workflow_knows_is_not_begun_anew_in_an_empty_staging(tmp_path: Path) -> None:
    run, scratch = Run(tmp_path, steps=30), tmp_path / "scratch"
    scratch.mkdir()
    known = {"format": 1, "state": "pending", "known": "000000750.e000003.tar"}
    (scratch / "handover.json").write_text(json.dumps(known))
    run.store.parent.mkdir()
    with run.attempt(scratch=scratch) as attempt:
        assert attempt.end() == 78, attempt.log()
    handover = attempt.handover()
    assert handover["state"] == "failed" and handover["starts"] == 0
    assert f"{run.store}: has no commit, although this run had published step 750" in handover["reason"]
    assert "`segue submit` begins anew at step 0" in handover["reason"]
    # then nothing was made in its place, and the next job is told as well
    assert list(run.store.parent.iterdir()) == []
    assert (handover["step"], handover["commit"]) == (750, "000000750.e000003.tar")


def test_a_staging_that_is_empty_on_this_machine_leaves_the_run_to_another(tmp_path: Path) -> None:
    run, scratch = Run(tmp_path, steps=30, limit_s=15.0), tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "handover.json").write_text(json.dumps({"state": "pending", "known": "000000750.e000003.tar"}))
    with run.attempt(scratch=scratch) as attempt:
        assert attempt.end() == 75, attempt.log()
    assert "is staging mounted on this machine as elsewhere?" in attempt.handover()["reason"]
    assert list(run.staging.iterdir()) == []


def test_a_run_whose_commits_are_there_or_whose_staging_is_away_is_not_refused(tmp_path: Path) -> None:
    run, scratch = Run(tmp_path, steps=30, limit_s=20.0), tmp_path / "scratch"
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    scratch.mkdir()
    (scratch / "handover.json").write_text(json.dumps({"state": "pending", "known": "000000999.e000009.tar"}))
    with run.attempt(scratch=scratch) as attempt:
        assert attempt.end() == 0, attempt.log()
    away_from_the_start(run)
    (scratch / "handover.json").write_text(json.dumps({"state": "pending", "known": "000000999.e000009.tar"}))
    with run.attempt(scratch=scratch) as attempt:
        assert attempt.end() == 75, attempt.log()


def test_a_directory_that_is_removed_while_training_goes_on_is_said_and_ends_it_soon(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=1_000_000, limit_s=40_000.0, args=("step_s=0.01",), save_interval=20)
    with run.attempt() as attempt:
        attempt.saw("published step")
        run.store.rename(run.staging / "elsewhere")
        assert attempt.end() == 78, attempt.log()
    handover = attempt.handover()
    assert f"{run.store}: the run's directory is gone, while staging is there" in handover["reason"]
    assert "could not be published" in handover["reason"] and handover["step"] > 0
    assert not run.store.exists()


def test_a_directory_that_comes_back_takes_what_waits(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=400, args=("step_s=0.01",), save_interval=20)
    with run.attempt() as attempt:
        attempt.saw("published step")
        run.store.rename(run.staging / "elsewhere")
        attempt.saw("the run's directory is gone")
        (run.staging / "elsewhere").rename(run.store)
        assert attempt.end() == 0, attempt.log()
    assert attempt.handover()["state"] == "complete" and run.final_state() == state_after(400)


def test_no_start_goes_on_from_nothing_because_the_directory_was_removed(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=30)
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    staging = Staging(run.job, run.store, 0, place(tmp_path))
    run.store.rename(run.staging / "elsewhere")
    with pytest.raises(RunGone, match="nothing is made in its place"):
        staging.restore_afresh(tmp_path / "checkpoints", lambda report: None)
    away_from_the_start(run)
    assert staging.restore_afresh(tmp_path / "checkpoints", lambda report: None)["restored"] is None


@pytest.mark.parametrize(
    ("publish_s", "pausing", "trouble", "in_vain", "waited_s", "over"),
    [
        (1.0, True, "StoreUnavailable", (), 290.0, False),
        (1.0, True, "StoreUnavailable", (), 310.0, True),
        (200.0, True, "StoreUnavailable", (), 590.0, False),
        (200.0, True, "StoreUnavailable", (), 610.0, True),
        (1.0, True, "NoRoom", (), 30.0, True),
        (1.0, True, "NoRoom", (), 5.0, False),
        (1.0, True, "NoRoom", (100,), 1.0, True),
        (1.0, True, "RunGone", (100,), 1.0, True),
        (1.0, False, "", (), 5000.0, False),
    ],
)
def test_a_planned_end_waits_for_staging_for_a_bounded_time(
    publish_s: float, pausing: bool, trouble: str, in_vain: tuple[int, ...], waited_s: float, over: bool
) -> None:
    """A publish that is under way may take longer: what says nothing is killed elsewhere."""
    now = time.time()
    attempt = SimpleNamespace(
        superseded="",
        leave_now=False,
        leaving_until=None,
        job=SimpleNamespace(steps=100),
        deadline=SimpleNamespace(usable=now + 40_000, margin_s=300.0),
        experience=Experience(Pace(publish_s=publish_s)),
    )
    publisher: Any = SimpleNamespace(
        idle=False, pausing=pausing, trouble=trouble, committed_step=0, in_vain=set(in_vain)
    )
    stopping = Stopping(cast("Attempt", attempt), Plain(), cast("Publisher", publisher), 0.25)
    assert stopping.publishes_over(now - waited_s) is over


@pytest.mark.parametrize(("late", "over"), [([20, 40], False), ([], True)])
def test_a_complete_run_waits_for_what_retention_wants_of_it(late: list[int], over: bool) -> None:
    attempt: Any = SimpleNamespace(
        superseded="",
        leave_now=False,
        leaving_until=None,
        job=SimpleNamespace(steps=100),
        deadline=SimpleNamespace(usable=time.time() + 40_000, margin_s=300.0),
        experience=Experience(Pace(publish_s=1.0)),
    )
    publisher: Any = SimpleNamespace(idle=False, pausing=False, trouble="", committed_step=100, late=late)
    assert Stopping(attempt, Plain(), publisher, 0.25).publishes_over(time.time()) is over


@pytest.mark.parametrize("recipe", ["by-itself", "of-its-own"])
def test_a_trainer_that_goes_on_beyond_the_runs_steps_is_ended_when_the_run_is_complete(
    tmp_path: Path, recipe: str
) -> None:
    args = ("step_s=0.01", "beyond=100000", "every=20", "deaf=1")
    run = Run(tmp_path, steps=100, recipe=recipe, limit_s=600.0, args=args, save_interval=None)
    with run.attempt() as attempt:
        assert attempt.end() == 0, attempt.log()
    handover = attempt.handover()
    assert handover["state"] == "complete"
    assert handover["step"] >= 100 and handover["starts"] == 1


def away_from_the_start(run: Run) -> Path:
    away = run.staging.with_name("away")
    run.staging.rename(away)
    return away


def test_staging_that_is_away_when_the_job_begins_is_waited_for(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=30, limit_s=600.0)
    away = away_from_the_start(run)
    with run.attempt() as attempt:
        attempt.saw("it is tried again")
        away.rename(run.staging)
        assert attempt.end() == 0, attempt.log()
    handover = attempt.handover()
    assert (handover["state"], handover["epoch"]) == ("complete", 1)
    assert len([line for line in handover["warnings"] if "tried again" in line]) == 1


def test_an_input_that_was_never_staged_is_not_waited_for(tmp_path: Path) -> None:
    archive = InputArchive("data", "data-0.tar", "0" * 64, 1, "inputs/data")
    run = Run(tmp_path, steps=30, limit_s=600.0, inputs=(archive,))
    with run.attempt() as attempt:
        assert attempt.end() == 75
    assert "is not in staging" in attempt.handover()["reason"]
    assert attempt.handover()["warnings"] == []


def test_an_input_is_not_called_missing_when_staging_has_gone_away(tmp_path: Path) -> None:
    run = Run(tmp_path, inputs=(InputArchive("data", "data-0.tar", "0" * 64, 1, "inputs/data"),))
    run.store.mkdir(parents=True)
    with pytest.raises(InputMissing):
        fetch(run.job, tmp_path)
    away_from_the_start(run)
    with pytest.raises(StoreUnavailable, match="staging has gone away"):
        fetch(run.job, tmp_path)


def test_sigterm_ends_the_wait_for_staging_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, limit_s=40_000.0)
    away_from_the_start(run)
    with run.attempt() as attempt:
        attempt.saw("it is tried again")
        attempt.process.terminate()
        assert attempt.end() == 75
    assert "told to leave" in attempt.handover()["reason"]


def test_a_staging_that_stays_away_ends_the_attempt_when_its_patience_is_used(tmp_path: Path) -> None:
    run = Run(tmp_path, limit_s=20.0)
    away_from_the_start(run)
    with run.attempt() as attempt:
        assert attempt.end() == 75
    assert str(run.staging) in attempt.handover()["reason"]
    assert not run.staging.exists()
    assert longest_wait_s(43_200.0) == 300.0
    assert longest_wait_s(3_600.0) == 72.0


@pytest.mark.parametrize(("slow", "args"), [("open", ()), ("restore_afresh", ("crash_at=5",))])
def test_a_restore_that_takes_longer_than_the_class_ends_before_the_limit(
    tmp_path: Path, slow: str, args: tuple[str, ...]
) -> None:
    """HTCondor would hold the job there."""
    run = Run(tmp_path, limit_s=10.0, args=args, save_interval=50)
    breaking = f"import agent.staging, time\nagent.staging.Staging.{slow} = lambda *given: time.sleep(1000)\n"
    (tmp_path / "sitecustomize.py").write_text(breaking)
    with run.attempt(environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as attempt:
        assert attempt.end() == 75, attempt.log()
    assert "staging is slow here" in attempt.handover()["reason"]
    assert attempt.handover()["ended"] - attempt.handover()["began"] < 10.0


def test_a_segment_that_published_has_used_its_time_when_no_restore_fits_any_more(tmp_path: Path) -> None:
    run = Run(tmp_path, limit_s=5.0, args=("crash_at=55",), save_interval=50)
    breaking = "import agent.staging, time\nagent.staging.Staging.restore_afresh = lambda *given: time.sleep(1000)\n"
    (tmp_path / "sitecustomize.py").write_text(breaking)
    with run.attempt(environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as attempt:
        assert attempt.end() == 0, attempt.log()
    assert attempt.handover()["state"] == "time-used"
    assert "step 50 of 100 is published" in attempt.handover()["reason"]
