"""When and how the trainer is told to stop: in time for its last checkpoint, on SIGTERM, or because a newer attempt owns the run.

Where the trainer looks at a stop file it is asked after the last step that fits; elsewhere it was told its last step at the start, and is
ended early only when steps come more slowly than thought. The planned end of a segment redoes nothing.
"""

from __future__ import annotations

import time

from agent.attempt import Attempt
from agent.loop import steady
from agent.pacing import publish_need_s, stop_time
from agent.publishing import Publisher
from agent.recipes.base import Recipe
from agent.training import Training

_LEAVE_RESERVE_S = 1.0
_PATIENCE_S = 300.0
_NO_ROOM_PATIENCE_S = 10.0
_WRAP_UP_S = 60.0
_MOST_IN_VAIN = 2
"""Further checkpoints that are trained for, in case a person makes room or brings the directory back, when waiting alone mends nothing."""
_SAVE_PATIENCE_S = 60.0


class Stopping:
    """Looked at several times a second. ``out_of_time`` says why the trainer was ended before it was done, empty otherwise."""

    def __init__(self, attempt: Attempt, recipe: Recipe, publisher: Publisher, tick_s: float) -> None:
        self._attempt = attempt
        self._recipe = recipe
        self._publisher = publisher
        self._tick_s = tick_s
        self._complete_at: float | None = None
        self._save_began: tuple[int, int, float] | None = None
        self._awaited: int | None = None
        self.out_of_time = ""

    def look(self, training: Training) -> None:
        """Stop the trainer if it is time to."""
        upcoming = self._next_saved(training)
        if upcoming is not None and training.step >= upcoming:
            self._save_under_way(training, upcoming)  # the time counts from here on
        self._mind_leaving(training)
        if not training.stopped_by_agent:
            self._mind_completion(training)
        if not training.stopped_by_agent:
            self._mind_what_is_in_vain(training)
        if not training.stopped_by_agent:
            self._mind_time(training)

    def _mind_completion(self, training: Training) -> None:
        """The run's last step is published: a trainer that goes beyond it is ended, one that is there has a minute for its own end."""
        steps, publisher = self._attempt.job.steps, self._publisher
        if publisher.committed_step < steps:
            return
        self._complete_at = self._complete_at or time.monotonic()
        beyond = max(training.step, publisher.finished_step) > steps
        if beyond or time.monotonic() - self._complete_at > _WRAP_UP_S:
            self._attempt.say(
                f"ending the trainer: step {publisher.committed_step} is published, and the run has {steps} steps"
            )
            training.terminate(self._attempt.job.kill_grace_s)

    def _mind_what_is_in_vain(self, training: Training) -> None:
        """What cannot be published whatever time passes must not cost a slot of many hours."""
        refused = len(self._publisher.in_vain)
        if refused > _MOST_IN_VAIN:
            self.out_of_time = f"{refused} checkpoints in a row could not be published, and waiting does not help"
            self._attempt.say(f"ending the trainer: {self.out_of_time}")
            training.terminate(self._attempt.job.kill_grace_s)

    def _mind_time(self, training: Training) -> None:
        attempt = self._attempt
        now = steady()
        pace, usable = attempt.experience.pace, attempt.deadline.usable
        if (
            self._recipe.stops_on_request
            and training.stop_asked is None
            and now >= stop_time(pace, usable) - self._tick_s
        ):
            attempt.say(f"asking the trainer to stop after step {training.step + 1}: the time is used")
            training.ask_to_stop(training.step + 1)
        ready = None if self._recipe.stops_on_request else self._next_save(training, now)
        # A save that is on its way may take a little of the margin: to wait for it and then not to would lose what was made since the last.
        latest = usable - publish_need_s(pace) + (attempt.deadline.margin_s / 4 if ready is not None else 0.0)
        if now >= latest:
            self.out_of_time = "the limit came before the trainer's last step"
        elif ready is not None and ready > latest:
            self.out_of_time = "the next checkpoint would not be published before the limit"
        if self.out_of_time:
            attempt.say(f"ending the trainer: {self.out_of_time}")
            training.terminate(min(attempt.job.kill_grace_s, max(1.0, attempt.deadline.margin_s / 2)))

    def _next_save(self, training: Training, now: float) -> float | None:
        """When the next checkpoint will be finished, in Unix seconds; None while that is unknown."""
        publisher, pace = self._publisher, self._attempt.experience.pace
        if not training.clock.settled or publisher.finished_step <= training.start.resume_step:
            return None
        upcoming = self._next_saved(training)
        if upcoming is None:
            return None
        if training.step >= upcoming:
            began = self._save_under_way(training, upcoming)
        else:
            step_s = training.clock.step_s() or pace.step_s
            began = (training.last_step_at or now) + (upcoming - training.step) * step_s
        return max(now, began + pace.save_s)

    def _next_saved(self, training: Training) -> int | None:
        """The step of the next checkpoint that is not finished yet, which the trainer may be saving by now; None when nothing tells it."""
        publisher = self._publisher
        upcoming = self._recipe.next_save(training.start, publisher.finished_step)
        if upcoming is None and publisher.spacing is not None:
            upcoming = publisher.finished_step + publisher.spacing
        if upcoming is None or not self._recipe.sets_last_step:
            return upcoming
        return min(training.start.last_step, upcoming)

    def _save_under_way(self, training: Training, upcoming: int) -> float:
        """When the trainer, which has done that step, began to save it."""
        what = (training.start.start_number, upcoming)
        if self._save_began is None or self._save_began[:2] != what:
            self._save_began = (*what, training.last_step_at or steady())
        return self._save_began[2]

    def _worth_waiting_for(self, training: Training, left: float) -> bool:
        """Whether a save is under way that will be over, and published, in the ``left`` seconds before the job must be gone."""
        if self._awaited is None:  # the save of this moment, none that begins later
            upcoming = self._next_saved(training)
            self._awaited = upcoming if upcoming is not None and training.step >= upcoming else 0
        if self._publisher.finished_step >= self._awaited:
            return False
        pace = self._attempt.experience.pace
        taken = steady() - self._save_under_way(training, self._awaited)
        if taken > 3 * pace.save_s + _SAVE_PATIENCE_S:
            return False  # nobody knows whether there is one
        return max(0.0, pace.save_s - taken) + publish_need_s(pace) + _LEAVE_RESERVE_S < left

    def _mind_leaving(self, training: Training) -> None:
        """After SIGTERM: a checkpoint of this very step when trainer and grace allow it, otherwise the end at once."""
        attempt = self._attempt
        if attempt.superseded or attempt.leave_now:
            training.kill()
        elif attempt.leaving_until is not None and not training.stopped_by_agent:
            pace = attempt.experience.pace
            needed = 2 * (pace.step_s + pace.save_s + pace.publish_s) + _LEAVE_RESERVE_S
            left = attempt.leaving_until - steady()
            can_save = self._recipe.stops_on_request and training.clock.first is not None
            if training.stop_asked is None and can_save and needed < left:
                attempt.say(f"saving at the next step: {left:.0f} s are left, about {needed:.1f} s are needed")
                training.ask_to_stop(training.step + 1)
            elif training.stop_asked is None and self._worth_waiting_for(training, left):
                return
            elif (
                training.stop_asked is None
                or self._deaf(training, needed)
                or left < publish_need_s(pace) + _LEAVE_RESERVE_S
            ):
                training.terminate(min(attempt.job.kill_grace_s, max(0.5, left / 3)))

    def _deaf(self, training: Training, needed: float) -> bool:
        """Whether a trainer that was asked to stop has had more than enough time for it."""
        return training.stop_asked_at is not None and time.monotonic() - training.stop_asked_at > 2 * needed

    def publishes_over(self, since: float) -> bool:
        """Whether waiting for publishes, with no trainer since that Unix time, is over: all done, or no hope.

        A publish that is under way may take until the limit; a staging that fails it is given some minutes, not a slot of many hours.
        """
        attempt, publisher = self._attempt, self._publisher
        now = steady()
        if attempt.superseded or attempt.leave_now or publisher.idle:
            return True
        if publisher.committed_step >= attempt.job.steps and not publisher.late:
            return True
        if attempt.leaving_until is not None and now > attempt.leaving_until - _LEAVE_RESERVE_S:
            return True
        patience = max(_PATIENCE_S, 3 * attempt.experience.pace.publish_s)
        if publisher.trouble == "NoRoom":
            patience = 0.0 if publisher.in_vain else _NO_ROOM_PATIENCE_S
        elif publisher.trouble == "RunGone":
            patience = 0.0
        if publisher.pausing and now > since + patience:
            return True
        return now > attempt.deadline.usable + attempt.deadline.margin_s / 2
