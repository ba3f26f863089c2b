"""A run's history as the JSON object that scripts read (`segue status --json`)."""

from __future__ import annotations

from typing import Any

from dagman.attempts import Attempt
from dagman.history import History, Segment


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "job": attempt.job,
        "earlier": attempt.earlier,
        "epoch": attempt.epoch,
        "outcome": attempt.outcome,
        "exit_code": attempt.exit_code,
        "reason": attempt.reason,
        "machine": attempt.machine,
        "slot": attempt.slot,
        "began": attempt.began,
        "ended": attempt.ended,
    }


def _segment(segment: Segment) -> dict[str, Any]:
    handover = segment.handover or {}
    return {
        "number": segment.number,
        "node": segment.node,
        "class": segment.queue_class,
        "state": segment.state,
        "evictions": segment.evictions,
        "step": handover.get("step"),
        "reason": segment.reason or handover.get("reason"),
        "handover": segment.handover,
        "attempts": [_attempt(attempt) for attempt in segment.attempts],
    }


def as_data(history: History, now: float) -> dict[str, Any]:
    """Everything of the history; ``now`` (Unix seconds) is for ages."""
    commit = history.commit
    return {
        "format": 1,
        "run": history.run,
        "state": history.state,
        "reason": history.reason,
        "dag_job": history.dag_job,
        "step": history.step,
        "steps": history.steps,
        "evictions": history.evictions,
        "attempts": sum(len(segment.attempts) for segment in history.segments),
        "last_commit": commit.name if commit else None,
        "last_commit_step": commit.step if commit else None,
        "last_commit_age_s": round(max(0.0, now - commit.at), 3) if commit else None,
        "last_commit_bytes": commit.bytes if commit else None,
        "step_s": history.step_s,
        "left_s": history.left_s,
        "staging_visible": history.staging_visible,
        "began": history.began,
        "ended": history.ended,
        "nodes": dict(history.nodes),
        "segments": [_segment(segment) for segment in history.segments],
        "next": history.next,
    }
