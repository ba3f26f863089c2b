"""`segue stage`: dataset, weights and code into staging, once."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click


@click.command("stage")
@click.argument("run", type=click.Path(readable=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Look and check the room, but send nothing.")
@click.option(
    "--code/--no-code",
    "with_code",
    default=None,
    help="Also put the code there.  [default: yes, unless it travels with each job from this machine]",
)
@click.option(
    "--temporary",
    type=click.Path(path_type=Path),
    help="Where archives are packed before they are sent.  [default: beside run.toml]",
)
@click.option(
    "--mounted", is_flag=True, help="Staging is mounted on this machine: write to it, not through the transfer host."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    run: Path, dry_run: bool, with_code: bool | None, temporary: Path | None, mounted: bool, as_json: bool
) -> None:
    """Put what RUN (a run.toml) needs into staging: one archive each, named by its digest.

    What is there is verified and not sent again; a broken upload goes on where it broke.
    """
    from cli.ending import clearing_up
    from cli.meter import meter
    from cli.output import duration, size
    from dagman.shipping.stage import here_is_access_point, stage
    from dagman.shipping.where import destination

    where = destination(run, mounted, inputs=True)
    code = (where.spec.code is not None and not here_is_access_point(where)) if with_code is None else with_code
    if where.host:
        click.echo(f"connecting to {where.host}", err=True)
    with clearing_up(), meter() as watch:
        report = stage(where, with_code=code, dry_run=dry_run, temporary=temporary, watch=watch)
    if as_json:
        rows = [
            {
                "name": one.name,
                "archive": one.archive,
                "sha256": one.sha256,
                "bytes": one.bytes,
                "action": one.action,
                "verified": one.verified,
                "from_bytes": one.from_bytes,
                "seconds": one.seconds,
                "note": one.note,
            }
            for one in report.inputs
        ]
        room = report.room
        click.echo(
            json.dumps(
                {
                    "run": where.spec.name,
                    "place": report.place,
                    "dry_run": report.dry_run,
                    "inputs": rows,
                    "room": {"source": room.source, "bytes": room.bytes, "items": room.items} if room else None,
                    "others": [{"archive": name, "bytes": count} for name, count in report.others],
                    "record": str(report.record),
                }
            )
        )
        return
    for one in report.inputs:
        resumed = f", {size(one.from_bytes)} of it arrived before" if one.from_bytes else ""
        took = f" in {duration(one.seconds)}" if one.seconds >= 0.1 else ""
        verified = f"; verified by {one.verified}" if one.verified else ""
        click.echo(f"{one.name}: {one.action}: {one.archive} ({size(one.bytes)}{resumed}{took}){verified}")
    for one in report.inputs:
        if one.note:
            click.echo(f"{one.name}: {one.note}", err=True)
    if where.spec.code is not None and not code:
        click.echo(
            "code: travels with each job from this machine and need not lie in staging (--code puts it there)", err=True
        )
    click.echo(f"in {report.place}/segue/_inputs", err=True)
    if report.room is not None and report.room.bytes is not None:
        items = f" and {report.room.items} items" if report.room.items is not None else ""
        click.echo(f"{report.room.source} leaves {size(max(0, report.room.bytes))}{items} after that", err=True)
    if report.others:
        total = sum(count for _, count in report.others)
        click.echo(
            f"{len(report.others)} other archives lie there ({size(total)}), of other runs or older contents", err=True
        )
    typed = shlex.quote(str(run))
    if dry_run:
        click.echo(f"next: segue stage {typed}", err=True)
    else:
        click.echo(f"next: segue submit {typed}   # on the access point, with {report.record.name} beside it", err=True)
