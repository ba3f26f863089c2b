"""The first errand of an attempt: claim, restore, unpack. It is begun before most of the agent is even imported, so that both overlap."""

from __future__ import annotations

from typing import Any

from agent.attempt import Attempt
from agent.errand import Errand, Outcome
from agent.recipes.base import Recipe, Start
from agent.staging import Staging

_SILENT_S = 300.0


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
        deadline=attempt.deadline.usable,
        epoch=attempt.epoch,
        gpus=place.gpus,
    )


class OpeningErrand:
    """Begun by its construction; ``outcome`` is set when it is over."""

    def __init__(self, attempt: Attempt, recipe: Recipe, staging: Staging) -> None:
        self._attempt = attempt
        self.outcome: Outcome | None = None
        start = first_start(attempt)
        root = recipe.checkpoint_root(start)
        Errand(
            attempt.loop,
            lambda report: staging.open(root, report, lambda: recipe.finished(start)),
            self._over,
            report=self.told,
            silent_s=_SILENT_S,
            low_priority=False,
        )

    def _over(self, outcome: Outcome) -> None:
        self.outcome = outcome

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
        if "warning" in report:
            attempt.warn(report["warning"])
        if "say" in report:
            attempt.say(report["say"])
