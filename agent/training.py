"""One start of the trainer: from its command line to the last of its processes, with everything it says on the way.

The trainer is asked to stop in its own way (its last step, the stop file), then by SIGTERM to its process group, then by SIGKILL to
all below the keeper. Nothing here knows of staging.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from agent.keeper import Ended, Keeper
from agent.loop import Loop, Timer, steady
from agent.output import Log, Output
from agent.pacing import StepClock
from agent.recipes.base import Recipe, Start

STOP_FILE = "stop"
PROGRESS_FILE = "progress.jsonl"
_STOP_ROOM = b"\n" * 32
_TAIL = 1 << 16
_PAUSE_S = 1.0


@dataclass(frozen=True)
class Files:
    """The agent's own directory in scratch and the names in it that a trainer is told."""

    directory: Path

    @property
    def stop(self) -> Path:
        return self.directory / STOP_FILE

    @property
    def asking(self) -> Path:
        """The stop file before it has its name: made at the start, because the disk may be full when it is needed."""
        return self.directory / f"{STOP_FILE}.tmp"

    @property
    def progress(self) -> Path:
        return self.directory / PROGRESS_FILE


def environment(start: Start, recipe: Recipe, files: Files, more: Mapping[str, str]) -> dict[str, str]:
    """The trainer's environment: ours, the job's, SEGUE_*, the recipe's, and ``more`` (W&B) on top."""
    told = {
        "HOME": str(start.scratch),
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        "SEGUE_CHECKPOINT_DIR": str(recipe.checkpoint_root(start)),
        "SEGUE_RESUME_STEP": str(start.resume_step),
        "SEGUE_LAST_STEP": str(start.last_step),
        "SEGUE_STEPS": str(start.job.steps),
        "SEGUE_DEADLINE": f"{start.deadline:.3f}",
        "SEGUE_STOP_FILE": str(files.stop),
        "SEGUE_PROGRESS_FILE": str(files.progress),
    }
    if start.save_interval is not None:
        told["SEGUE_SAVE_INTERVAL"] = str(start.save_interval)
    return {**os.environ, **told, **dict(start.job.env), **recipe.environment(start), **more}


class Training:
    """``over`` is true once the trainer and all that it started are gone; ``ended`` says how.

    ``on_step`` is called with each new step and its loss, ``on_sign`` with anything else that the trainer says.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        recipe: Recipe,
        start: Start,
        files: Files,
        more_environment: Mapping[str, str],
        on_step: Callable[[int, float | None], None],
    ) -> None:
        if start.job.wandb is not None:
            from agent.wandb_run import as_told

            start = as_told(start, more_environment)
        self._loop = loop
        self._log = log
        self.recipe = recipe
        self._files = files
        self._on_step = on_step
        self._progress_place = 0
        self._progress_seen: tuple[int, int, int] | None = None
        self._looked_at = steady()
        self._said: int | None = None
        self._asleep_s = steady() - loop.awake()
        self._grace: Timer | None = None
        self.start = start
        self.clock = StepClock(start.resume_step)
        self.began = steady()
        self.last_step_at: float | None = None
        self.last_sign = loop.awake()
        """By the loop's clock of being awake: a suspended trainer is not silent."""
        self.last_line = self.last_sign
        """The same clock at its last line of any kind."""
        self.reports = 0
        self.gap_s = 0.0
        """The longest time between two reports of this start; the time to the first one as long as there is no second."""
        self.reports_every = recipe.reports_every(start)
        self._reported = self.last_sign
        self.step = start.resume_step
        self.silent = False
        """No line had told a step when the first checkpoint did."""
        self.loss: float | None = None
        self.behind: int | None = None
        """A first step that this start reported although it was to resume from a later one."""
        self.ended: Ended | None = None
        self.ended_at: float | None = None
        self.stop_asked: int | None = None
        self.stop_asked_at: float | None = None
        self.stopped_by_agent = False
        log.begin(self.began)
        files.directory.mkdir(parents=True, exist_ok=True)
        files.stop.unlink(missing_ok=True)
        files.progress.unlink(missing_ok=True)
        with suppress(OSError):
            files.asking.write_bytes(_STOP_ROOM)
        recipe.prepare(start)
        recipe.checkpoint_root(start).mkdir(parents=True, exist_ok=True)
        told = environment(start, recipe, files, more_environment)
        log.hide(told.get("WANDB_API_KEY", ""))
        self._output = Output(loop, log, self._line)
        self.keeper = Keeper(
            loop,
            recipe.command(start),
            told,
            recipe.working_directory(start),
            self._output.writer,
            self._end,
        )
        self._output.started()

    @property
    def over(self) -> bool:
        return self.ended is not None

    @property
    def first_step_at(self) -> float | None:
        return self.clock.first[0] if self.clock.first is not None else None

    def _line(self, line: str) -> None:
        self.last_line = self._loop.awake()
        found = self.recipe.progress(line)
        if found is not None:
            self._reached(found.step, found.loss)

    def saved(self, step: int) -> float | None:
        """A checkpoint of ``step`` is finished: for how long it was saved, where that is known. Of a trainer that says nothing it is a report."""
        told = self.clock.last is not None and self.clock.last[1] >= step
        if not told:
            self.silent = self.silent or self.clock.first is None
            self._reached(step, None, certain=True)
        took = self.clock.saved(steady(), step)
        return took if told else None

    def _reached(self, step: int, loss: float | None, at: float | None = None, *, certain: bool = False) -> None:
        if loss is not None:
            self.loss = loss
        now = steady() if at is None else at
        if self.clock.first is None and step < self.start.resume_step - 1:
            self.behind = step
        if step != self._said:  # a trainer that says something new lives, whatever is to be made of it
            self._said = step
            self.sign()
        asleep_s = steady() - self._loop.awake()  # less a constant
        paused = asleep_s - self._asleep_s > _PAUSE_S
        if step > self.start.job.steps > self.step or not self.clock.report(now, step, paused=paused, certain=certain):
            return
        self._asleep_s = asleep_s
        self._log.calm(now)
        self._note_gap()
        self.last_step_at = now
        self.step = step
        self._on_step(step, loss)

    def _note_gap(self) -> None:
        before, self._reported = self._reported, self._loop.awake()
        self.reports += 1
        self.gap_s = max(self.gap_s if self.reports > 2 else 0.0, self._reported - before)

    def sign(self) -> None:
        """The trainer lives."""
        self.last_sign = self._loop.awake()

    def look(self) -> None:
        """Read what the trainer added to its progress file, or wrote it anew with; the file's time is that of the newest step in it."""
        before_that, self._looked_at = self._looked_at, steady()
        try:
            stat = self._files.progress.stat()
            if not S_ISREG(stat.st_mode):  # to open a pipe would be to wait
                return
            seen, before = (stat.st_ino, stat.st_mtime_ns, stat.st_size), self._progress_seen
            if seen == before:
                return
            place = self._progress_place
            if stat.st_size < place or (before is not None and (stat.st_ino != before[0] or stat.st_size == place)):
                self._progress_place = max(0, stat.st_size - _TAIL)
            with self._files.progress.open("rb") as file:
                file.seek(self._progress_place)
                data = file.read(min(1 << 20, stat.st_size - self._progress_place))
        except OSError:
            return
        whole = data.rfind(b"\n") + 1
        self._progress_place += whole
        if self._progress_place + len(data) - whole == stat.st_size:  # otherwise there is more to read
            self._progress_seen = seen
        newest: tuple[int, float | None] | None = None
        for line in data.splitlines():
            try:
                said = json.loads(line)
                step, loss = int(said["step"]), said.get("loss")
                newest = (step, float(loss) if isinstance(loss, (int, float)) else None)
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                continue
        if newest is not None:
            self._reached(*newest, at=max(before_that, self._looked_at - max(0.0, time.time() - stat.st_mtime)))

    def ask_to_stop(self, step: int) -> None:
        """Tell the trainer, through its stop file, to save at ``step`` (or the next possible one) and end."""
        if self.stop_asked is not None:
            return
        self.stop_asked, self.stop_asked_at = step, time.monotonic()
        try:
            fd = os.open(self._files.asking, os.O_WRONLY | os.O_CREAT, 0o644)  # not truncated: its room stays its own
            with os.fdopen(fd, "wb", buffering=0) as file:
                file.truncate(file.write(f"{step}\n".encode()))
            self._files.asking.replace(self._files.stop)
        except OSError as error:
            self._log.say(f"{self._files.stop}: {error.strerror}: the trainer cannot be asked to stop")

    def terminate(self, grace_s: float) -> None:
        """SIGTERM to the process group now, SIGKILL to everything after ``grace_s``."""
        if self.over or self._grace is not None:
            return
        self.stopped_by_agent = True
        self.keeper.terminate()
        self._grace = self._loop.after(grace_s, self.keeper.kill)

    def loop_after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call later, unless the trainer is over by then."""
        if self._grace is None:
            self._grace = self._loop.after(seconds, call)

    def kill(self) -> None:
        """SIGKILL to everything, now."""
        if not self.over:
            self.stopped_by_agent = True
            self.keeper.kill()

    def _end(self, ended: Ended) -> None:
        if self._grace is not None:
            self._grace.cancel()
        self._output.finish()
        self.look()
        self.ended_at = steady()
        self.ended = ended
