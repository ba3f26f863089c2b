"""One attempt of one segment: open the run, train in one or more starts, publish, end in time.

Straight-line code over an event loop: each phase starts something and serves events until it is over or time, a signal or a newer
epoch ends it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from agent import exit_codes
from agent.attempt import Attempt, End
from agent.errand import Errand, Outcome
from agent.failures import MOST_RESTARTS, Failure, Restarts, Verdict, classify
from agent.hang import Hang, memory_kills
from agent.pacing import cautious, from_carried, last_step, publish_need_s, save_interval, stop_time
from agent.publishing import Publisher
from agent.recipes import recipe as recipe_named
from agent.recipes.base import Start
from agent.staging import Opening, Staging
from agent.training import Files, Training

_TICK_S = 0.25
_BEAT_S = 60.0
_SILENT_S = 300.0
_LEAVE_RESERVE_S = 1.0


class Segment:
    """See above; ``whole`` runs it. Never raises for anything that the world outside does; SegueError for a broken job."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.job = attempt.job
        self.loop = attempt.loop
        self.recipe = recipe_named(attempt.job.recipe)
        self.staging = Staging(attempt.job, attempt.job.store_root, attempt.segment, attempt.place)
        self.restarts = Restarts()
        self.resume: tuple[int, str | None] = (0, None)
        self.more_environment: dict[str, str] = {}
        self.training: Training | None = None
        self.hang: Hang | None = None
        self.out_of_time = ""
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
        )

    def whole(self) -> End:
        """The attempt from claim to end."""
        attempt = self.attempt
        end = self._open()
        if end is not None:
            return end
        self.loop.every(_BEAT_S, self._beat)
        while True:
            end = self._begin_start()
            if end is not None:
                return end
            assert self.training is not None
            self.loop.run_until(lambda: self._tick_until_over())
            end = self._after_start(self.training)
            if end is not None:
                return end
            attempt.goodput.enter("restore_s")

    # --- opening -------------------------------------------------------------------------------------------------

    def _start(self, last: int = 0, interval: int | None = None) -> Start:
        attempt = self.attempt
        step, label = self.resume
        return Start(
            job=self.job,
            scratch=attempt.place.scratch,
            resume_step=step,
            resume_label=label,
            last_step=last,
            save_interval=interval,
            deadline=attempt.deadline.usable,
            epoch=attempt.epoch,
            start_number=attempt.handover.starts + 1,
            gpus=attempt.place.gpus,
        )

    def _errand(self, work: Any, report: Any = None) -> Outcome | None:
        """Run an errand to its end; None when a signal came first."""
        outcomes: list[Outcome] = []
        errand = Errand(self.loop, work, outcomes.append, report=report, silent_s=_SILENT_S, low_priority=False)
        self.loop.run_until(lambda: bool(outcomes) or self.attempt.leaving)
        if not outcomes:
            errand.cancel()
            return None
        return outcomes[0]

    def _open(self) -> End | None:
        """Claim, restore, unpack."""
        attempt = self.attempt
        root = self.recipe.checkpoint_root(self._start())
        outcome = self._errand(lambda report: self.staging.open(root, report), self._opened_so_far)
        if outcome is None:
            return self._left()
        if not outcome.ok:
            return self._cannot_open(outcome)
        opening = Opening(**outcome.value)
        attempt.experience = from_carried(self.job.pace, opening.pace)
        if attempt.epoch > attempt.segment + 1:
            attempt.experience = replace(attempt.experience, interruptions=attempt.epoch - attempt.segment - 1)
        if opening.restored is not None:
            attempt.handover.restored = opening.restored
            attempt.handover.commit = opening.restored["commit"]
            attempt.restored_step = int(opening.restored["step"])
            attempt.learn(restore_s=opening.restore_s)
            self.resume = (attempt.restored_step, opening.label)
        attempt.handover.step = attempt.restored_step
        attempt.high_water = max(attempt.restored_step, opening.high_water)
        self.publisher.committed_step = attempt.restored_step
        if attempt.restored_step >= self.job.steps:
            return End(
                "complete", exit_codes.OK, f"the run is complete: step {attempt.restored_step} of {self.job.steps}"
            )
        return None

    def _opened_so_far(self, report: dict[str, Any]) -> None:
        attempt = self.attempt
        if "claim" in report:
            attempt.claim = report["claim"]
            attempt.epoch = attempt.handover.epoch = int(report["epoch"])
            attempt.name_log()
            attempt.say(
                f"run {self.job.run}, segment {attempt.segment}, epoch {attempt.epoch} on {attempt.place.machine}"
            )
        if "warning" in report:
            attempt.warn(report["warning"])
        if "say" in report:
            attempt.say(report["say"])

    def _cannot_open(self, outcome: Outcome) -> End:
        if outcome.error in ("StoreUnavailable", "Hung", "Killed", "InputMissing", "OSError"):
            return End("temporary", exit_codes.TEMPORARY, outcome.message)
        if outcome.error == "Superseded":
            return End("superseded", exit_codes.OK, outcome.message)
        return End("failed", exit_codes.PERMANENT, outcome.message)

    # --- one start of the trainer --------------------------------------------------------------------------------

    def _begin_start(self) -> End | None:
        """Decide how far and how often to save, and start the trainer; an End when no step fits any more."""
        attempt = self.attempt
        resume = self.resume[0]
        reach = last_step(attempt.experience, resume, self.job.steps, time.time(), attempt.deadline.usable)
        first = attempt.handover.starts == 0
        if reach <= resume and (not first or attempt.experience.measured):
            if not first or self.publisher.committed_step > attempt.restored_step:
                return self._time_used("no further step fits before the limit")
            return End("failed", exit_codes.PERMANENT, self._too_short())
        reach = max(reach, resume + 1)
        last = self.job.steps if self.recipe.stops_on_request else reach
        interval = self.job.save_interval
        if interval is None and self.recipe.sets_save_interval:
            interval = save_interval(attempt.experience, resume, reach, attempt.limit_s)
        start = self._start(last, interval)
        attempt.handover.starts += 1
        attempt.goodput.enter("startup_s")
        attempt.say(
            f"start {attempt.handover.starts}: from step {resume} to {'at most ' if self.recipe.stops_on_request else ''}{last}"
            f"{f', saving every {interval} steps' if interval else ''}; limit in {attempt.deadline.at - time.time():.0f} s ({attempt.deadline.cause})"
        )
        self.publisher.watch(self.recipe, start, resume)
        self.hang = Hang(self.job, attempt.experience.pace, memory_kills())
        self.training = Training(
            self.loop, attempt.log, self.recipe, start, Files(attempt.own), self.more_environment, self._stepped
        )
        self.tick = self.loop.every(_TICK_S, self._tick)
        return None

    def _too_short(self) -> str:
        pace, attempt = self.attempt.experience.pace, self.attempt
        return (
            f"a segment of class {attempt.queue_class} ({attempt.limit_s:.0f} s) is shorter than start-up ({pace.startup_s:.1f} s), "
            f"one step ({pace.step_s:.2f} s), one save ({pace.save_s:.1f} s) and one publish ({pace.publish_s:.1f} s) with "
            f"the margin ({attempt.deadline.margin_s:.0f} s): choose a longer class"
        )

    def _stepped(self, step: int, loss: float | None) -> None:
        attempt = self.attempt
        training = self.training
        if training is None:
            return
        if training.clock.first is not None and training.clock.first[1] == step:
            attempt.goodput.enter("train_s")
            attempt.learn(startup_s=max(0.0, time.time() - training.began))
        seconds = training.clock.step_s()
        if seconds is not None and training.clock.settled:
            attempt.learn(step_s=seconds)
            if not attempt.experience.measured:
                attempt.experience = replace(attempt.experience, measured=True)

    def _tick_until_over(self) -> bool:
        assert self.training is not None
        return self.training.over

    def _tick(self) -> None:
        """Everything that is looked at several times a second while the trainer runs."""
        training = self.training
        if training is None or training.over:
            return
        training.look()
        self.publisher.look()
        self._mind_leaving(training)
        self._mind_time(training)
        if self.hang is not None:
            self.hang.look(training, self.attempt)

    def _mind_time(self, training: Training) -> None:
        """End the trainer so that what it saved can still be published."""
        attempt = self.attempt
        now = time.time()
        pace, usable = attempt.experience.pace, attempt.deadline.usable
        if self.recipe.stops_on_request and training.stop_asked is None and now >= stop_time(pace, usable) - _TICK_S:
            attempt.say(f"asking the trainer to stop after step {training.step + 1}: the time is used")
            training.ask_to_stop(training.step + 1)
        if training.stopped_by_agent:
            return
        if now >= usable - publish_need_s(pace):
            self.out_of_time = "the limit came before the trainer's last step"
        elif not self.recipe.stops_on_request and self._next_save_too_late(training, now):
            self.out_of_time = "the next checkpoint would not be published before the limit"
        if self.out_of_time:
            attempt.say(f"ending the trainer: {self.out_of_time}")
            training.terminate(min(self.job.kill_grace_s, max(1.0, attempt.deadline.margin_s / 2)))

    def _next_save_too_late(self, training: Training, now: float) -> bool:
        """Whether steps come more slowly than thought, so that only what is finished now can be kept."""
        interval = training.start.save_interval
        if not training.clock.settled or interval is None or self.publisher.unpublished:
            return False
        if self.publisher.finished_step <= training.start.resume_step:
            return False
        upcoming = min(training.start.last_step, (training.step // interval + 1) * interval)
        pace = self.attempt.experience.pace
        ready = now + (upcoming - training.step) * pace.step_s + pace.save_s
        return ready > self.attempt.deadline.usable - publish_need_s(pace) + self.attempt.deadline.margin_s / 4

    def _mind_leaving(self, training: Training) -> None:
        """After SIGTERM: a checkpoint of this very step when trainer and grace allow it, otherwise end at once."""
        attempt = self.attempt
        if attempt.superseded or attempt.leave_now:
            training.kill()
        elif attempt.leaving_until is not None and not training.stopped_by_agent:
            pace = attempt.experience.pace
            needed = 2 * (pace.step_s + pace.save_s + pace.publish_s) + _LEAVE_RESERVE_S
            left = attempt.leaving_until - time.time()
            if (
                training.stop_asked is None
                and self.recipe.stops_on_request
                and training.clock.first is not None
                and needed < left
            ):
                attempt.say(f"SIGTERM: saving at the next step, {left:.0f} s are left")
                training.ask_to_stop(training.step + 1)
            elif training.stop_asked is None or left < publish_need_s(pace) + _LEAVE_RESERVE_S:
                training.terminate(min(self.job.kill_grace_s, max(0.5, left / 3)))

    # --- after a start -------------------------------------------------------------------------------------------

    def _after_start(self, training: Training) -> End | None:
        """Publish what is complete, then decide: end, or start again (None)."""
        attempt = self.attempt
        self.tick.cancel()
        attempt.goodput.enter("tail_s", training.last_step_at)
        attempt.goodput.enter("publish_stall_s", training.ended_at)
        self.publisher.look(thoroughly=True)
        self._learn_save(training)
        redone = max(0, min(training.step, attempt.high_water) - training.start.resume_step)
        attempt.handover.redone_steps += redone
        attempt.goodput.move("train_s", "redone_s", redone * attempt.experience.pace.step_s)
        attempt.high_water = max(attempt.high_water, training.step)
        self.loop.run_until(self._published_or_hopeless)
        attempt.goodput.enter("idle_s")
        if attempt.superseded:
            self.publisher.halt()
            return End("superseded", exit_codes.OK, attempt.superseded)
        if attempt.leaving:
            self.publisher.halt()
            return self._left()
        if self.publisher.committed_step >= self.job.steps:
            return End(
                "complete",
                exit_codes.OK,
                f"the run is complete: step {self.publisher.committed_step} of {self.job.steps}",
            )
        if self.publisher.unpublished:
            self.publisher.halt()
            return self._unpublished()
        assert training.ended is not None
        if self.out_of_time:
            return self._time_used(self.out_of_time)
        done = training.ended.exit_code == 0
        if done and (training.stop_asked is not None or self.publisher.finished_step >= training.start.last_step):
            return self._time_used("its time is used")
        if done and not self.recipe.sets_last_step and self.publisher.finished_step > training.start.resume_step:
            self._resume_locally()
            return None
        return self._failed(training)

    def _learn_save(self, training: Training) -> None:
        """The last step's end until the trainer's end is a save and a bit more; slow ones are remembered longer."""
        ended = training.ended
        if (
            ended is not None
            and ended.exit_code == 0
            and training.last_step_at is not None
            and training.ended_at is not None
        ):
            seconds = max(0.0, training.ended_at - training.last_step_at)
            self.attempt.learn(save_s=cautious(self.attempt.experience.pace.save_s, seconds))

    def _published_or_hopeless(self) -> bool:
        """Whether waiting for publishes is over."""
        attempt = self.attempt
        now = time.time()
        if attempt.superseded or attempt.leave_now or self.publisher.idle:
            return True
        if attempt.leaving_until is not None and now > attempt.leaving_until - _LEAVE_RESERVE_S:
            return True
        return now > attempt.deadline.usable + attempt.deadline.margin_s / 2

    def _unpublished(self) -> End:
        trouble = (
            self.attempt.handover.warnings[-1] if self.attempt.handover.warnings else "staging did not answer in time"
        )
        full = "no space left" in trouble or "quota" in trouble
        reason = f"step {self.publisher.finished_step} could not be published: {trouble}"
        return End("failed", exit_codes.PERMANENT, reason) if full else End("temporary", exit_codes.TEMPORARY, reason)

    def _time_used(self, reason: str) -> End:
        attempt = self.attempt
        if self.publisher.committed_step <= attempt.restored_step:
            made = self.training.step - attempt.restored_step if self.training else 0
            text = f"no checkpoint came out of this segment ({made} steps were made): {self._too_short()}"
            return End("failed", exit_codes.PERMANENT, text)
        return End(
            "time-used",
            exit_codes.OK,
            f"step {self.publisher.committed_step} of {self.job.steps} is published; {reason}",
        )

    def _left(self) -> End:
        how = "SIGTERM came twice" if self.attempt.leave_now else "SIGTERM: evicted, held or removed"
        return End("temporary", exit_codes.TEMPORARY, f"{how}; step {self.publisher.committed_step} is published")

    def _failed(self, training: Training) -> End | None:
        """A crash: what it was, and whether to start again here."""
        attempt = self.attempt
        assert training.ended is not None and self.hang is not None
        lines = list(attempt.log.last)
        failure = classify(
            training.ended,
            lines,
            stepped=training.clock.first is not None,
            resumed=training.start.resume_step > 0,
            out_of_memory=memory_kills() > self.hang.memory_kills,
            hung=self.hang.hung,
        )
        if training.keeper.problem:
            failure = Failure(
                "not-found",
                Verdict.NEVER,
                f"the trainer cannot be started: {training.keeper.problem}; check python and args in run.toml",
            )
        self.restarts.note(training.step)
        attempt.handover.failure = {
            "class": failure.kind,
            "exit_code": training.ended.exit_code,
            "signal": training.ended.signal,
            "step": training.step,
        }
        attempt.handover.last_lines = lines
        where = f"step {training.step}"
        attempt.warn(f"{where}: {failure.kind}: {failure.sentence} ({training.ended.text})")
        if failure.verdict is Verdict.NEVER:
            return End("failed", exit_codes.PERMANENT, f"{failure.sentence} (at {where}, {training.ended.text})")
        if self.restarts.exhausted:
            return End(
                "failed",
                exit_codes.PERMANENT,
                f"no progress in {self.restarts.same} starts: the trainer ends after step {self.restarts.step}, in step "
                f"{self.restarts.step + 1}, each time ({failure.kind}): {failure.sentence}",
            )
        if failure.verdict is Verdict.ELSEWHERE or self.restarts.total >= MOST_RESTARTS:
            return End(
                "temporary",
                exit_codes.TEMPORARY,
                f"{failure.sentence} (at {where} on {attempt.place.machine}, {training.ended.text})",
            )
        if self.restarts.same >= 2:
            return self._restore_again()
        self._resume_locally()
        return None

    def _resume_locally(self) -> None:
        """The next start goes on from the newest checkpoint in scratch."""
        found = self.recipe.finished(self._start())
        if found:
            self.resume = (found[-1].step, found[-1].label)

    def _restore_again(self) -> End | None:
        """The next start goes on from the newest commit: what lies in scratch may be what the trainer stumbles over."""
        root = self.recipe.checkpoint_root(self._start())
        outcome = self._errand(
            lambda report: self.staging.restore_afresh(self.attempt.claim, root, report), self._opened_so_far
        )
        if outcome is None:
            return self._left()
        if not outcome.ok:
            return self._cannot_open(outcome)
        restored = outcome.value.get("restored")
        self.resume = (int(restored["step"]), outcome.value["label"]) if restored else (0, None)
        return None

    # --- what the errands tell -----------------------------------------------------------------------------------

    def _metrics(self) -> dict[str, float]:
        loss = self.training.loss if self.training is not None else None
        return {"loss": loss} if loss is not None else {}

    def _committed(self, commit: dict[str, Any]) -> None:
        attempt = self.attempt
        seconds = float(commit["seconds"])
        attempt.learn(publish_s=cautious(attempt.experience.pace.publish_s, seconds))
        attempt.settled("publish")
        attempt.handover.step = max(attempt.handover.step, int(commit["step"]))
        attempt.handover.commit = commit["commit"]
        attempt.handover.commits.append(
            {
                "step": commit["step"],
                "bytes": commit["bytes"],
                "publish_s": round(seconds, 3),
                "at": round(time.time(), 3),
            }
        )
        attempt.say(f"published step {commit['step']} as {commit['commit']} in {seconds:.2f} s")
        for warning in commit.get("warnings", ()):
            attempt.warn(warning)

    def _publish_trouble(self, outcome: Outcome) -> None:
        attempt = self.attempt
        if outcome.error == "Superseded":
            attempt.superseded = outcome.message
        elif outcome.error != "Cancelled":
            attempt.warn(f"{outcome.message}; training goes on", key="publish")

    def _beat(self) -> None:
        def done(outcome: Outcome) -> None:
            if outcome.error == "Superseded":
                self.attempt.superseded = outcome.message
            elif outcome.ok:
                self.attempt.settled("beat")
            elif outcome.error != "Cancelled" and "publish" not in self.attempt._warned:
                self.attempt.warn(f"{outcome.message}; training goes on", key="publish")

        if not self.attempt.superseded and not self.attempt.leaving:
            Errand(self.loop, lambda report: self.staging.beat(self.attempt.claim), done, silent_s=_SILENT_S)
