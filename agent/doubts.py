"""Warnings while the trainer runs, of what a segment would otherwise show only at its end: no save is found, or it did not resume.

Looking itself may fail, and that is a warning as well.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.attempt import Attempt
from agent.errors import SegueError
from agent.loop import steady
from agent.publishing import Publisher
from agent.recipes.base import Finished, Recipe, Start
from agent.training import Training

_DUE = 3


def looked(attempt: Attempt, what: str, look: Callable[[], None]) -> bool:
    """Whether a look of the tick went well. One that fails is said once and comes again: it is no reason to end a training."""
    try:
        look()
    except SegueError:  # a sentence for the user
        raise
    except Exception as error:
        attempt.warn(
            f"looking at the trainer's {what} failed ({type(error).__name__}: {error}); training goes on",
            key=f"look: {what}",
        )
        return False
    return True


def lying_there(recipe: Recipe, start: Start) -> list[Finished]:
    """The finished checkpoints in scratch; none where it cannot be looked at, so that one is restored."""
    try:
        return recipe.finished(start)
    except OSError:
        return []


def stopped(training: Training, finished: int) -> str:
    """Why a segment ends whose trainer was asked to stop, and what it did not do."""
    used, lost = "its time is used", training.step - finished
    if lost <= 0:
        return used
    return (
        f"{used}; the trainer ended when it was asked to and saved nothing after step {finished}, so {lost} steps are lost: let it save when "
        "SEGUE_STOP_FILE appears, or leave stops_on_request out of run.toml (docs/recipes.md)"
    )


def due(attempt: Attempt) -> bool:
    """Whether the trainer must end, however well it trains."""
    return bool(attempt.superseded) or attempt.leaving or steady() >= attempt.deadline.usable


def doubt(attempt: Attempt, recipe: Recipe, publisher: Publisher, training: Training) -> None:
    """Look once a tick; each warning is said once."""
    start = training.start
    if publisher.in_place and not training.stopped_by_agent:
        attempt.say(f"ending the trainer: {publisher.in_place}")
        training.terminate(attempt.job.kill_grace_s)
    made, interval = training.step - start.resume_step, start.save_interval
    if interval and training.clock.settled and made >= _DUE * interval and publisher.finished_step <= start.resume_step:
        from agent.verdict import lying

        root = recipe.checkpoint_root(start)
        attempt.warn(
            f"{made} steps were made and one checkpoint is due every {interval}, but none was found in {root}; there {lying(root)}: what recipe "
            f"{attempt.job.recipe} looks for is said in docs/recipes.md",
            key="no checkpoint found",
        )
    if training.behind is not None:
        attempt.began_anew = attempt.began_anew or (
            f"; it reported step {training.behind} though it was to resume from step {start.resume_step}"
        )
        attempt.warn(
            f"the trainer reports step {training.behind} though it was to resume from step {start.resume_step}: if it began anew, its program does "
            "not read where to resume (docs/recipes.md)",
            key="not resumed",
        )
