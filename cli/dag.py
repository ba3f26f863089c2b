"""`segue dag`: write the workflow, submit nothing."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command()
@click.argument("run_toml", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    help="Workflow directory (default: beside run.toml, named as the run).",
)
@click.option("--dry-run", is_flag=True, help="Print the files instead of writing them.")
@click.option(
    "--accept-change",
    multiple=True,
    metavar="FIELD",
    help="Resume the run although this field of its configuration changed.",
)
def command(run_toml: Path, to: Path | None, dry_run: bool, accept_change: tuple[str, ...]) -> None:
    """Write the DAGMan workflow of RUN_TOML (or a directory with one); `condor_submit_dag` on the .dag file runs it."""
    from dagman.foreseen import before_submitting, begins_anew
    from dagman.prepare import ask, prepare
    from dagman.submission import by_hand
    from dagman.write import write_workflow

    workflow = prepare(ask(run_toml), to, accept_change, dry_run)
    if dry_run:
        for file in workflow.files:
            click.echo(f"==> {workflow.directory / file.path}")
            # A checkout's diff may hold any bytes: as in the file, whatever the terminal's encoding.
            click.echo(file.text.encode("utf-8", errors="surrogateescape"))
        return
    anew = begins_anew(workflow)  # writing it puts away the handovers that know
    write_workflow(workflow)
    click.echo(str(workflow.directory / workflow.dag))
    for note in [*([anew] if anew else []), *before_submitting(workflow)]:
        click.echo(f"{workflow.job.run}: {note}", err=True)
    again = [str(run_toml), *(["--to", str(to)] if to else []), *(f"--accept-change={name}" for name in accept_change)]
    click.echo(f"next: {by_hand(workflow.directory / workflow.dag)}   # or segue submit {shlex.join(again)}", err=True)
