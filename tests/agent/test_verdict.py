"""The judgement on a crash: this program, this machine, or never again."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.attempt import End
from agent.config import Wandb
from agent.exit_codes import PERMANENT, TEMPORARY
from agent.failures import Restarts
from agent.keeper import Ended
from agent.verdict import crashed, time_used

BOOM = "RuntimeError: boom"
NO_MODULE = "ModuleNotFoundError: No module named 'jax'"
NO_FILE = "FileNotFoundError: [Errno 2] No such file or directory: 'cvmfs/x'"


def judged(
    line: str = "",
    *,
    restored: int = 0,
    stepped: bool = False,
    starts: int = 1,
    trouble: int = 0,
    step: int = 20,
    wandb: Wandb | None = None,
) -> End | None:
    """The end after ``starts`` crashes with this line; ``restored``: the commit that the attempt began with, ``stepped``: it made a step,
    ``trouble``: why the trainer cannot be executed, ``step``: where it began and ended, ``wandb``: the job's.
    """
    attempt: Any = SimpleNamespace(
        restored_step=restored,
        stepped=stepped,
        job=SimpleNamespace(wandb=wandb),
        wandb_failed=False,
        began_anew="",
        log=SimpleNamespace(last_lines=lambda: [line]),
        handover=SimpleNamespace(starts=1),
        place=SimpleNamespace(machine="m"),
        warn=lambda text: None,
    )
    training: Any = SimpleNamespace(
        ended=Ended(1, None),
        keeper=SimpleNamespace(problem=os.strerror(trouble) if trouble else "", problem_errno=trouble),
        clock=SimpleNamespace(first=None),
        start=SimpleNamespace(resume_step=step),
        step=step,
    )
    hang: Any = SimpleNamespace(memory_kills=1 << 40, hung=False)
    restarts, end = Restarts(), None
    for _ in range(starts):
        assert end is None
        end = crashed(attempt, training, hang, restarts)
    return end


def test_three_starts_without_a_step_end_the_run_only_where_it_made_steps() -> None:
    assert judged(BOOM, restored=20, starts=2) is None
    here = judged(BOOM, restored=20, stepped=True, starts=3)
    assert here is not None and here.exit_code == PERMANENT and "in step 21" in here.reason
    elsewhere = judged(BOOM, restored=20, starts=3)
    assert elsewhere is not None and elsewhere.exit_code == TEMPORARY
    assert "no start on m made a step" in elsewhere.reason and "step 20" in elsewhere.reason
    own = judged(BOOM, starts=3)  # the checkpoint is this attempt's own
    assert own is not None and own.exit_code == PERMANENT


def test_a_new_run_that_makes_no_step_ends_after_three_starts_and_says_so() -> None:
    assert judged(BOOM, step=0, starts=2) is None
    end = judged(BOOM, step=0, starts=3)
    assert end is not None and end.exit_code == PERMANENT
    assert "no progress in 3 starts: the trainer ends before its first step each time (start)" in end.reason
    missing = judged(NO_MODULE, step=0)
    assert missing is not None and missing.exit_code == PERMANENT


def test_a_start_that_wandb_ended_is_not_counted_once_because_the_next_one_is_offline() -> None:
    line = "wandb.errors.errors.CommError: Run initialization has timed out after 90.0 sec."
    assert judged(line, step=0, starts=3, wandb=Wandb("arm", "arm-1")) is None
    end = judged(line, step=0, starts=4, wandb=Wandb("arm", "arm-1"))
    assert end is not None and end.exit_code == PERMANENT
    own = judged(line, step=0, starts=3)  # the trainer's own affair
    assert own is not None and own.exit_code == PERMANENT


def fruitless(root: Path, made: int, step_s: float, **fields: Any) -> End:
    """The end of a segment of 30 s with this pace that made so many steps and left ``root``."""
    attempt: Any = SimpleNamespace(
        job=SimpleNamespace(recipe="command", steps=1000),
        restored_step=0,
        began_anew="",
        fruitless_before=False,
        queue_class="short",
        limit_s=30.0,
        experience=SimpleNamespace(
            pace=SimpleNamespace(startup_s=0.2, step_s=step_s, save_s=0.5, publish_s=1.0), measured=True
        ),
        deadline=SimpleNamespace(margin_s=2.0),
    )
    vars(attempt).update(fields)
    return time_used(attempt, 0, made, fields.get("crashes", 0), "no further step fits", root)


def test_a_segment_without_a_checkpoint_is_called_too_short_only_when_it_is(tmp_path: Path) -> None:
    nothing = fruitless(tmp_path, 177, 0.15)
    assert nothing.exit_code == TEMPORARY and "is shorter than" not in nothing.reason
    assert f"the trainer made 177 steps and finished no checkpoint in {tmp_path}; there is nothing" in nothing.reason
    (tmp_path / "step-20").mkdir()
    found = fruitless(tmp_path, 0, 0.15, fruitless_before=True)
    assert found.exit_code == PERMANENT and "the trainer reported no step" in found.reason
    assert "there are: step-20" in found.reason and "trainer.options" in found.reason
    short = fruitless(tmp_path, 0, 40.0)
    assert "is shorter than start-up (0.2 s), one step (40.00 s)" in short.reason


def test_a_trainer_that_began_anew_is_in_the_reason_of_the_end(tmp_path: Path) -> None:
    anew = "; it reported step 1 though it was to resume from step 180"
    for crashes in (0, 2):
        assert anew in fruitless(tmp_path, 5, 0.15, began_anew=anew, crashes=crashes).reason


@pytest.mark.parametrize("line", [NO_MODULE, NO_FILE])
def test_what_only_this_machine_lacks_is_tried_elsewhere_at_once(line: str) -> None:
    end = judged(line, restored=20)
    assert end is not None and end.exit_code == TEMPORARY
    assert judged(line, restored=20, stepped=True) is None  # it was here a moment ago
    assert judged(line, restored=20, stepped=True, starts=3) == judged(line, stepped=True, starts=3)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, PERMANENT),
        (errno.EACCES, PERMANENT),
        (errno.ENOEXEC, PERMANENT),
        (errno.EIO, TEMPORARY),
        (errno.ESTALE, TEMPORARY),
        (errno.EAGAIN, TEMPORARY),
    ],
)
def test_a_program_that_a_machine_cannot_read_or_start_is_tried_elsewhere(number: int, code: int) -> None:
    end = judged(trouble=number)
    assert end is not None and end.exit_code == code and os.strerror(number) in end.reason
    resumed = judged(trouble=number, restored=20)
    assert resumed is not None and resumed.exit_code == TEMPORARY
