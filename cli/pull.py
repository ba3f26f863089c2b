"""`segue pull`: a checkpoint from staging to this machine, verified and unpacked."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

_MOST_DIGITS = 18
"""Of a step in a commit's name."""


def _step(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value in ("final", "newest") or (value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS):
        return value
    raise click.BadParameter(f"{value[:40]!r} is neither a number of steps nor final or newest")


@click.command("pull")
@click.argument("run", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Directory that gets checkpoints/.  [default: the current one]",
)
@click.option(
    "--step",
    default="final",
    show_default=True,
    callback=_step,
    metavar="N|final|newest",
    help="The commit of this step, or what consolidation left.",
)
@click.option(
    "--mounted", is_flag=True, help="Staging is mounted on this machine: read it, not through the transfer host."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: Path, to: Path, step: str, mounted: bool, as_json: bool) -> None:
    """Bring a checkpoint of RUN (a run.toml or a workflow directory) here; every byte is verified.

    It lies in checkpoints/CONFIG/EXP/LABEL as OpenPI's server takes it, in checkpoints/RUN/STEP for other recipes.
    """
    from cli.ending import clearing_up
    from cli.meter import meter
    from cli.output import size
    from dagman.served import SERVED
    from dagman.shipping.pull import pull
    from dagman.shipping.where import destination
    from jobs.archives import unpack

    where = destination(run, mounted)
    if where.host:
        click.echo(f"connecting to {where.host}", err=True)
    with clearing_up(), meter() as watch:
        found = pull(where, unpack, to=to, step=step, watch=watch)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "run": where.spec.name,
                    "recipe": where.spec.trainer.recipe,
                    "directory": str(found.target),
                    "archive": found.archive,
                    "step": found.step,
                    "label": found.label,
                    "epoch": found.epoch,
                    "bytes": found.bytes,
                    "action": found.action,
                    "from_bytes": found.from_bytes,
                    "note": found.note,
                }
            )
        )
        return
    if found.note:
        click.echo(found.note, err=True)
    how = {
        "there": "was there already, every byte is verified",
        "fetched": "fetched and verified" + (f", from byte {found.from_bytes} on" if found.from_bytes else ""),
        "unpacked": "unpacked and verified",
    }[found.action]
    click.echo(f"{found.target}")
    click.echo(f"step {found.step} of {where.spec.steps}, {size(found.bytes)} ({found.archive}): {how}", err=True)
    if where.spec.trainer.recipe in SERVED:
        click.echo(f"next: segue serve {shlex.quote(str(run))} --dir {shlex.quote(str(found.target))}", err=True)
