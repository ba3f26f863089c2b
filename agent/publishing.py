"""From a finished checkpoint to a commit, while training goes on.

A finished checkpoint is hard-linked at once, because the trainer may delete it, and published by an errand. When the trainer is
faster than staging, the newest one waiting goes next; older ones are dropped, or follow it where retention.every wants them. Staging
that is away is tried again with one warning. Where only the name tells that a checkpoint is finished, it counts when it is unchanged at a
second look (settling.py), and a commit of one that was written after that is withdrawn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.errand import Errand, Outcome, Report
from agent.loop import Loop
from agent.recipes.base import Finished, Recipe, Start
from agent.settling import Watched
from agent.store.multiples import first_at_each

_FIRST_RETRY_S = 2.0
_LONGEST_RETRY_S = 30.0
_FULL_LOOK_S = 5.0
_COST_SHARE = 1000.0
_FINAL = ("Superseded", "Cancelled", "BadCheckpoint", "CheckpointChanged", "SnapshotUnreadable")
"""Why a snapshot is given up. Anything else may pass, what nobody thought of too."""
_COPIED_BYTES = 16 << 20
"""Files up to this size are copied into the second snapshot of a checkpoint that changed under its first: a log beside it that still grows."""

PublishWork = Callable[[Finished, Path, Report], dict[str, Any]]
WithdrawWork = Callable[[int], dict[str, Any]]
"""Sets the commit of a step aside and returns its new name as ``aside``."""


@dataclass(frozen=True)
class Waiting:
    """A snapshot that waits to be published. ``stays``: retention.every wants it, so a newer one does not make it needless. ``settled_at``:
    when it may be taken for finished, by the monotonic clock. ``killed_before``: it may not, where the trainer was killed earlier than that.
    """

    finished: Finished
    snapshot: Path
    number: int
    stays: bool
    settled_at: float = 0.0
    killed_before: float = 0.0


class Publisher:
    """Watches one checkpoint root at a time (``watch``) and publishes what is finished in it."""

    def __init__(
        self,
        loop: Loop,
        directory: Path,
        publish: PublishWork,
        every: int | None,
        on_commit: Callable[[dict[str, Any]], None],
        on_trouble: Callable[[Outcome], None],
        silent_s: float,
        withdraw: WithdrawWork | None = None,
    ) -> None:
        self._withdraw = withdraw
        self._loop = loop
        self._directory = directory
        self._publish = publish
        self._every = every
        self._on_commit = on_commit
        self._on_trouble = on_trouble
        self._silent_s = silent_s
        self._recipe: Recipe | None = None
        self._start: Start | None = None
        self._root = ""
        self._seen: tuple[int, int] | None = None
        self._full_at = 0.0
        self._full_every = _FULL_LOOK_S
        self._snapshotting: Errand | None = None
        self._publishing: Errand | None = None
        self._current: Waiting | None = None
        self._waiting: list[Waiting] = []
        self._retry_s = 0.0
        self._retry_at = 0.0
        self._number = 0
        self._failed_snapshots = 0
        self._retaken = -1
        self._settling: Waiting | None = None
        self._watched: list[Watched] = []
        self._over = self._whole = False
        self._passed_over: set[int] = set()
        self._withdrawing = 0
        self._committed_before: dict[int, int] = {}
        """For each step that was published here, what was the newest commit until then."""
        self._unsure: set[int] = set()
        """Steps of which a try failed and may have made the commit all the same: its answer was lost, or the sync after its rename failed."""
        self._secured_step = 0
        """Step of the newest checkpoint that is a commit, or of which there is a snapshot; its multiple has one."""
        self.finished_step = 0
        """Step of the newest finished checkpoint known, published or not."""
        self.spacing: int | None = None
        """Steps between the last two checkpoints of this start, where the trainer keeps an interval of its own."""
        self.committed_step = 0
        self.trouble = ""
        """The error's class when the last try to publish failed."""
        self.in_vain: set[int] = set()
        """Steps refused since the last commit for a reason that waiting does not mend: the run's own budget, its directory is gone, or no archive can
        hold what is in them."""
        self.on_finished: Callable[[int], None] = lambda step: None
        """Called with the step of each checkpoint that the trainer has finished, before it is published."""
        self.in_place = ""
        """What shows that the trainer writes its checkpoints under their final names: nothing new is taken from it then."""
        self.torn: dict[int, str] = {}
        """Steps of checkpoints that changed after they had their names, and the name under which a commit of one was set aside."""
        self.stuck: list[int] = []
        """Those of which the commit could not be set aside."""
        self.halted = False
        """Set when nothing more must be published (superseded, told to leave)."""

    @property
    def root(self) -> Path:
        """The directory of the checkpoints that is looked at."""
        return Path(self._root)

    @property
    def idle(self) -> bool:
        """Nothing is being linked or published, nothing waits."""
        return self.linked and self._publishing is None and not self._waiting and not self._withdrawing

    @property
    def linked(self) -> bool:
        """Whatever the last look found is safe from the trainer, or could not be made so."""
        return self._snapshotting is None and self._settling is None

    @property
    def pausing(self) -> bool:
        """Something waits and nothing is under way: the last try failed, and the next is not due."""
        return self.linked and self._publishing is None and bool(self._waiting)

    @property
    def unpublished(self) -> bool:
        """A finished checkpoint is not yet a commit."""
        return not self.idle or self.finished_step > self.committed_step

    @property
    def late(self) -> list[int]:
        """Steps that retention.every wants and that are not yet commits, while a later one is."""
        pending = [*self._waiting, self._current] if self._current is not None else self._waiting
        return sorted(one.finished.step for one in pending if one.stays and one.finished.step < self.committed_step)

    def watch(self, recipe: Recipe, start: Start, step: int) -> None:
        """Look for checkpoints beyond ``step`` made by this start; what an earlier one left waiting is published all the same."""
        self._recipe, self._start = recipe, start
        self._root = str(recipe.checkpoint_root(start))
        self._seen = None
        self._full_at = 0.0
        self._over = self._whole = False
        self._watched.clear()
        self._passed_over.clear()
        self.finished_step = self._secured_step = step
        self.spacing = None

    def look(self, thoroughly: bool = False) -> None:
        """See whether the trainer has finished another checkpoint; cheap unless the root has changed."""
        if self._recipe is None or self._start is None or self.halted:
            return
        self._look_again()
        if self.in_place or not self.linked:
            return
        now = time.monotonic()
        try:
            stat = os.stat(self._root)  # noqa: PTH116
            seen = (stat.st_mtime_ns, stat.st_nlink)
        except OSError:
            return
        if not thoroughly and seen == self._seen and now < self._full_at:
            return
        self._seen = seen
        start = replace(self._start, secured_step=self._secured_step)
        found = [one for one in self._recipe.finished(start) if one.step > self.finished_step]
        found = [one for one in found if one.step not in self._passed_over]
        self._full_every = max(_FULL_LOOK_S, (time.monotonic() - now) * _COST_SHARE)
        self._full_at = now + self._full_every
        if found:
            wanted = first_at_each([one.step for one in found], self._every, self._secured_step)
            chosen = next((one for one in found if one.step in wanted), found[-1])
            self._snapshot(chosen, stays=chosen.step in wanted)

    def last_look(self, whole: bool) -> None:
        """The trainer is over, so nothing is written any more; ``whole``: it ended by itself, and well."""
        self._over, self._whole = True, whole
        self.look(thoroughly=True)

    def _look_again(self) -> None:
        """Whether a checkpoint that had its name was written to since; what is unchanged at its second look counts as finished."""
        now = time.monotonic()
        for one in [one for one in self._watched if one.due <= now or self._over]:
            if changed := one.look(now):
                self._written_in_place(one, changed)
        self._watched = [one for one in self._watched if not one.gone]
        if self._settling is not None and (self._over or now >= self._settling.settled_at):
            settling, self._settling = self._settling, None
            if self._over and not self._whole and now < settling.killed_before:
                self._passed_over.add(settling.finished.step)
                discard(settling.snapshot)
            else:
                self._accept(settling)

    def _written_in_place(self, one: Watched, changed: str) -> None:
        """Take nothing from this checkpoint, and nothing new from this trainer."""
        self._watched.remove(one)
        self.in_place = self.in_place or changed
        self.torn[one.step] = ""
        if self._settling is not None and self._settling.finished.step == one.step:
            discard(self._settling.snapshot)
            self._settling = None
        for waiting in [waiting for waiting in self._waiting if waiting.finished.step == one.step]:
            self._waiting.remove(waiting)
            discard(waiting.snapshot)
        if one.step in self._committed_before or one.step in self._unsure:
            self._set_aside(one.step)

    def _set_aside(self, step: int) -> None:
        """The commit is no good: readers must not find it."""
        while self.committed_step in self.torn:
            self.committed_step = self._committed_before.get(self.committed_step, 0)
        withdraw = self._withdraw
        if withdraw is None:
            return

        def done(outcome: Outcome) -> None:
            self._withdrawing -= 1
            if outcome.ok:
                self.torn[step] = outcome.value["aside"] or self.torn[step]
            else:
                self.stuck.append(step)
                self._on_trouble(outcome)

        self._withdrawing += 1
        Errand(self._loop, lambda report: withdraw(step), done, silent_s=self._silent_s)

    def _snapshot(self, finished: Finished, stays: bool) -> None:
        assert self._recipe is not None
        watched = next((one for one in self._watched if one.step == finished.step), None)
        if self._recipe.only_named and watched is None:
            watched = Watched(finished, time.monotonic())  # before there are links
            self._watched.append(watched)
        self._number += 1
        waiting = Waiting(finished, self._directory / f"{finished.step:09d}-{self._number}", self._number, stays)

        def work(report: Report) -> dict[str, Any]:
            from agent.store import snapshot

            self._directory.mkdir(parents=True, exist_ok=True)
            copied = _COPIED_BYTES if self._retaken == finished.step else -1
            return {"seen": snapshot(finished.root, finished.paths, waiting.snapshot, copied=copied)}

        def done(outcome: Outcome) -> None:
            self._snapshotting = None
            if outcome.ok:
                self._failed_snapshots = 0
                self._made(replace(waiting, finished=replace(finished, seen=outcome.value["seen"])), watched)
            else:
                self._failed_snapshots += 1
                bad = outcome.error == "BadCheckpoint"
                if bad or self._failed_snapshots >= 3 or self._retaken == finished.step:
                    self.in_vain |= {finished.step} if bad else set()
                    self.finished_step = finished.step
                    self._failed_snapshots = 0
                    # Scratch is full, not staging: another machine may have more.
                    self._on_trouble(replace(outcome, error="OSError") if outcome.error == "NoRoom" else outcome)
            # A disk that fails once after a good snapshot ends no training; the next look will tell whether it fails again.
            with suppress(OSError) if outcome.ok else nullcontext():
                self.look(thoroughly=True)

        self._snapshotting = Errand(self._loop, work, done, silent_s=self._silent_s, low_priority=False)

    def _made(self, waiting: Waiting, watched: Watched | None) -> None:
        """The trainer may delete its own files now; whether they are all that there will be shows at the second look."""
        if watched is None:
            self._accept(waiting)
            return
        if waiting.finished.step in self.torn:
            discard(waiting.snapshot)
            return
        self._settling = replace(waiting, settled_at=watched.settled_at, killed_before=watched.killed_before)
        if self._over:
            self._look_again()
        else:
            self._loop.after(max(0.0, watched.settled_at - time.monotonic()) + 0.01, self._look_again)

    def _accept(self, waiting: Waiting) -> None:
        """It counts as finished."""
        step = waiting.finished.step
        if self._start is not None and step > self.finished_step > self._start.resume_step:
            self.spacing = step - self.finished_step
        self.finished_step = self._secured_step = step
        self._seen = None  # others may have been finished meanwhile
        self.on_finished(step)
        self._add(waiting)

    def _add(self, waiting: Waiting) -> None:
        for older in [one for one in self._waiting if not one.stays]:
            self._waiting.remove(older)
            discard(older.snapshot)
        self._waiting.append(waiting)
        self.go_on()

    def hurry(self) -> None:
        """The trainer has ended: try at once what waits for the end of a pause."""
        self._retry_at = 0.0
        self.go_on()

    def go_on(self) -> None:
        """Start the next publish when none is under way and no pause after a failure is due."""
        if self.halted or self._publishing is not None or not self._waiting or time.monotonic() < self._retry_at:
            return
        current = self._waiting.pop()
        self._current = current
        self._publishing = Errand(
            self._loop,
            lambda report: self._publish(current.finished, current.snapshot, report),
            self._published,
            silent_s=self._silent_s,
        )

    def _published(self, outcome: Outcome) -> None:
        current, self._current, self._publishing = self._current, None, None
        assert current is not None
        for one in self._watched:
            one.due = 0.0 if one.step == current.finished.step else one.due
        self._look_again()
        self.trouble = outcome.error
        if outcome.ok:
            self._retry_s = self._retry_at = 0.0
            self.in_vain.clear()
            self._committed_before.setdefault(current.finished.step, self.committed_step)
            self.committed_step = max(self.committed_step, current.finished.step)
            discard(current.snapshot)
            self._on_commit({**outcome.value, "seconds": outcome.seconds})
            if current.finished.step in self.torn:
                self._set_aside(current.finished.step)
        elif current.finished.step in self.torn:
            discard(current.snapshot)
            if outcome.error not in _FINAL:
                self._set_aside(current.finished.step)
        elif outcome.error not in _FINAL:
            self._unsure.add(current.finished.step)
            if outcome.error == "RunGone" or outcome.value.get("own_budget"):
                self.in_vain.add(current.finished.step)
            self._again(current)
            self._on_trouble(outcome)
        else:
            self.in_vain |= {current.finished.step} if outcome.error == "BadCheckpoint" else set()
            discard(current.snapshot)
            if not self._taken_anew(outcome, current):
                self._on_trouble(outcome)
        self.go_on()

    def _taken_anew(self, outcome: Outcome, current: Waiting) -> bool:
        """A checkpoint that changed under its snapshot gets a second one, unless a newer checkpoint is finished already."""
        finished = current.finished
        newest = finished.step == self.finished_step and self._snapshotting is None and not self.halted
        if outcome.error != "CheckpointChanged" or not newest or self._retaken == finished.step:
            return False
        self._retaken = finished.step
        self._snapshot(finished, current.stays)
        return True

    def _again(self, current: Waiting) -> None:
        """Try later; a newer one that waits takes its place."""
        if not current.stays and any(one.number > current.number for one in self._waiting):
            discard(current.snapshot)
        else:
            self._waiting = sorted([*self._waiting, current], key=lambda one: one.number)
        self._retry_s = min(_LONGEST_RETRY_S, self._retry_s * 2 or _FIRST_RETRY_S)
        self._retry_at = time.monotonic() + self._retry_s
        self._loop.after(self._retry_s + 0.01, self.go_on)

    def halt(self) -> None:
        """Publish nothing more and stop what is under way."""
        self.halted = True
        for errand in (self._snapshotting, self._publishing):
            if errand is not None:
                errand.cancel()
        self._waiting.clear()
        self._settling = None


def discard(snapshot: Path) -> None:
    """Remove a snapshot's links; the data goes with the last link. What cannot go stays in scratch: no reason to stop a training."""
    from agent.store.fs import PosixFileSystem, remove_tree

    with suppress(OSError):
        remove_tree(PosixFileSystem(), str(snapshot))
