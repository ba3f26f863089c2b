"""`segue submit`: write the workflow and give it to condor_submit_dag."""

from __future__ import annotations

import json
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
@click.option(
    "--accept-change",
    multiple=True,
    metavar="FIELD",
    help="Resume the run although this field of its configuration changed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run_toml: Path, to: Path | None, accept_change: tuple[str, ...], as_json: bool) -> None:
    """Write the workflow of RUN_TOML (or a directory with one) and submit it on this access point.

    Submitting again after a failure or a removal goes on where the run was: staging alone says where.
    """
    from dagman.foreseen import before_submitting
    from dagman.prepare import ask, prepare
    from dagman.submission import submit_dag
    from dagman.write import write_workflow

    asked = ask(run_toml)
    workflow = prepare(asked, to, accept_change)
    notes = before_submitting(workflow)
    for note in [] if as_json else notes:
        click.echo(f"{asked.spec.name}: {note}", err=True)
    write_workflow(workflow)
    cluster = submit_dag(workflow.directory / workflow.dag)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "run": asked.spec.name,
                    "directory": str(workflow.directory),
                    "dag": workflow.dag,
                    "cluster": cluster,
                    "notes": notes,
                }
            )
        )
    else:
        click.echo(
            f"{asked.spec.name}: submitted as job {cluster}.0, {asked.plan.segments} segments of class {asked.plan.queue_class} at most"
        )
        click.echo(f"next: segue status {shlex.quote(str(to or run_toml))}", err=True)
