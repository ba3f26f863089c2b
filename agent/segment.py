"""One attempt of one segment: open the run, train in one or more starts, publish, end in time.

Straight-line code over an event loop: each phase starts something and serves events until it is over or time, a signal or a newer
epoch ends it.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any

from agent import exit_codes
from agent.attempt import Attempt, End
from agent.doubts import doubt, due, looked, lying_there, stopped
from agent.errand import Errand, Outcome, Work, running
from agent.learning import Learning
from agent.loop import Timer, steady
from agent.opening import OpeningErrand, first_start, left_s, too_slow
from agent.pacing import cautious, from_carried, hopeful, landing_interval, last_step, restart_interval, save_interval
from agent.processes import kill_below
from agent.publishing import Publisher
from agent.recipes.base import Recipe, Start
from agent.staging import Opening, Staging
from agent.training import Files, Training

if TYPE_CHECKING:  # what the trainer's start need not wait for is imported after it
    from agent.companions import Companions
    from agent.failures import Restarts
    from agent.hang import Hang
    from agent.stopping import Stopping

_TICK_S = 0.25
_CALM_TICK_S = 1.0
_CALM_LIMIT_S = 600.0
_CALM_BEFORE_S = 60.0
_SILENT_S = 300.0


class Segment:
    """See above; ``whole`` runs it. ``opening`` is under way already. Raises SegueError for a broken job only."""

    def __init__(self, attempt: Attempt, recipe: Recipe, staging: Staging, opening: OpeningErrand) -> None:
        self.attempt = attempt
        self.job = attempt.job
        self.loop = attempt.loop
        self.recipe = recipe
        self.staging = staging
        self.opening = opening
        self.resume: tuple[int, str | None] = (0, None)
        self.training: Training | None = None
        self.trouble: Outcome | None = None
        self.moving_s = 0.0
        """How long HTCondor took to store the last checkpoint and to start the job again (exit 85)."""
        self.publisher = Publisher(
            self.loop,
            attempt.own / "snapshots",
            lambda finished, snapshot, report: self.staging.publish(
                attempt.claim,
                finished,
                snapshot,
                attempt.carried_pace(),
                attempt.handover.commit,
                self._metrics(),
                report,
            ),
            self.job.retention.every,
            self._committed,
            self._publish_trouble,
            _SILENT_S,
            lambda step: self.staging.withdraw(attempt.claim, step),
        )
        self.publisher.on_finished = self._finished
        self.learning = Learning(attempt, self.publisher)

    @cached_property
    def companions(self) -> Companions:
        """W&B, telemetry, kept logs."""
        from agent.companions import Companions

        return Companions(self.attempt, self.staging)

    @cached_property
    def stopping(self) -> Stopping:
        """Watches the time."""
        from agent.stopping import Stopping

        return Stopping(self.attempt, self.recipe, self.publisher, _TICK_S)

    @cached_property
    def restarts(self) -> Restarts:
        """Counts crashes."""
        from agent.failures import Restarts

        return Restarts()

    def whole(self) -> End:
        """The attempt from claim to end."""
        if self.job.wandb is not None:
            self.companions.take_secret()
        end = self._open()
        if end is not None:
            return end
        from agent.heartbeat import Heartbeat

        Heartbeat(self.attempt, self.staging)
        while True:
            end = self._train_once()
            if end is not None:
                return end
            self.attempt.goodput.enter("restore_s")

    def close(self, end: End) -> None:
        """What is left to do when the end is decided: nothing of the trainer lives on, and what was said is kept."""
        attempt = self.attempt
        if self.training is not None and not self.training.over:
            training = self.training
            training.kill()
            self.loop.run_until(lambda: training.over, time.monotonic() + 5.0)
        step = max(attempt.high_water, self.training.step if self.training else 0)
        self.companions.note(
            "end",
            step=step,
            state=end.state,
            reason=end.reason,
            restored=attempt.restored_step,
            fruitless=attempt.fruitless,
            pace=attempt.carried_pace() if attempt.experience.measured else {},
            goodput=attempt.handover.goodput,
        )
        if attempt.leaving_until is not None:
            until = attempt.leaving_until - 1.0
        else:
            until = max(attempt.deadline.at - 1.0, steady() + min(1.0, attempt.deadline.margin_s / 2))
        if not attempt.leave_now and end.state != "superseded":
            self.companions.last(until)
        if self.job.checkpoint_exit and attempt.epoch:
            self.staging.list_kept(attempt.epoch)
        if end.exit_code == exit_codes.CHECKPOINT:
            self.companions.restarts_here()

    # --- opening -------------------------------------------------------------------------------------------------

    def _start(self, last: int = 0, interval: int | None = None) -> Start:
        step, label = self.resume
        attempt = self.attempt
        return replace(
            first_start(attempt),
            resume_step=step,
            resume_label=label,
            last_step=last,
            save_interval=interval,
            epoch=attempt.epoch,
            start_number=attempt.handover.starts + 1,
        )

    def _errand(self, work: Work) -> Outcome | None:
        """Run an errand to its end; None when a signal came first."""
        outcomes: list[Outcome] = []
        errand = Errand(
            self.loop, work, outcomes.append, report=self.opening.told, silent_s=_SILENT_S, low_priority=False
        )
        self.loop.run_until(lambda: bool(outcomes) or self.attempt.leaving, time.monotonic() + left_s(self.attempt))
        if not outcomes:
            errand.cancel()
            return None if self.attempt.leaving else too_slow(self.attempt)
        return outcomes[0]

    def _open(self) -> End | None:
        """Claim, restore, unpack."""
        attempt = self.attempt
        outcome = self.opening.wait()
        if outcome is None or not outcome.ok:
            from agent import verdict

            return verdict.left_early(attempt) if outcome is None else self._cannot_open(outcome)
        opening = Opening(**outcome.value)
        attempt.experience = from_carried(self.job.pace, opening.pace)
        if attempt.epoch > attempt.segment + 1 and not self.job.checkpoint_exit:
            attempt.experience = replace(attempt.experience, interruptions=attempt.epoch - attempt.segment - 1)
        if self.job.checkpoint_exit and attempt.place.restarted:
            self.moving_s = attempt.place.transfer_s
        if opening.restored is not None:
            attempt.handover.restored = opening.restored
            attempt.handover.commit = opening.restored["commit"]
            attempt.restored_step = int(opening.restored["step"])
            attempt.learn(restore_s=opening.restore_s)
            self.resume = (attempt.restored_step, opening.label)
        attempt.handover.step = attempt.restored_step
        attempt.high_water = max(attempt.restored_step, opening.high_water)
        if opening.before.get("fruitless") and opening.before.get("restored") == attempt.restored_step:
            attempt.fruitless_before = True
            attempt.experience = from_carried(self.job.pace, {**opening.pace, **opening.before.get("pace", {})})
        self.publisher.committed_step = attempt.restored_step
        if attempt.restored_step >= self.job.steps:
            from agent import verdict

            return verdict.complete(attempt.restored_step, self.job.steps)
        return None

    def _cannot_open(self, outcome: Outcome) -> End:
        from agent import verdict

        if outcome.error == "Superseded":
            self.attempt.note_superseded(outcome)
            return verdict.superseded(self.attempt)
        published = self.publisher.committed_step > self.attempt.restored_step
        if outcome.error == "Hung" and published and not left_s(self.attempt):  # after a crash
            return self._time_used(outcome.message)
        return verdict.cannot_open(outcome)

    # --- one start of the trainer --------------------------------------------------------------------------------

    def _train_once(self) -> End | None:
        """Decide how far and how often to save, and run the trainer to its end; None: start again."""
        attempt = self.attempt
        resume = self.resume[0]
        first = attempt.handover.starts == 0
        reach = self._reach()
        if reach <= resume and not first:
            self._finish_publishing()
            return self._settled() or self._time_used("no further step fits before the limit")
        if reach <= resume and attempt.experience.measured:
            attempt.experience = hopeful(attempt.experience, self.job.pace)
            reach = self._reach()
        if reach <= resume and attempt.experience.measured:
            from agent import verdict

            return verdict.no_room_for_a_step(attempt)
        reach = max(resume + 1, self._reach(self._interval(max(resume + 1, reach))))
        interval = self._interval(reach)
        if self.job.checkpoint_exit:
            steps = restart_interval(attempt.experience, self.moving_s, attempt.limit_s, resume, reach)
            reach = min(reach, resume + (self.job.save_interval or steps))
        adaptive = (self.recipe.stops_on_request or not self.recipe.sets_last_step) and not self.job.checkpoint_exit
        start = self._start(self.job.steps if adaptive else reach, interval)
        attempt.handover.starts += 1
        attempt.goodput.enter("startup_s")
        attempt.say(
            f"start {attempt.handover.starts}: from step {resume}, about {reach} expected{f', saving every {interval} steps' if interval else ''}; "
            f"limit in {attempt.deadline.at - steady():.0f} s ({attempt.deadline.cause})"
        )
        self.publisher.watch(self.recipe, start, resume)
        if carried := (*self.job.carry, *self.recipe.carried(start)):
            self.companions.carry(carried)
        more = self.companions.environment(self.recipe.checkpoint_root(start)) if self.job.wandb is not None else {}
        training = Training(self.loop, attempt.log, self.recipe, start, Files(attempt.own), more, self._stepped)
        self.training = training
        from agent.hang import Hang, memory_kills

        hang = Hang(self.job, attempt.experience.pace, memory_kills())
        self.companions.started(training)
        tick = self.loop.every(_TICK_S, lambda: self._tick(training, hang, tick))
        attempt.on_leaving = lambda: self._tick(training, hang, tick)
        self.loop.run_until(lambda: training.over)
        tick.cancel()
        return self._after(training, hang)

    def _reach(self, interval: int | None = None) -> int:
        """The last step that the next start may hope for; the step it resumes from when none fits."""
        usable = self.attempt.deadline.usable
        return last_step(self.attempt.experience, self.resume[0], self.job.steps, steady(), usable, interval)

    def _interval(self, reach: int) -> int | None:
        """Steps between saves on the way to ``reach``; None where the trainer cannot be told."""
        if self.job.save_interval is not None or not self.recipe.sets_save_interval:
            return self.job.save_interval
        interval = save_interval(self.attempt.experience, self.resume[0], reach, self.attempt.limit_s)
        return interval if self.recipe.sets_last_step else landing_interval(interval, reach)

    def _tick(self, training: Training, hang: Hang, timer: Timer) -> None:
        """Everything that is looked at while the trainer runs: once a second, more often where seconds count."""
        if training.over:
            return
        attempt = self.attempt
        far = (
            attempt.deadline.usable - steady()
            > _CALM_BEFORE_S + attempt.experience.pace.publish_s + attempt.experience.pace.save_s
        )
        timer.every = _CALM_TICK_S if far and attempt.limit_s > _CALM_LIMIT_S and not attempt.leaving else _TICK_S
        looked(attempt, "progress", training.look)
        looked(attempt, "checkpoints", self.publisher.look)
        if not looked(attempt, "time", lambda: self.stopping.look(training)) and due(attempt):
            training.terminate(self.job.kill_grace_s)  # nobody else would
        looked(attempt, "what is odd", lambda: doubt(attempt, self.recipe, self.publisher, training))
        looked(attempt, "hangs", lambda: hang.look(training, attempt))

    def _stepped(self, step: int, loss: float | None) -> None:
        if self.training is not None:
            self.learning.stepped(self.training)

    def _finished(self, step: int) -> None:
        if self.training is not None and not self.training.over:
            self.learning.finished(self.training, step)

    def _after(self, training: Training, hang: Hang) -> End | None:
        """Decide: start again at once after a crash (None), or publish what is complete and end."""
        attempt = self.attempt
        self._book(training)
        whole = training.ended is not None and training.ended.exit_code == 0
        looked(attempt, "checkpoints", lambda: self.publisher.last_look(whole))
        self.loop.run_until(lambda: self.publisher.linked or attempt.leave_now)
        attempt.stepped |= max(training.step, self.publisher.finished_step) > training.start.resume_step
        end = self._never_found(training)
        if end is not None:
            return end
        if self._has_crashed(training):
            end = self._crashed(training, hang)
            if end is None and not attempt.leaving:
                return self._superseded()  # what waits is published beside the next start
            self._finish_publishing()
            return self._superseded() or end or self._settled()
        self._finish_publishing()
        attempt.goodput.enter("idle_s")
        end = self._settled()
        if end is not None:
            return end
        if self.stopping.out_of_time:
            return self._time_used(self.stopping.out_of_time)
        if training.stop_asked is not None:
            return self._time_used(stopped(training, self.publisher.finished_step))
        return self._go_on_if_worthwhile()

    def _never_found(self, training: Training) -> End | None:
        """The end of a run whose trainer saves, but nothing that is known as a finished checkpoint; no restart would change that."""
        from agent import verdict

        attempt, publisher = self.attempt, self.publisher
        assert training.ended is not None
        if publisher.in_place and not attempt.superseded:
            self._finish_publishing()
            return self._superseded() or verdict.in_place(attempt, publisher)
        planned = training.ended.exit_code == 0 or self.stopping.out_of_time
        if not planned or attempt.superseded or attempt.leaving or not publisher.idle:
            return None
        if max(publisher.finished_step, publisher.committed_step) > attempt.restored_step:
            return None
        return verdict.never_found(attempt, training, self.recipe.checkpoint_root(training.start))

    def _has_crashed(self, training: Training) -> bool:
        """Whether the trainer's end was none that was planned or asked for."""
        attempt, finished = self.attempt, self.publisher.finished_step
        assert training.ended is not None
        if attempt.superseded or attempt.leaving or self.stopping.out_of_time or finished >= self.job.steps:
            return False
        told = self.recipe.sets_last_step or training.step >= self.job.steps
        planned = finished > training.start.resume_step and (finished >= training.start.last_step or not told)
        return training.ended.exit_code != 0 or (training.stop_asked is None and not planned)

    def _superseded(self) -> End | None:
        """The end of an attempt that a newer one took the run from."""
        from agent import verdict

        if not self.attempt.superseded:
            return None
        self.publisher.halt()
        return verdict.superseded(self.attempt)

    def _settled(self) -> End | None:
        """When publishing is over: the ends that do not ask how the trainer ended."""
        from agent import verdict

        attempt, committed = self.attempt, self.publisher.committed_step
        if attempt.superseded:
            return self._superseded()
        if committed >= self.job.steps:
            self._publish_no_more()
            return verdict.complete(committed, self.job.steps)
        if attempt.leaving:
            self.publisher.halt()
            return verdict.left(attempt, committed)
        if self.publisher.finished_step > committed:
            self.publisher.halt()
            return verdict.unpublished(self.publisher.finished_step, self.trouble)
        return None

    def _publish_no_more(self) -> None:
        """The newest checkpoint is a commit; what waits behind it may be lost."""
        if late := self.publisher.late:
            steps = ", ".join(map(str, late))
            self.attempt.warn(
                f"not published in time: step {steps}, which retention.every would have kept; a later one is published"
            )
        self.publisher.halt()

    def _finish_publishing(self) -> None:
        """With no trainer: publish what is finished, as long as there is hope."""
        since = steady()
        self.publisher.hurry()
        tick = self.loop.every(_TICK_S, lambda: None)  # it is over by the time, too
        self.loop.run_until(lambda: self.stopping.publishes_over(since))
        tick.cancel()

    def _book(self, training: Training) -> None:
        """Times and steps of a start that is over."""
        attempt, ended = self.attempt, training.ended
        if ended is not None and ended.lost:
            kill_below(os.getpid(), frozenset(running))  # the keeper's orphans are ours now
        attempt.goodput.enter("tail_s", training.last_step_at)
        attempt.goodput.enter("publish_stall_s", training.ended_at)
        redone = max(0, min(training.step, attempt.high_water) - training.start.resume_step)
        attempt.handover.redone_steps += redone
        attempt.goodput.move("train_s", "redone_s", redone * attempt.experience.pace.step_s)
        attempt.high_water = max(attempt.high_water, training.step)
        last, over = training.last_step_at, training.ended_at
        if ended is not None and ended.exit_code == 0 and last is not None and over is not None:
            # from the last step to the trainer's end is a save and a bit more
            attempt.learn(save_s=cautious(attempt.experience.pace.save_s, max(0.0, over - last)))

    def _go_on_if_worthwhile(self) -> End | None:
        """The planned steps are done; go on when much of the time is left, because the pace was better than thought."""
        attempt, step = self.attempt, self.publisher.committed_step
        moved_s = self.moving_s + attempt.experience.pace.restore_s if self.job.checkpoint_exit else 0.0
        reach = last_step(attempt.experience, step, self.job.steps, steady() + moved_s, attempt.deadline.usable)
        if self.job.checkpoint_exit and reach > step:
            self._publish_no_more()
            reason = f"step {step} of {self.job.steps} is in {self.staging.root.name}/: HTCondor stores it and goes on"
            return End("running", exit_codes.CHECKPOINT, reason)
        gain = (reach - step) * attempt.experience.pace.step_s
        if gain > max(2 * attempt.experience.pace.startup_s, 0.1 * attempt.limit_s):
            return self._resume_locally()
        return self._time_used("its time is used")

    def _time_used(self, reason: str) -> End:
        from agent import verdict

        self._publish_no_more()
        made = self.training.step - self.attempt.restored_step if self.training else 0
        return verdict.time_used(
            self.attempt, self.publisher.committed_step, made, self.restarts.total, reason, self.publisher.root
        )

    def _crashed(self, training: Training, hang: Hang) -> End | None:
        from agent import verdict

        end = verdict.crashed(self.attempt, training, hang, self.restarts)
        if end is not None:
            return end
        if self.restarts.same >= 2:
            self._finish_publishing()
            if self.publisher.idle:
                return self._restore_again()
        return self._resume_locally()

    def _resume_locally(self) -> End | None:
        """The next start goes on from the newest checkpoint in scratch; from staging where that one vanished."""
        found = lying_there(self.recipe, self._start())
        if (found[-1].step if found else 0) < max(self.resume[0], self.publisher.committed_step):
            self._finish_publishing()  # its links may wait
            return self._superseded() or self._restore_again()
        if found:
            self.resume = (found[-1].step, found[-1].label)
        return None

    def _restore_again(self) -> End | None:
        """The next start goes on from the newest commit: what lies in scratch may be what the trainer stumbles over."""
        from agent import verdict

        root = self.recipe.checkpoint_root(self._start())
        outcome = self._errand(lambda report: self.staging.restore_afresh(root, report))
        if outcome is None:
            return verdict.left(self.attempt, self.publisher.committed_step)
        if not outcome.ok:
            return self._cannot_open(outcome)
        opening = Opening(**outcome.value)
        self.resume = (int(opening.restored["step"]), opening.label) if opening.restored else (0, None)
        return None

    # --- what the errands tell -----------------------------------------------------------------------------------

    def _metrics(self) -> dict[str, float]:
        loss = self.training.loss if self.training is not None else None
        return {"loss": loss} if loss is not None and isfinite(loss) else {}

    def _committed(self, commit: dict[str, Any]) -> None:
        attempt = self.attempt
        seconds = float(commit["seconds"])
        self.trouble = None
        attempt.learn(publish_s=cautious(attempt.experience.pace.publish_s, seconds))
        attempt.settled("staging")
        if int(commit["step"]) >= attempt.handover.step:  # not one that waited behind a newer one
            attempt.handover.step, attempt.handover.commit = int(commit["step"]), commit["commit"]
        told = {"step": commit["step"], "bytes": commit["bytes"]}
        attempt.handover.commits.append({**told, "publish_s": round(seconds, 3), "at": round(time.time(), 3)})
        self.companions.note("commit", **told, seconds=round(seconds, 3))
        attempt.say(f"published step {commit['step']} as {commit['commit']} in {seconds:.2f} s")
        for warning in commit.get("warnings", ()):
            attempt.warn(warning)

    def _publish_trouble(self, outcome: Outcome) -> None:
        if outcome.error == "Superseded":
            self.attempt.note_superseded(outcome)
        elif outcome.error != "Cancelled":
            self.trouble = outcome
            self.companions.note("unpublished", reason=outcome.message)
            self.attempt.warn(f"{outcome.message}; training goes on", key="staging")
