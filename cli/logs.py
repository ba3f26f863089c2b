"""`segue logs`: what the trainer and the agent said, of any attempt, also of evicted ones."""

from __future__ import annotations

import click


@click.command()
@click.argument("run")
@click.option(
    "--attempt",
    type=int,
    metavar="N",
    help="Attempt by its epoch, as `segue logs --list`, `segue commits` and `segue status --json` number them (default: the newest that has ended).",
)
@click.option("--segment", type=int, metavar="N", help="The newest attempt of this segment that has ended.")
@click.option("--list", "listing", is_flag=True, help="List the logs that there are.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing while the attempt runs.")
def command(run: str, attempt: int | None, segment: int | None, listing: bool, follow: bool) -> None:
    """Print a log of RUN (a run.toml or a workflow directory)."""
    from dagman.logs import follow_running, list_logs, read_log, told
    from dagman.runs import find_run

    place = find_run(run)
    if listing:
        for entry in list_logs(place):
            click.echo(f"{entry.epoch if entry.epoch is not None else '-'}\t{entry.node}\t{entry.path}")
        return
    if follow:
        for text in follow_running(place, attempt, segment):
            click.echo(text, nl=False)
        return
    note = told(place, segment) if attempt is None else None
    if note is not None:
        click.echo(f"segue: {note}", err=True)
    for text in read_log(place, attempt, segment):
        click.echo(text, nl=False)
