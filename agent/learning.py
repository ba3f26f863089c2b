"""What an attempt learns of its trainer's pace from reports and checkpoints: the next start, and the next segment, are planned with it."""

from __future__ import annotations

from dataclasses import replace

from agent.attempt import Attempt
from agent.loop import steady
from agent.pacing import cautious
from agent.publishing import Publisher
from agent.training import Training


class Learning:
    """Told of each step and each finished checkpoint; what it finds stands in ``attempt.experience``."""

    def __init__(self, attempt: Attempt, publisher: Publisher) -> None:
        self._attempt = attempt
        self._publisher = publisher
        self._first_step_at: float | None = None

    def stepped(self, training: Training) -> None:
        """The trainer reported a step, or a checkpoint did in its place."""
        attempt = self._attempt
        if training.first_step_at != self._first_step_at:  # again when what was taken for it was none
            self._first_step_at = training.first_step_at
            attempt.goodput.enter("train_s", training.began if training.silent else training.first_step_at)
            if not training.silent:
                attempt.learn(startup_s=max(0.0, (training.first_step_at or steady()) - training.began))
        self._pace(training)

    def finished(self, training: Training, step: int) -> None:
        """The trainer has finished a checkpoint."""
        training.sign()
        took = training.saved(step)
        if took is not None:
            self._attempt.learn(save_s=cautious(self._attempt.experience.pace.save_s, took))
        self._pace(training)

    def _pace(self, training: Training) -> None:
        seconds, first = training.clock.step_s(), training.clock.first
        if seconds is None or not training.clock.settled:
            return
        spacing = training.start.save_interval or self._publisher.spacing
        self._attempt.learn(step_s=seconds + (training.clock.stall_s / spacing if spacing else 0.0))
        self._attempt.experience = replace(self._attempt.experience, measured=True)
        if training.silent and first is not None:  # its first report came after many steps
            trained_s = (first[1] - training.start.resume_step) * seconds
            self._attempt.learn(startup_s=max(0.0, first[0] - training.began - trained_s))
