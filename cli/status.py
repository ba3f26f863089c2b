"""`segue status`: where a run is, read from event log, handovers and staging."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dagman.history import History


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: str, as_json: bool) -> None:
    """Show where RUN is (a run.toml or a workflow directory). Reads files only; the queue is never asked."""
    from cli.output import console, duration, size, table
    from dagman.observed import read_history
    from dagman.runs import find_run
    from dagman.status import as_data

    place = find_run(run)
    history = read_history(place)
    now = time.time()
    if as_json:
        click.echo(json.dumps(as_data(history, now)))
        return
    out = console()
    share = 100 * min(history.step, history.steps) / history.steps
    out.print(f"{history.run}: {history.state}, step {history.step} of {history.steps} ({share:.0f}%)", markup=False)
    if history.reason:
        out.print(f"  {history.reason}", markup=False)
    if history.state in ("queued", "running") and history.left_s and history.step_s:
        out.print(
            f"  {duration(history.step_s)} a step: about {duration(history.left_s)} of training left, and the queue"
        )
    rows = []
    skipped = [s.number for s in history.segments if s.state == "skipped"]
    waiting = [s.number for s in history.segments if s.state == "waiting"]
    others = [f"{name} {state}" for name, state in history.nodes.items() if state not in ("finished", "waiting")]
    for segment in history.segments:
        if segment.state in ("skipped", "waiting") and not segment.attempts:
            continue
        handover = segment.handover or {}
        last = segment.attempts[-1] if segment.attempts else None
        spent = sum((a.ended or now) - a.began for a in segment.attempts)
        rows.append(
            [
                segment.node,
                segment.queue_class,
                segment.state,
                str(len(segment.attempts)),
                str(segment.evictions),
                str(handover.get("step", "")),
                duration(spent) if segment.attempts else "",
                (last.machine or "") if last else "",
            ]
        )
    if rows:
        out.print(table(["segment", "class", "state", "attempts", "evictions", "step", "ran", "machine"], rows))
    if others:
        out.print(f"  {', '.join(others)}")
    if skipped:
        out.print(f"  skipped: {_ranges(skipped)} (the run was complete)")
    if waiting:
        out.print(f"  {'not needed' if history.state == 'complete' else 'not yet submitted'}: {_ranges(waiting)}")
    if history.commit is not None:
        out.print(
            f"  newest commit {history.commit.name}, {size(history.commit.bytes)}, {duration(max(0.0, now - history.commit.at))} old"
        )
    elif not history.staging_visible:
        out.print("  staging is not mounted here: steps come from handovers")
    elif place.job.checkpoint_exit:
        out.print("  no commit here yet")
    else:
        out.print("  no commit yet")
    away = _with_htcondor(history) if place.job.checkpoint_exit else None
    if away is not None:
        out.print(
            f"  what {away} has saved is with HTCondor (SPOOL) until it ends, and counts here from then on",
            markup=False,
        )
    click.echo(f"next: {history.next}", err=True)


def _with_htcondor(history: History) -> str | None:
    """The segment whose checkpoints HTCondor keeps for its next start: it brings them to the workflow directory only at the end."""
    for segment in history.segments:
        if segment.state in ("running", "queued", "held") and any(not one.earlier for one in segment.attempts):
            return segment.node
    return None


def _ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}" if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
