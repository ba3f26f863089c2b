"""Until when this attempt may run: the smallest of all limits, each counted as HTCondor counts it.

The class limit and AllowedJobDuration count from the shadow's start (JobCurrentStartDate), AllowedExecuteDuration from the start of
the execution itself (each exit 85 resets it). No attribute states the sum, so it is made here.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.config import JobConfig
from agent.errors import BadInput
from agent.place import Place


@dataclass(frozen=True)
class Deadline:
    """``at``: the limit itself, in Unix seconds; ``usable``: the margin before it, by which everything must be published."""

    at: float
    usable: float
    cause: str

    @property
    def margin_s(self) -> float:
        return self.at - self.usable


def find_deadline(job: JobConfig, queue_class: str, place: Place) -> Deadline:
    """The deadline of this attempt; BadInput when job.json does not know the class."""
    if queue_class not in job.classes:
        known = ", ".join(sorted(job.classes)) or "none"
        raise BadInput(
            f"job.json: no class {queue_class!r} (it has {known}); generate the workflow again with `segue dag`"
        )
    limits = [(place.started + job.classes[queue_class].limit_s, f"class {queue_class}")]
    for name, start in (("AllowedJobDuration", place.started), ("AllowedExecuteDuration", place.began)):
        allowed = place.job_ad.number(name)
        if allowed is not None and allowed > 0:
            limits.append((start + allowed, name))
    at, cause = min(limits)
    # Where HTCondor moves the store when the job ends, that must be over in time too.
    moving = place.transfer_s if job.checkpoint_exit else 0.0
    return Deadline(at, at - job.margin_s - moving, cause)
