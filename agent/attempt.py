"""What one attempt knows and has counted so far: shared by the parts that open, train, publish and end it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from agent.config import JobConfig
from agent.deadline import Deadline
from agent.errand import Outcome
from agent.handover import Handover
from agent.loop import Loop, steady
from agent.output import Log
from agent.pacing import Experience
from agent.place import Place


@dataclass(frozen=True)
class End:
    """How the attempt ends: the handover's state, the exit code and one sentence."""

    state: str
    exit_code: int
    reason: str


class Goodput:
    """Seconds by cause; one cause at a time, switched by ``enter``."""

    CAUSES = (
        "queue_s",
        "transfer_s",
        "restore_s",
        "startup_s",
        "train_s",
        "publish_stall_s",
        "redone_s",
        "tail_s",
        "idle_s",
    )

    def __init__(self, place: Place) -> None:
        self.seconds = dict.fromkeys(self.CAUSES, 0.0)
        self.seconds["queue_s"] = place.queued_s
        self.seconds["transfer_s"] = place.transfer_s
        self._cause = "restore_s"
        self._since = place.began

    def enter(self, cause: str, at: float | None = None) -> None:
        """From ``at`` (now) on, time goes to ``cause``."""
        now = steady() if at is None else max(at, self._since)
        self.seconds[self._cause] += now - self._since
        self._cause, self._since = cause, now

    def move(self, source: str, target: str, seconds: float) -> None:
        """Book ``seconds`` of ``source`` under ``target`` after all (steps that turned out to be redone)."""
        moved = min(self.seconds[source], seconds)
        self.seconds[source] -= moved
        self.seconds[target] += moved

    def until_now(self) -> dict[str, float]:
        """All causes, the running one included, in milliseconds' precision."""
        self.enter(self._cause)
        return {cause: round(value, 3) for cause, value in self.seconds.items()}


class Attempt:
    """The attempt's facts. ``usable`` and other times are Unix seconds."""

    def __init__(
        self, job: JobConfig, segment: int, queue_class: str, place: Place, deadline: Deadline, loop: Loop
    ) -> None:
        self.job = job
        self.segment = segment
        self.queue_class = queue_class
        self.place = place
        self.deadline = deadline
        self.loop = loop
        self.own = place.scratch / ".segue"
        self.log = Log(place.scratch / "logs" / "attempt-starting.log")
        self.experience = Experience(job.pace)
        self.goodput = Goodput(place)
        self.claim: dict[str, Any] = {}
        self.epoch = 0
        self.high_water = 0
        """The highest step that any attempt is known to have made."""
        self.restored_step = 0
        self.stepped = False
        """A start of this attempt made a step."""
        self.fruitless = False
        """No checkpoint came out of this attempt although nothing failed: the time was too short."""
        self.fruitless_before = False
        """The attempt before was fruitless too, and began at the same step."""
        self.began_anew = ""
        """What the reason of an end says beside it when a start reported steps from before those it was to resume."""
        self.wandb_failed = False
        """W&B's client ended a start of this attempt."""
        self.wandb_unsent = 0
        """Of so many earlier attempts, what they wrote to W&B offline waits in the store."""
        self.superseded = ""
        """Set when a newer attempt owns the run; ``superseded_by`` has its machine and job, empty when its claim cannot be read."""
        self.superseded_by = ("", "")
        self.leaving_until: float | None = None
        """Set by SIGTERM: when the grace given to us ends."""
        self.leave_now = False
        self.on_leaving: Callable[[], None] = lambda: None
        """Called when either is set, so that nobody waits for the next look."""
        self._warned: set[str] = set()
        self.handover = Handover(
            run=job.run,
            segment=segment,
            queue_class=queue_class,
            steps=job.steps,
            machine=place.machine,
            slot=place.slot,
            job_id=place.job_id,
            began=place.began,
        )

    @property
    def limit_s(self) -> float:
        """Seconds from the attempt's start to its limit."""
        return self.deadline.at - self.place.began

    @property
    def leaving(self) -> bool:
        return self.leaving_until is not None or self.leave_now

    def note_superseded(self, outcome: Outcome) -> None:
        """An errand found that a newer attempt owns the run."""
        self.superseded = outcome.message
        self.superseded_by = (str(outcome.value.get("machine", "")), str(outcome.value.get("job", "")))

    def name_log(self) -> None:
        """The epoch is known: the log gets its final name."""
        path = self.log.path.with_name(f"attempt-{self.epoch}.log")
        self.log.path.replace(path)
        self.log.path = path

    def say(self, text: str) -> None:
        """A message of the agent's own: stderr and log."""
        self.log.say(text)

    def warn(self, text: str, key: str | None = None) -> None:
        """A warning, once per ``key``: said, and kept for the handover."""
        key = key or text
        if key in self._warned:
            return
        self._warned.add(key)
        self.handover.warnings.append(text)
        self.say(f"warning: {text}")

    def settled(self, key: str) -> None:
        """The reason of a warning has gone; the next time warns again."""
        self._warned.discard(key)

    def learn(self, **seconds: float) -> None:
        """Replace estimates of the pace by measurements, in seconds."""
        self.experience = replace(self.experience, pace=replace(self.experience.pace, **seconds))

    def carried_pace(self) -> dict[str, float]:
        """For the next commit's manifest."""
        seen = replace(self.experience, observed_s=self.experience.observed_s + steady() - self.place.began)
        return {key: round(value, 6) for key, value in seen.carried().items()}
