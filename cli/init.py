"""`segue init`: a commented run.toml to start from."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path

import click

from agent.errors import BadInput, SegueError


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--site", default="chtc", show_default=True, help="Site to run at.")
@click.option("--preset", help="Start from a preset, e.g. pi0-lora.")
@click.option("--name", help="Name of the run (default: the directory's).")
def command(directory: Path, site: str, preset: str | None, name: str | None) -> None:
    """Write DIRECTORY/run.toml, commented. Refuses to replace one."""
    from dagman.paths import absolute
    from dagman.presets import initial_text
    from dagman.spec import name_problem

    chosen = name or directory.absolute().name
    wrong = name_problem(chosen)
    if wrong is not None:
        raise BadInput(f"{chosen!r} cannot name a run ({wrong}): give a name with --name, or make another directory")
    text = initial_text(chosen, _site(site, directory), preset, absolute(directory))
    target = directory / "run.toml"
    if target.exists():
        raise BadInput(f"{target}: exists already; remove it, or name another directory")
    if directory.exists() and not directory.is_dir():
        raise BadInput(f"{directory}: is a file; name a directory, which is made when it is not there")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise SegueError(f"{target}: cannot be written: {error.strerror}") from error
    click.echo(str(target))
    click.echo(f"next: edit it, then segue plan {shlex.quote(str(target))}", err=True)


def _site(site: str, directory: Path) -> str:
    """As run.toml must say it: a site file is named from where the command was typed, and looked up from where run.toml will lie."""
    from dagman.paths import absolute

    if not site.endswith(".toml"):
        return site
    path, here = absolute(Path(site)), absolute(directory)
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
