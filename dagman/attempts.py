"""From an event log to submissions and attempts of each node: which job ran when, where, and how each execution ended.

The log is appended over DAG submissions, and job numbers may begin again when a pool is made anew: the order in the log decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dagman import events as ev
from dagman.events import Event

_CUT_OFF = "disconnected: "


@dataclass(frozen=True)
class Attempt:
    """One execution. ``number`` counts from 1 in its segment, over all submissions of the DAG; times in Unix seconds.

    ``outcome``: running, evicted, lost (shadow or connection), finished, failed, held, removed. ``earlier``: of a submission before the
    newest.
    """

    number: int
    job: str
    began: float
    ended: float | None
    outcome: str
    exit_code: int | None = None
    machine: str | None = None
    slot: str | None = None
    reason: str | None = None
    epoch: int | None = None
    earlier: bool = False

    @property
    def cut_off(self) -> bool:
        """Its machine does not answer, and HTCondor has not given it up."""
        return self.outcome == "running" and (self.reason or "").startswith(_CUT_OFF)


@dataclass
class Job:
    """One submission of a node, while its events are read. ``state``: queued, running, held, finished, failed, removed."""

    cluster: int
    submitted: float
    attempts: list[Attempt] = field(default_factory=list)
    state: str = "queued"
    reason: str | None = None
    hold_code: int | None = None


def jobs_of_nodes(events: Sequence[Event]) -> dict[str, list[Job]]:
    """Each node's jobs in the order of their submission, with their attempts."""
    nodes: dict[str, list[Job]] = {}
    by_cluster: dict[int, Job] = {}
    for event in events:
        if event.kind == ev.SUBMIT:
            if event.node is None:
                by_cluster.pop(event.cluster, None)
                continue
            job = by_cluster[event.cluster] = Job(event.cluster, event.at)
            nodes.setdefault(event.node, []).append(job)
        elif (found := by_cluster.get(event.cluster)) is not None:
            _apply(found, event)
    return nodes


def _apply(job: Job, event: Event) -> None:
    kind = event.kind
    if kind == ev.EXECUTE:
        _begin(job, event)
    elif kind == ev.EVICTED:
        _close(job, event, "evicted", event.text("Reason"))
        job.state = "queued"
    elif kind in (ev.SHADOW_EXCEPTION, ev.RECONNECT_FAILED):
        _close(job, event, "lost", event.text("Message", "Reason"))
        job.state = "queued"
    elif kind == ev.DISCONNECTED:
        _note(job, _CUT_OFF + (event.text("DisconnectReason") or "the machine does not answer"))
    elif kind == ev.RECONNECTED:
        _note(job, None)
    elif kind == ev.TERMINATED:
        _terminate(job, event)
    elif kind == ev.ABORTED:
        job.state, job.reason = "removed", event.text("Reason")
        _end_for(job, event, "removed")
    elif kind == ev.HELD:
        job.state, job.reason = "held", event.text("HoldReason")
        code = event.facts.get("HoldReasonCode")
        job.hold_code = code if isinstance(code, int) else None
        _end_for(job, event, "held")
    elif kind == ev.RELEASED:
        job.state, job.reason, job.hold_code = "queued", None, None


def _begin(job: Job, event: Event) -> None:
    if job.attempts and job.attempts[-1].ended is None:
        # No event says how the one before ended: its shadow died without a word.
        _close(job, event, "lost", "nothing was said of its end")
    slot = event.text("SlotName")
    machine = slot.split("@", 1)[1] if slot and "@" in slot else None
    number = len(job.attempts) + 1
    job.attempts.append(Attempt(number, f"{job.cluster}.0", event.at, None, "running", machine=machine, slot=slot))
    job.state = "running"


def _terminate(job: Job, event: Event) -> None:
    normally = bool(event.facts.get("TerminatedNormally", True))
    code = event.facts.get("ReturnValue") if normally else None
    good = normally and code == 0
    reason = None if normally else f"killed by signal {event.facts.get('TerminatedBySignal')}"
    _close(job, event, "finished" if good else "failed", reason, int(code) if isinstance(code, int) else None)
    job.state = "finished" if good else "failed"
    job.reason = reason or (None if good else f"exit code {code}")


def _close(job: Job, event: Event, outcome: str, reason: str | None, code: int | None = None) -> None:
    if job.attempts and job.attempts[-1].ended is None:
        job.attempts[-1] = replace(job.attempts[-1], ended=event.at, outcome=outcome, exit_code=code, reason=reason)


def _end_for(job: Job, event: Event, outcome: str) -> None:
    """A hold or a removal evicts first and says so second: both events are of one end."""
    if job.attempts and job.attempts[-1].outcome == "evicted" and event.at - (job.attempts[-1].ended or 0.0) <= 1.0:
        job.attempts[-1] = replace(job.attempts[-1], outcome=outcome, reason=job.reason)
    _close(job, event, outcome, job.reason)


def _note(job: Job, reason: str | None) -> None:
    if job.attempts and job.attempts[-1].ended is None:
        job.attempts[-1] = replace(job.attempts[-1], reason=reason)
