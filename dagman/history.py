"""One timeline of a run, from event log, handovers and staging: the data behind `segue status`, never a poll of the queue.

`timeline` is a pure function of what was read; `read_history` reads. Times are Unix seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagman import events as ev
from dagman.events import Event, read_events
from dagman.runs import RunPlace

_SEGMENT = re.compile(r"segment_(\d+)")
_COMMIT = re.compile(r"(\d{9,})\.e(\d{6,})\.tar")


@dataclass(frozen=True)
class Attempt:
    """One execution. ``number`` counts from 1 in its segment; ``outcome``: running, evicted, finished, failed, held, removed, lost."""

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


@dataclass(frozen=True)
class Segment:
    """One node of the chain. ``state``: waiting, queued, running, held, finished, skipped, failed, removed."""

    number: int
    node: str
    queue_class: str
    state: str
    attempts: tuple[Attempt, ...] = ()
    handover: Mapping[str, Any] | None = None

    @property
    def evictions(self) -> int:
        """Attempts that HTCondor ended and will repeat."""
        return sum(attempt.outcome in ("evicted", "lost") for attempt in self.attempts)


@dataclass(frozen=True)
class NewestCommit:
    """The commit that a restore would take first, by its name and the file's time."""

    name: str
    step: int
    epoch: int
    bytes: int
    at: float


@dataclass(frozen=True)
class History:
    """A run so far. ``state``: not-submitted, queued, running, held, complete, failed, removed."""

    run: str
    state: str
    steps: int
    step: int
    segments: tuple[Segment, ...]
    nodes: Mapping[str, str]
    commit: NewestCommit | None
    next: str
    reason: str | None = None
    began: float | None = None
    ended: float | None = None
    staging_visible: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def evictions(self) -> int:
        """Over all segments."""
        return sum(segment.evictions for segment in self.segments)


@dataclass
class _Job:
    """One submission of a node, while its events are read."""

    cluster: int
    submitted: float
    attempts: list[Attempt] = field(default_factory=list)
    state: str = "queued"
    reason: str | None = None


def _jobs(events: Sequence[Event]) -> dict[str, list[_Job]]:
    """Submissions of each node in order, with their attempts."""
    nodes: dict[str, list[_Job]] = {}
    by_cluster: dict[int, _Job] = {}
    for event in events:
        if event.kind == ev.SUBMIT:
            name = event.node
            if name is not None:
                job = _Job(event.cluster, event.at)
                by_cluster[event.cluster] = job
                nodes.setdefault(name, []).append(job)
            continue
        found = by_cluster.get(event.cluster)
        if found is not None:
            _apply(found, event)
    return nodes


def _apply(job: _Job, event: Event) -> None:
    kind, facts = event.kind, event.facts
    if kind == ev.EXECUTE:
        host = str(facts.get("SlotName") or "") or None
        machine = host.split("@", 1)[1] if host and "@" in host else None
        job.attempts.append(
            Attempt(
                len(job.attempts) + 1,
                f"{job.cluster}.0",
                event.at,
                None,
                "running",
                machine=machine,
                slot=host,
            )
        )
        job.state = "running"
    elif kind in (ev.EVICTED, ev.SHADOW_EXCEPTION, ev.RECONNECT_FAILED):
        _close(
            job,
            event,
            "evicted" if kind == ev.EVICTED else "lost",
            str(facts.get("Reason") or facts.get("Message") or "") or None,
        )
        job.state = "queued"
    elif kind == ev.TERMINATED:
        normally = bool(facts.get("TerminatedNormally", True))
        code = facts.get("ReturnValue") if normally else None
        good = normally and code == 0
        reason = None if normally else f"killed by signal {facts.get('TerminatedBySignal')}"
        _close(job, event, "finished" if good else "failed", reason, int(code) if isinstance(code, int) else None)
        job.state = "finished" if good else "failed"
        job.reason = reason or (None if good else f"exit code {code}")
    elif kind == ev.ABORTED:
        _close(job, event, "removed", str(facts.get("Reason") or "") or None)
        job.state = "removed"
    elif kind == ev.HELD:
        job.reason = str(facts.get("HoldReason") or "") or None
        _close(job, event, "held", job.reason)
        job.state = "held"
    elif kind == ev.RELEASED:
        job.state = "queued"


def _close(job: _Job, event: Event, outcome: str, reason: str | None, code: int | None = None) -> None:
    if job.attempts and job.attempts[-1].ended is None:
        last = job.attempts[-1]
        job.attempts[-1] = Attempt(
            last.number, last.job, last.began, event.at, outcome, code, last.machine, last.slot, reason
        )


def _dag_state(own: Sequence[Event]) -> tuple[str, float | None, float | None, str | None]:
    """(state, began, ended, reason) from DAGMan's own job log; only its newest job counts."""
    state, began, ended, reason = "not-submitted", None, None, None
    newest = max((event.cluster for event in own), default=None)
    for event in own:
        if event.cluster != newest:
            continue
        if event.kind == ev.SUBMIT:
            state, began, ended, reason = "queued", event.at, None, None
        elif event.kind in (ev.EXECUTE, ev.RELEASED):
            state = "running"
        elif event.kind == ev.HELD:
            state, reason = "held", str(event.facts.get("HoldReason") or "")
        elif event.kind == ev.ABORTED:
            state, ended, reason = "removed", event.at, str(event.facts.get("Reason") or "")
        elif event.kind == ev.TERMINATED:
            code = event.facts.get("ReturnValue")
            state, ended = ("complete" if code == 0 else "failed"), event.at
    return state, began, ended, reason


def timeline(
    run: str,
    steps: int,
    classes: Mapping[str, str],
    node_events: Sequence[Event],
    skip_events: Sequence[Event],
    dag_events: Sequence[Event],
    handovers: Mapping[int, Mapping[str, Any]],
    commit: NewestCommit | None,
    staging_visible: bool = True,
    last_words: Mapping[str, str] | None = None,
) -> History:
    """Put together what was read.

    ``classes``: queue class by node name of every segment of the DAG, in order. ``last_words``: the last line that each other node's job
    wrote to stderr.
    """
    jobs = _jobs(node_events)
    state, began, ended, reason = _dag_state(dag_events)
    skipped = {event.node for event in skip_events if event.kind == ev.PRESKIP}
    segments = []
    for name, queue_class in classes.items():
        match = _SEGMENT.fullmatch(name)
        if match is None:
            continue
        number = int(match[1])
        handover = handovers.get(number)
        submissions = jobs.get(name, [])
        attempts: list[Attempt] = []
        for job in submissions:
            for attempt in job.attempts:
                attempts.append(_with_epoch(attempt, len(attempts) + 1, handover))
        newest = submissions[-1] if submissions else None
        skipped_now = name in skipped and (newest is None or newest.submitted < (began or 0))
        shown = "skipped" if skipped_now else newest.state if newest else "waiting"
        segments.append(Segment(number, name, queue_class, shown, tuple(attempts), handover))
    others = {name: found[-1].state for name, found in jobs.items() if not _SEGMENT.fullmatch(name)}
    step = commit.step if commit else max((int(h.get("step") or 0) for h in handovers.values()), default=0)
    if state == "running" and any(s.state == "held" for s in segments):
        held = next(s for s in segments if s.state == "held")
        reason = next((a.reason for a in reversed(held.attempts) if a.reason), None)
    if state == "failed" and reason is None:
        reason = _failure(segments, jobs, last_words or {})
    return History(
        run, state, steps, step, tuple(segments), others, commit, _next(state, segments, others, step, steps), reason, began, ended, staging_visible,
    )  # fmt: skip


def _with_epoch(attempt: Attempt, number: int, handover: Mapping[str, Any] | None) -> Attempt:
    epoch = None
    if handover is not None and attempt.ended is not None and handover.get("job_id") == attempt.job:
        began = handover.get("began")
        if (
            isinstance(began, int | float)
            and attempt.began - 5 <= began <= attempt.ended + 5
            and isinstance(handover.get("epoch"), int)
        ):
            epoch = int(handover["epoch"])
    return Attempt(
        number,
        attempt.job,
        attempt.began,
        attempt.ended,
        attempt.outcome,
        attempt.exit_code,
        attempt.machine,
        attempt.slot,
        attempt.reason,
        epoch,
    )


def _failure(
    segments: Sequence[Segment], jobs: Mapping[str, Sequence[_Job]], last_words: Mapping[str, str]
) -> str | None:
    for segment in segments:
        if segment.state == "failed":
            said = segment.handover.get("reason") if segment.handover else None
            if said:
                return f"{segment.node}: {said}"
            last = segment.attempts[-1] if segment.attempts else None
            return f"{segment.node}: " + (
                f"exit code {last.exit_code}"
                if last and last.exit_code is not None
                else (last.reason or "failed")
                if last
                else "failed"
            )
    for name, found in jobs.items():
        if found[-1].state == "failed":
            said = last_words.get(name, "")
            return f"{name}: {said.removeprefix('segue: error: ') or f'{found[-1].reason}; see logs/{name}.err'}"
    return None


def _next(state: str, segments: Sequence[Segment], others: Mapping[str, str], step: int, steps: int) -> str:
    if state == "not-submitted":
        return "submit it: segue submit"
    if state == "complete":
        return "bring the result here: segue pull"
    if state in ("failed", "removed", "held"):
        return {
            "failed": "mend the cause, then segue submit: it goes on from the newest commit",
            "removed": "segue submit goes on from the newest commit",
            "held": "condor_q -hold says why; then condor_release or condor_rm",
        }[state]
    for segment in segments:
        if segment.state == "running":
            return f"{segment.node} trains to step {steps}" if step < steps else f"{segment.node} ends"
        if segment.state == "held":
            return f"{segment.node} is held: mend the cause, then condor_release it"
        if segment.state == "queued":
            return f"{segment.node} waits for a machine"
    if others.get("consolidate") in ("queued", "running"):
        return "consolidate writes the result"
    waiting = [segment.node for segment in segments if segment.state == "waiting"]
    if step >= steps:
        return "consolidate" if others.get("consolidate") != "finished" else "the end of the workflow"
    return (
        f"{waiting[0]} is submitted" if waiting and others.get("stage") == "finished" else "stage verifies the inputs"
    )


def newest_commit(store: Path) -> NewestCommit | None:
    """The commit that a restore tries first: highest epoch, then highest step; from names alone."""
    best: tuple[int, int, str] | None = None
    try:
        names = [entry.name for entry in (store / "checkpoints").iterdir()]
    except OSError:
        return None
    for name in names:
        match = _COMMIT.fullmatch(name)
        if match is not None:
            key = (int(match[2]), int(match[1]), name)
            best = max(best, key) if best else key
    if best is None:
        return None
    try:
        found = (store / "checkpoints" / best[2]).stat()
    except OSError:
        return None
    return NewestCommit(best[2], best[1], best[0], found.st_size, found.st_mtime)


def read_handovers(directory: Path) -> dict[int, dict[str, Any]]:
    """Handovers by segment; one that cannot be read is left out."""
    found = {}
    for path in sorted((directory / "handovers").glob("segment-*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            number = int(path.stem.removeprefix("segment-"))
        except (OSError, ValueError):
            continue
        if isinstance(data, dict) and data.get("state") != "pending":
            found[number] = data
    return found


def read_last_words(directory: Path) -> dict[str, str]:
    """The last line of each helper node's stderr, where there is one."""
    found = {}
    for path in (directory / "logs").glob("*.err"):
        if path.stem.startswith("segment-"):
            continue
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            continue
        if lines:
            found[path.stem] = lines[-1]
    return found


def read_classes(dag: Path) -> dict[str, str]:
    """Queue class of every segment, in the order of the .dag file."""
    found = {}
    try:
        text = dag.read_text(encoding="utf-8")
    except OSError:
        return {}
    for line in text.splitlines():
        match = re.fullmatch(r'VARS (\S+) .*\bclass="([^"]*)".*', line)
        if match is not None:
            found[match[1]] = match[2]
    return found


def read_history(place: RunPlace) -> History:
    """Everything that this machine can see of the run, read once."""
    directory, job = place.directory, place.job
    dag = f"{job.run}.dag"
    store = place.store
    return timeline(
        job.run,
        job.steps,
        read_classes(directory / dag),
        read_events(directory / "events.log"),
        read_events(directory / f"{dag}.nodes.log"),
        read_events(directory / f"{dag}.dagman.log"),
        read_handovers(directory),
        newest_commit(store),
        store.parent.parent.is_dir(),
        read_last_words(directory),
    )
