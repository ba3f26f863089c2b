"""How many steps fit, and how often to save: pure functions over measured times.

The planned end of a segment must redo nothing, so the last step is one whose checkpoint can still be saved and published. Between,
a save costs time and an eviction costs the steps since the last one: Young's and Daly's interval balances the two.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from agent.config import Pace

_SLACK = 1.25
_EXIT_S = 0.3
_WINDOW = 64
_LEAP = 4
_SAVES = 8


@dataclass(frozen=True)
class Experience:
    """What the run has seen so far, carried in each commit's manifest. ``measured``: the step time is no mere estimate.

    ``observed_s``: seconds of slots used by the run; ``interruptions``: attempts that did not end as planned.
    """

    pace: Pace
    measured: bool = False
    observed_s: float = 0.0
    interruptions: int = 0

    def carried(self) -> dict[str, float]:
        """As a manifest's ``pace``."""
        pace = self.pace
        return {
            "step_s": pace.step_s,
            "save_s": pace.save_s,
            "publish_s": pace.publish_s,
            "restore_s": pace.restore_s,
            "startup_s": pace.startup_s,
            "observed_s": self.observed_s,
            "interruptions": float(self.interruptions),
        }


def from_carried(estimate: Pace, carried: Mapping[str, float]) -> Experience:
    """Measurements of earlier attempts where there are any, the plan's estimate otherwise."""
    known = {
        name: float(value)
        for name in ("step_s", "save_s", "publish_s", "restore_s", "startup_s")
        if isinstance(value := carried.get(name), (int, float)) and math.isfinite(value) and value >= 0
    }
    return Experience(
        replace(estimate, **known),
        measured="step_s" in known,
        observed_s=float(carried.get("observed_s", 0.0)),
        interruptions=int(carried.get("interruptions", 0)),
    )


def hopeful(experience: Experience, planned: Pace) -> Experience:
    """What the plan thought, where a measurement is worse: one slow start or publish (a busy machine, a cold cache) must not condemn
    a run for good. The step's time stays as measured.
    """
    seen = experience.pace
    better = {
        name: min(getattr(seen, name), getattr(planned, name))
        for name in ("save_s", "publish_s", "restore_s", "startup_s")
    }
    return replace(experience, pace=replace(seen, **better))


def cautious(before: float, measured: float) -> float:
    """The next estimate of a duration that varies: up at once, down slowly."""
    return measured if measured >= before else 0.5 * before + 0.5 * measured


def tail_s(pace: Pace) -> float:
    """Seconds from the end of the last step until its checkpoint is published, with slack for one slow try."""
    return _SLACK * (pace.save_s + pace.publish_s) + _EXIT_S


def publish_need_s(pace: Pace) -> float:
    """Seconds that a finished checkpoint needs to be published."""
    return _SLACK * pace.publish_s + _EXIT_S


def stop_time(pace: Pace, usable: float) -> float:
    """Unix time at which a trainer that is asked between two steps must be asked to stop."""
    return usable - tail_s(pace) - pace.step_s


def last_step(
    experience: Experience, resume: int, steps: int, now: float, usable: float, interval: int | None = None
) -> int:
    """The last step that a trainer started now can reach, save and have published by ``usable``; ``resume`` when none fits.

    ``interval``: steps between saves on the way. A measured step time includes them, an estimate does not.
    """
    pace = experience.pace
    room = usable - now - pace.startup_s - tail_s(pace)
    step_s = pace.step_s * 1.03 if experience.measured else pace.step_s * 1.15 + pace.save_s / (interval or math.inf)
    if step_s <= 0:
        return steps
    return max(resume, min(steps, resume + math.floor(room / step_s)))


def save_interval(experience: Experience, resume: int, last: int, limit_s: float) -> int:
    """Steps between saves: Young's interval with Daly's correction for the rate of interruptions seen so far.

    One interruption per class limit is assumed before any was seen, so that the first estimate errs to the careful side.
    Sources: J. W. Young, CACM 17 (1974) 530; J. T. Daly, FGCS 22 (2006) 303, eq. 37.
    """
    pace = experience.pace
    between = (experience.observed_s + limit_s) / (experience.interruptions + 1)
    cost = max(pace.save_s + 0.1 * pace.publish_s, 0.05)
    if cost < 2 * between:
        ratio = cost / (2 * between)
        seconds = math.sqrt(2 * cost * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost
    else:
        seconds = between
    seconds = max(seconds, 1.5 * pace.publish_s, cost)
    span = max(1, last - resume)
    interval = max(1, math.ceil(seconds / max(pace.step_s, 1e-6)))
    if interval >= span:
        return span
    return math.ceil(span / round(span / interval))


def restart_interval(experience: Experience, moving_s: float, limit_s: float, resume: int, last: int) -> int:
    """Steps to make for one checkpoint where each costs a restart, HTCondor moving it meanwhile (``moving_s``)."""
    pace = experience.pace
    whole = replace(pace, save_s=pace.save_s + pace.startup_s + pace.restore_s + moving_s)
    return save_interval(replace(experience, pace=whole), resume, last, limit_s)


def landing_interval(interval: int, last: int) -> int:
    """The interval, a little shorter or longer, so that a multiple of it comes just before ``last``: where the trainer ends a segment
    with no save of its own, all steps after the last multiple are lost.
    """
    return max(1, last // max(1, round(last / interval)))


class StepClock:
    """Seconds per step as seen from progress reports; steps and times of the current start only.

    The gap between reports in which a checkpoint was saved, or the job suspended, says nothing of the steps: one such gap among the last reports
    would look like a trainer that is several times slower. What the saves took beyond their steps is ``stall_s``.
    Lines that merely name a step ("decay begins at step 5000") look like reports. The first ones of a start are taken back when the next two
    contradict them; later, one far ahead of all before counts only once others follow it.
    """

    def __init__(self, resume: int = 0) -> None:
        self._resume = resume
        self._seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._proven = False
        self._contrary: tuple[float, int] | None = None
        self._ahead: list[tuple[float, int]] = []
        self._saves: deque[int] = deque(maxlen=_SAVES)
        self._stalls: dict[int, float] = {}
        self._standing: dict[int, float] = {}
        self._certain = 0
        self._paused: deque[int] = deque(maxlen=_WINDOW)
        self.first: tuple[float, int] | None = None
        self.last: tuple[float, int] | None = None

    def report(self, now: float, step: int, *, paused: bool = False, certain: bool = False) -> bool:
        """Note that ``step`` updates are done; False when that is nothing new, or nothing to be believed yet.

        ``paused``: the job was suspended since the report before; ``certain``: no line says it, but a checkpoint.
        """
        if paused:
            self._paused.append(step)
        self._certain += certain
        if step <= (self._resume if self.last is None else self.last[1]):
            return not certain and self._contradicted(now, step)
        self._contrary = None
        if not certain and self._leaps(now, step):
            self._ahead = [*(one for one in self._ahead if one[1] < step), (now, step)]
            if not _settled(self._ahead):
                return False
            reports = self._ahead
            self._seen.clear()  # the trainer goes on otherwise than before
        else:
            reports = [(now, step)]
        self._ahead = []
        self._proven = self._proven or self.settled
        self.first = self.first or reports[0]
        self.last = reports[-1]
        self._seen.extend(reports)
        for save in self._saves:
            self._book(save, list(self._seen)[-2:])
        return True

    def saved(self, now: float, step: int) -> float | None:
        """A checkpoint of ``step`` is finished: for how long it was saved, None where no report tells when that step was done."""
        before = [seen for seen in self._seen if seen[1] <= step]
        seconds = self.step_s()
        self._saves.append(step)
        self._stalls = {save: self._stalls.get(save, 0.0) for save in self._saves}
        self._standing = {save: self._standing.get(save, 0.0) for save in self._saves}
        self._book(step, list(self._seen))
        if not before or seconds is None or (step > before[-1][1] and len(before) == len(self._seen)):
            return None
        took = max(0.0, now - before[-1][0] - (step - before[-1][1]) * seconds)
        if len(before) == len(self._seen):
            self._standing[step] = took  # no step since: the next one tells exactly
        return took

    def _book(self, save: int, reports: list[tuple[float, int]]) -> None:
        """Note what the save took in these gaps. It comes before or after the report of its step."""
        for before, after in pairwise(reports):
            if _holds(save, before, after) and after[1] not in self._paused:
                expected = (self.step_s() or 0.0) * (after[1] - before[1])
                self._stalls[save] += max(0.0, after[0] - before[0] - expected)

    @property
    def stall_s(self) -> float:
        """Seconds for which steps stand still for a save, on average over the last ones; 0 before the first."""
        if not self._stalls:
            return 0.0
        return sum(booked or self._standing[save] for save, booked in self._stalls.items()) / len(self._stalls)

    def _leaps(self, now: float, step: int) -> bool:
        """Whether it is far more than the steps between earlier reports, and than those that the time since can have brought."""
        if len(self._seen) < 2:
            return False
        (begin, low), (end, high) = self._seen[0], self._seen[-1]
        rate = (high - low) / max(1e-6, end - begin)
        return step - high > _LEAP * max((high - low) / (len(self._seen) - 1), rate * (now - end))

    def _contradicted(self, now: float, step: int) -> bool:
        """A report that is behind: the second in a row that rises is believed, as long as nothing has proven those before."""
        if self._proven or self.last is None or not self._resume < step < self.last[1]:
            return False
        before, self._contrary = self._contrary, (now, step)
        if before is None or before[1] >= step:
            return False
        self._contrary = None
        self.first, self.last = before, (now, step)
        self._seen.clear()
        self._seen.extend((self.first, self.last))
        return True

    def step_s(self) -> float | None:
        """Seconds per step over the recent reports; None before two of them."""
        if len(self._seen) < 2:
            return None
        begin = self._seen[0][1]
        saves = [save for save in self._saves if save >= begin]
        if not saves and not any(step > begin for step in self._paused):
            return _rate([(self._seen[0], self._seen[-1])])
        gaps = [gap for gap in pairwise(self._seen) if gap[1][1] not in self._paused]
        return _rate([gap for gap in gaps if not any(_holds(save, *gap) for save in saves)] or gaps)

    @property
    def settled(self) -> bool:
        """Whether enough was seen to believe the rate: lines may be wrong, checkpoints are not."""
        return _settled(self._seen) or (self._certain > 1 and len(self._seen) > 1)


def _holds(save: int, before: tuple[float, int], after: tuple[float, int]) -> bool:
    """Whether that step lies between two reports, both included."""
    return before[1] <= save <= after[1]


def _rate(gaps: Sequence[tuple[tuple[float, int], tuple[float, int]]]) -> float | None:
    """Seconds per step over all of these gaps; None for none."""
    if not gaps:
        return None
    seconds = sum(after[0] - before[0] for before, after in gaps)
    return max(1e-6, seconds / sum(after[1] - before[1] for before, after in gaps))


def _settled(reports: Sequence[tuple[float, int]]) -> bool:
    return len(reports) >= 3 and reports[-1][0] - reports[0][0] > 0.5
