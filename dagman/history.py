"""One timeline of a run as plain data, and how it follows from what was observed: the model behind `segue status`.

`timeline` is a pure function; dagman.observed reads event log, handovers and staging for it. Times are Unix seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent.exit_codes import PERMANENT
from dagman import events as ev
from dagman.attempts import Attempt, Job, jobs_of_nodes
from dagman.epochs import ClaimSeen, claim_of_handover, epochs_of
from dagman.events import Event

SEGMENT = re.compile(r"segment_(\d+)")


@dataclass(frozen=True)
class Segment:
    """One node of the chain. ``state``: waiting, queued, running, held, finished, skipped, failed, removed.

    State and reason are those of the newest DAG submission; ``attempts`` are of all.
    """

    number: int
    node: str
    queue_class: str
    state: str
    reason: str | None = None
    attempts: tuple[Attempt, ...] = ()
    handover: Mapping[str, Any] | None = None

    @property
    def evictions(self) -> int:
        """Attempts that HTCondor ended and will repeat."""
        return sum(attempt.outcome in ("evicted", "lost", "held") for attempt in self.attempts)


@dataclass(frozen=True)
class NewestCommit:
    """The commit that a restore would take first, by its name and the file's time.

    ``step_s``: seconds a step between it and the one before it of the same epoch, None without one.
    """

    name: str
    step: int
    epoch: int
    bytes: int
    at: float
    step_s: float | None = None


@dataclass(frozen=True)
class Gone:
    """A store without any commit, though the workflow knows of one of ``step``; ``there``: its directory is, empty or another."""

    store: str
    step: int
    there: bool

    @property
    def text(self) -> str:
        """In a sentence."""
        what = "has no commit any more" if self.there else "is gone"
        return f"the run's directory {self.store} {what}, and step {self.step} had been published there"


@dataclass(frozen=True)
class Observed:
    """All that this machine can see of a run.

    ``classes``: queue class by node name of every segment of the DAG, in order. ``done``: nodes that the rescue file used by the newest
    submission holds for done. ``last_words``: the last line that each other node's job wrote to stderr. ``submit``: the command that
    submits the run again; ``result``: how to come by the result; ``look``: shows how far the run is, whoever runs it; ``asked_steps``: what
    run.toml says now. ``gone``: the store is not what it was; ``unpublished``: why the newest attempt's last try to publish failed.
    """

    run: str
    steps: int
    classes: Mapping[str, str]
    node_events: Sequence[Event] = ()
    skip_events: Sequence[Event] = ()
    dag_events: Sequence[Event] = ()
    handovers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    claims: Sequence[ClaimSeen] = ()
    commit: NewestCommit | None = None
    staging_visible: bool = True
    done: frozenset[str] = frozenset()
    last_words: Mapping[str, str] = field(default_factory=dict)
    submit: str = "segue submit"
    result: str = "bring the result here: segue pull"
    look: str = "segue commits"
    asked_steps: int | None = None
    gone: Gone | None = None
    unpublished: str = ""


@dataclass(frozen=True)
class History:
    """A run so far. ``state``: not-submitted, queued, running, held, complete, failed, removed.

    ``dag_job``: DAGMan's own. ``step_s``: measured seconds a step, None before there is a measurement; ``left_s``: training time
    left at that pace, without queueing.
    """

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
    step_s: float | None = None
    dag_job: str | None = None

    @property
    def evictions(self) -> int:
        """Over all segments."""
        return sum(segment.evictions for segment in self.segments)

    @property
    def left_s(self) -> float | None:
        """Seconds of training that are left; None when nothing was measured."""
        return None if self.step_s is None else max(0, self.steps - self.step) * self.step_s


@dataclass(frozen=True)
class _Dag:
    """The newest submission of the DAG."""

    state: str = "not-submitted"
    job: str | None = None
    began: float | None = None
    ended: float | None = None
    reason: str | None = None


def dag_state(own: Sequence[Event]) -> _Dag:
    """From DAGMan's own job log: submissions are appended, or replace it (-f); the last one counts."""
    found, newest = _Dag(), None
    for event in own:
        if event.kind == ev.SUBMIT:
            newest = event.cluster
            found = _Dag("queued", f"{event.cluster}.0", event.at)
        elif event.cluster != newest:
            continue
        elif event.kind == ev.EXECUTE:
            found = replace(found, state="running", reason=None)
        elif event.kind in (ev.EVICTED, ev.SHADOW_EXCEPTION, ev.RELEASED):
            found = replace(found, state="queued", reason=None)
        elif event.kind == ev.HELD:
            found = replace(found, state="held", reason=event.text("HoldReason"))
        elif event.kind == ev.ABORTED:
            found = replace(found, state="removed", ended=event.at, reason=event.text("Reason"))
        elif event.kind == ev.TERMINATED:
            good = event.facts.get("TerminatedNormally", True) and event.facts.get("ReturnValue") == 0
            # A DAG that was removed ends by itself, after its jobs.
            state = "removed" if found.state == "removed" else "complete" if good else "failed"
            found = replace(found, state=state, ended=event.at)
    return found


def timeline(seen: Observed) -> History:
    """Put together what was observed."""
    jobs = jobs_of_nodes(seen.node_events)
    dag = dag_state(seen.dag_events)
    skipped: dict[str, float] = {}
    for event in seen.skip_events:
        if event.kind == ev.PRESKIP and event.node is not None:
            skipped[event.node] = event.at
    attempts = _attempts(jobs, dag, seen)
    segments = tuple(
        Segment(
            int(match[1]), name, queue_class, *_node_state(name, jobs.get(name, []), skipped.get(name), dag, seen),
            attempts.get(name, ()), seen.handovers.get(int(match[1])),
        )
        for name, queue_class in seen.classes.items()
        if (match := SEGMENT.fullmatch(name)) is not None
    )  # fmt: skip
    others = {}
    for name, found in jobs.items():
        if SEGMENT.fullmatch(name) is None:
            others[name] = _node_state(name, found, None, dag, seen)[0]
    step = seen.commit.step if seen.commit else max((_step(each) for each in seen.handovers.values()), default=0)
    state, reason = dag.state, dag.reason
    if state == "failed":
        reason = _failure(segments, jobs, others, seen.last_words) or reason
    elif state == "running":
        held = _held(jobs, segments, others)
        reason = f"{held} is held: {jobs[held][-1].reason}" if held is not None else None
    if state == "running" and reason is None and seen.unpublished:
        # Of the attempt that has the run; one that ended says it in its handover.
        node = next((segment.node for segment in segments if segment.state == "running"), None)
        reason = None if node is None else f"{node}: not published: {seen.unpublished}"
    if seen.gone is not None and state not in ("not-submitted", "complete") and seen.gone.store not in (reason or ""):
        reason = f"{seen.gone.text}; {reason}" if reason else seen.gone.text
    return History(
        seen.run, state, seen.steps, step, segments, others, seen.commit, _next(dag, segments, others, step, seen, jobs), reason,
        dag.began, dag.ended, seen.staging_visible, _step_seconds(seen), dag.job,
    )  # fmt: skip


def _attempts(jobs: Mapping[str, Sequence[Job]], dag: _Dag, seen: Observed) -> dict[str, tuple[Attempt, ...]]:
    """Attempts by segment, numbered, each with its epoch where that is known."""
    began = dag.began or 0.0
    pairs = sorted(
        (
            (name, replace(attempt, earlier=job.submitted < began))
            for name, found in jobs.items()
            if SEGMENT.fullmatch(name)
            for job in found
            for attempt in job.attempts
        ),
        key=lambda pair: pair[1].began,
    )
    handed = (claim_of_handover(handover) for handover in seen.handovers.values())
    claims = [*seen.claims, *(claim for claim in handed if claim is not None)]
    epochs = epochs_of([attempt for _, attempt in pairs], claims)
    found: dict[str, list[Attempt]] = {}
    for place, (name, attempt) in enumerate(pairs):
        own = found.setdefault(name, [])
        own.append(replace(attempt, number=len(own) + 1, epoch=epochs.get(place)))
    return {name: tuple(own) for name, own in found.items()}


def _node_state(
    name: str, jobs: Sequence[Job], skipped_at: float | None, dag: _Dag, seen: Observed
) -> tuple[str, str | None]:
    """State and reason of a node in the newest submission: what an earlier one left behind counts only where its rescue file says so."""
    began = dag.began or 0.0
    newest = jobs[-1] if jobs else None
    if skipped_at is not None and skipped_at >= max(began, newest.submitted if newest else 0.0):
        return "skipped", None
    if newest is not None and newest.submitted >= began:
        state = newest.state
        if dag.ended is not None and state in ("queued", "running", "held"):
            state = "removed"  # the DAG has gone, and takes its jobs along
        return state, newest.reason
    if name in seen.done:
        return ("finished" if newest is not None else "skipped"), None
    return "waiting", None


def _step(handover: Mapping[str, Any]) -> int:
    step = handover.get("step")
    return step if isinstance(step, int) else 0


def _step_seconds(seen: Observed) -> float | None:
    if seen.commit is not None and seen.commit.step_s is not None:
        return seen.commit.step_s
    for _, handover in sorted(seen.handovers.items(), reverse=True):
        pace = handover.get("pace")
        found = pace.get("step_s") if isinstance(pace, dict) else None
        if isinstance(found, int | float) and found > 0 and handover.get("commits"):
            return float(found)
    return None


def _own_handover(segment: Segment) -> Mapping[str, Any]:
    """What its last attempt handed over at its end; empty where it did not: that of an earlier attempt says nothing of this one."""
    last = segment.attempts[-1] if segment.attempts else None
    handover = segment.handover or {}
    own = last is not None and handover.get("job_id") == last.job and handover.get("state") != "running"
    return handover if own else {}


def _failure(
    segments: Sequence[Segment], jobs: Mapping[str, Sequence[Job]], others: Mapping[str, str], said: Mapping[str, str]
) -> str | None:
    for segment in segments:
        if segment.state == "failed":
            words = _own_handover(segment).get("reason")
            return f"{segment.node}: {words or segment.reason or 'failed'}"
    for name, state in others.items():
        if state == "failed":
            words = said.get(name, "").removeprefix("segue: error: ")
            return f"{name}: {words or f'{jobs[name][-1].reason}; see logs/{name}.err'}"
    return None


# HTCondor's HoldReasonCode of a job that used more memory than it asked for.
_MEMORY_HOLD = 34


def _release(name: str, job: Job) -> str:
    """What a person has to do about a held job."""
    number = f"{job.cluster}.0"
    if job.hold_code == _MEMORY_HOLD:
        key = "memory_mb" if name.startswith("segment_") else "helper_memory_mb"
        return (
            f"{name} used more memory than it asked for: condor_qedit {number} RequestMemory MB, then condor_release {number}; "
            f"raise resources.{key} for the next submission"
        )
    return f"{name} is held: mend the cause, then condor_release {number}"


def _held(jobs: Mapping[str, Sequence[Job]], segments: Sequence[Segment], others: Mapping[str, str]) -> str | None:
    """The node that is held now, if there is one."""
    states = {**others, **{segment.node: segment.state for segment in segments}}
    return next((name for name, state in states.items() if state == "held" and jobs.get(name)), None)


def _next(
    dag: _Dag,
    segments: Sequence[Segment],
    others: Mapping[str, str],
    step: int,
    seen: Observed,
    jobs: Mapping[str, Sequence[Job]],
) -> str:
    """Commands stand at the end, as they can be typed."""
    steps, asked = seen.steps, seen.asked_steps or 0
    if seen.gone is not None and dag.state in ("queued", "running"):
        return f"bring {seen.gone.store} back: no segment goes on without it, and none begins anew"
    if seen.gone is not None and dag.state in ("failed", "removed"):
        return f"bring {seen.gone.store} back, then go on from it; without it this begins anew at step 0: {seen.submit}"
    if dag.state == "not-submitted":
        return f"submit it: {seen.submit}"
    if dag.state == "complete" and asked > steps:
        return f"run.toml asks for {asked} steps now; go on from the newest commit: {seen.submit}"
    if dag.state == "failed" and any(_superseded(segment) for segment in segments):
        # Submitting this one would take the run from the workflow that has it.
        look = f"; how far the run is: {seen.look}" if seen.staging_visible else ""
        return f"another workflow has this run: let that one go on, or end it before this one is submitted again{look}"
    if dag.state in ("complete", "failed", "removed", "held"):
        return {
            "complete": seen.result,
            "failed": f"mend the cause, then go on from the newest commit: {seen.submit}",
            "removed": f"go on from the newest commit: {seen.submit}",
            "held": f"DAGMan's own job is held; end it with condor_rm {dag.job}, or let it go on: condor_release {dag.job}",
        }[dag.state]
    held = _held(jobs, segments, others)
    if held is not None:
        return _release(held, jobs[held][-1])
    said = _going_on(segments, others, step, steps)
    if asked <= steps:
        return said
    # Without a command: it would be refused until then.
    return f"{said}; run.toml asks for {asked} steps now: submit it again once this workflow, which goes to {steps}, has ended"


def _superseded(segment: Segment) -> bool:
    """Another workflow has taken the run from this segment."""
    return segment.state == "failed" and _own_handover(segment).get("state") == "superseded"


def _going_on(segments: Sequence[Segment], others: Mapping[str, str], step: int, steps: int) -> str:
    """What comes next in a workflow that runs and in which nothing is held."""
    for segment in segments:
        if segment.state == "running" and segment.attempts[-1].cut_off:
            where = segment.attempts[-1].machine or "its machine"
            return (
                f"{segment.node} is cut off from {where}; HTCondor waits for it as long as the job's lease (40 minutes unless the pool says "
                "otherwise), then the segment goes on elsewhere"
            )
        if segment.state == "running":
            return f"{segment.node} trains to step {steps}" if step < steps else f"{segment.node} ends"
        if segment.state == "queued":
            return f"{segment.node} waits for a machine"
        if segment.state == "failed":
            if segment.attempts and segment.attempts[-1].exit_code == PERMANENT:
                return f"{segment.node} failed ({segment.reason}): no retry can help, so the workflow ends"
            return f"{segment.node} failed ({segment.reason}): it is tried again while it has retries left"
    for name, found in others.items():
        if name != "consolidate" and found in ("queued", "running"):
            return f"{name} comes before the first segment"
    if others.get("consolidate") in ("queued", "running"):
        return "consolidate writes the result"
    waiting = [segment.node for segment in segments if segment.state == "waiting"]
    if step >= steps:
        return "consolidate" if others.get("consolidate") != "finished" else "the end of the workflow"
    return (
        f"{waiting[0]} is submitted" if waiting and others.get("stage") == "finished" else "stage verifies the inputs"
    )
