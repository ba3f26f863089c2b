"""The first errand of an attempt: claim, restore, unpack. It is begun before most of the agent is even imported, so that both overlap.

A staging that is away for a minute meets all jobs that begin in it, and their retries would be used up within seconds: so it is waited for.
"""

from __future__ import annotations

import errno
import time
from typing import Any

from agent.attempt import Attempt
from agent.errand import Errand, Outcome
from agent.loop import steady
from agent.recipes.base import Recipe, Start
from agent.staging import Staging

_SILENT_S = 300.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 15.0
_LONGEST_PATIENCE_S = 300.0
_SHORTEST_PATIENCE_S = 5.0
_PATIENCE_SHARE = 0.02
# These are the machine's or the user's, and do not pass.
_LASTING = (errno.EROFS, errno.EACCES, errno.EPERM)


def longest_wait_s(limit_s: float) -> float:
    """How long an attempt of ``limit_s`` seconds waits for a staging that is away when it begins."""
    return min(_LONGEST_PATIENCE_S, max(_SHORTEST_PATIENCE_S, _PATIENCE_SHARE * limit_s))


def may_pass(outcome: Outcome) -> bool:
    """Whether the opening failed because staging is out of reach just now."""
    return outcome.error == "StoreUnavailable" and outcome.value.get("errno") not in _LASTING


def left_s(attempt: Attempt) -> float:
    """Seconds in which a trainer could still do something."""
    return max(0.0, attempt.deadline.usable - steady())


def too_slow(attempt: Attempt) -> Outcome:
    """Of what is not over when they have passed."""
    spent = steady() - attempt.place.began
    text = f"claim, restore and inputs were not over after {spent:.0f} of {attempt.limit_s:.0f} s: staging is slow here"
    return Outcome({}, "Hung", text)


def first_start(attempt: Attempt) -> Start:
    """What is known of a start before the run is opened."""
    place = attempt.place
    return Start(
        job=attempt.job,
        scratch=place.scratch,
        resume_step=0,
        resume_label=None,
        last_step=0,
        save_interval=None,
        deadline=attempt.deadline.usable + time.time() - steady(),  # by the clock that the trainer reads
        epoch=attempt.epoch,
        gpus=place.gpus,
    )


class OpeningErrand:
    """Begun by its construction, and begun again by ``wait`` when staging is out of reach."""

    def __init__(self, attempt: Attempt, recipe: Recipe, staging: Staging) -> None:
        self._attempt = attempt
        self._recipe = recipe
        self._staging = staging
        self._outcome: Outcome | None = None
        self._begin()

    def _begin(self) -> None:
        self._outcome = None
        recipe, staging = self._recipe, self._staging
        start = first_start(self._attempt)
        root = recipe.checkpoint_root(start)
        self._errand = Errand(
            self._attempt.loop,
            lambda report: staging.open(root, report, lambda: recipe.finished(start)),
            self._over,
            report=self.told,
            silent_s=_SILENT_S,
            low_priority=False,
        )

    def _over(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def wait(self) -> Outcome | None:
        """What opening brought, in the end; None when a signal came first. At the limit HTCondor may hold the job: it ends before."""
        attempt = self._attempt
        until = min(steady() + longest_wait_s(attempt.limit_s), attempt.deadline.usable)
        pause = _FIRST_PAUSE_S
        while True:
            over = time.monotonic() + left_s(attempt)
            if not attempt.loop.run_until(lambda: self._outcome is not None or attempt.leaving, over):
                self._errand.cancel()
                return too_slow(attempt)
            outcome, left = self._outcome, until - steady()
            if attempt.leaving or outcome is None or left <= 0 or not may_pass(outcome):
                return outcome
            attempt.warn(f"{outcome.message}; it is tried again for up to {left:.0f} s", key="opening")
            if attempt.loop.run_until(lambda: attempt.leaving, time.monotonic() + min(pause, left)):
                return None
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            self._begin()

    def told(self, report: dict[str, Any]) -> None:
        """What such an errand reports on its way."""
        attempt = self._attempt
        if "claim" in report:
            attempt.claim = report["claim"]
            attempt.epoch = attempt.handover.epoch = int(report["epoch"])
            attempt.name_log()
            attempt.say(
                f"run {attempt.job.run}, segment {attempt.segment}, epoch {attempt.epoch} on {attempt.place.machine}"
            )
        if "newest" in report:  # for a handover that is written before it is restored
            attempt.handover.step, attempt.handover.commit = report["newest"]["step"], report["newest"]["commit"]
        if "wandb_unsent" in report:
            attempt.wandb_unsent = int(report["wandb_unsent"])
        if "warning" in report:
            attempt.warn(report["warning"])
        if "say" in report:
            attempt.say(report["say"])
