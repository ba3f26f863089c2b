"""`segue plan`: what a run.toml means, before anything is written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click


@click.command()
@click.argument("run_toml", type=click.Path(readable=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run_toml: Path, as_json: bool) -> None:
    """Say how many segments RUN_TOML (or a directory with one) needs, in which class, on which GPUs."""
    from cli.output import console, duration, size, table
    from dagman.foreseen import all_refused, foresee_or_say, needed
    from dagman.prepare import ask
    from dagman.presets import warnings
    from dagman.room import told, too_much

    asked = ask(run_toml)
    plan, spec, site = asked.plan, asked.spec, asked.site
    found, said = foresee_or_say(asked)
    room = None if plan.moving else needed(asked)
    notes = [*said, *(too_much(asked, room) if room else ()), *warnings(asked)]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "run": spec.name,
                    "site": site.name,
                    "steps": spec.steps,
                    "reached": found.reached,
                    "class": plan.queue_class,
                    "limit_s": plan.limit_s,
                    "margin_s": plan.margin_s,
                    "usable_s": plan.usable_s,
                    "steps_per_segment": plan.steps_per_segment,
                    "segments": plan.segments,
                    "needed": plan.needed,
                    "reserve": plan.reserve,
                    "training_s": plan.training_s,
                    "pace": vars(plan.pace),
                    "save_interval": plan.save_interval,
                    "gpus": [
                        {"name": g.name, "count": g.machines * g.per_machine, "memory_mb": g.memory_mb}
                        for g in plan.gpus
                    ],
                    "staging": None if plan.moving else str(asked.staging),
                    "checkpoint_exit": vars(plan.moving) if plan.moving else None,
                    "room": room and {**vars(room), "bytes": room.bytes},
                    "refused": all_refused(found),
                    "warnings": notes,
                }
            )
        )
        return
    out = console()
    share = site.classes[plan.queue_class].share
    out.print(
        f"{spec.name}: {spec.steps} steps at {site.title}, class {plan.queue_class} ({duration(plan.limit_s)}, {share})"
    )
    pace = plan.pace
    out.print(
        f"  one segment: {duration(plan.limit_s)} less margin {duration(plan.margin_s)}, start-up {duration(pace.startup_s)}, restore "
        f"{duration(pace.restore_s)}, save {duration(pace.save_s)}, publish {duration(pace.publish_s)} = {duration(plan.usable_s)} of training"
    )
    out.print(
        f"  {plan.steps_per_segment} steps of {duration(pace.step_s)} a segment: {_counted(plan.needed, 'segment')}, "
        f"and {plan.reserve} in reserve that cost nothing unused"
    )
    out.print(
        f"  about {duration(plan.training_s)} of machine time, and the queue {'once' if plan.needed == 1 else f'{plan.needed} times'}"
    )
    if found.reached is not None and found.reached < spec.steps:
        out.print(f"  goes on from step {found.reached}: {spec.steps - found.reached} of {spec.steps} steps are left")
    if room is not None:
        out.print(f"  checkpoints in {asked.staging / 'segue' / spec.name}")
        total = (
            "their size is not known yet (budget.checkpoint_gb)"
            if room.bytes is None
            else f"{size(room.bytes)} together"
        )
        limit = f"; {room.limit}: {size(room.limit_bytes)}" if room.limit_bytes is not None else ""
        out.print(f"  at most {told(room)} in staging at once, {total}{limit}")
    elif plan.moving is not None:
        moving = plan.moving
        out.print(
            f"  no staging is mounted: a checkpoint every {moving.steps} steps, for which the job restarts (about {duration(moving.restart_s)} each, "
            f"{moving.share:.0%} of the slot's time); HTCondor stores it at the access point (SPOOL), so its quota there must hold "
            f"{spec.retention.keep + 1} checkpoints twice"
        )
    if plan.gpus:
        out.print("")
        rows = [
            [g.name, f"{g.memory_mb / 1024:.0f} GB", f"{g.capability:g}", str(g.machines * g.per_machine)]
            for g in plan.gpus
        ]
        out.print(table(["GPUs that fit", "memory", "capability", "count"], rows))
    for note in notes:
        click.echo(f"segue: warning: {note}", err=True)
    run = shlex.quote(str(run_toml))
    if found.running:
        click.echo(
            f"next: segue status {run}   # what runs; what was planned here counts once that has ended", err=True
        )
    elif found.reached is not None and found.reached >= spec.steps:
        moved = spec.agent.checkpoint_exit  # then the result is on this machine already
        result = f"the result is in {found.store / 'final'};" if moved else f"segue pull {run}   #"
        click.echo(f"next: {result} or raise `steps` and submit again", err=True)
    elif found.unstaged and not any(one.staging_too for one in found.refused):
        click.echo(f"next: segue stage {run}   # where the data is; then segue submit {run}", err=True)
    elif found.refused:
        click.echo(f"next: correct what `segue submit` will refuse, then segue plan {run}", err=True)
    elif found.changed:
        click.echo(f"next: segue submit {run} {found.flags}   # if the change is meant", err=True)
    else:
        click.echo(f"next: segue submit {run}   # or segue dag {run} to look at the files first", err=True)


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
