"""`segue pool`: a real HTCondor of one's own, without root, for trying a run before it goes to the real pool."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import click

from dagman.pool import EmbeddedPool
from dagman.pool.apptainer import container_config
from dagman.pool.apptainer import find as find_apptainer
from dagman.pool.embedded import default_directory
from dagman.pool.installation import SUITES

_directory = click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the pool lives; outside /tmp.  [default: ~/.cache/segue/pool]",
)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _settings(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.strip():
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--set")
        found[name.strip()] = value.strip()
    return found


def _binds(pairs: tuple[str, ...]) -> dict[Path, str]:
    found = {}
    for pair in pairs:
        host, _, inside = pair.rpartition(":")
        if not Path(host).is_dir() or not inside.startswith("/") or set(pair) & set(' ",'):
            raise click.BadParameter(
                f"{pair!r} is not DIRECTORY:/PLACE with a directory that exists", param_hint="--bind"
            )
        found[Path(host).resolve()] = inside
    return found


@click.group()
def command() -> None:
    """A real HTCondor of your own: daemons on the loopback interface, one directory, no root, no service."""


@command.command()
@_directory
@click.option(
    "--suite",
    "suites",
    multiple=True,
    help=f"Take HTCondor from this Debian suite, not from PATH; may be repeated. [default: PATH, then {', '.join(SUITES)}]",
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="An HTCondor parameter; may be repeated.")
@click.option(
    "--bind",
    "binds",
    multiple=True,
    metavar="DIR:PLACE",
    help="Let jobs run in containers, with this directory at PLACE in them (work/staging:/staging); may be repeated.",
)
def up(directory: Path | None, suites: tuple[str, ...], settings: tuple[str, ...], binds: tuple[str, ...]) -> None:
    """Start the pool; it runs until `segue pool down`."""
    wanted = _binds(binds)
    if EmbeddedPool(directory).running():
        _say(f"the pool in {EmbeddedPool(directory).directory} is already up")
        return
    config = container_config(find_apptainer(_say), wanted) if wanted else {}
    pool = EmbeddedPool(directory, {**config, **_settings(settings)}, suites=suites or None, report=_say)
    pool.up(tied=False)
    _say(f"next: {_pool_command('run', pool.directory)} -- condor_status")


@command.command()
@_directory
def down(directory: Path | None) -> None:
    """End the pool and every process that belongs to it, also after a crash."""
    pool = EmbeddedPool(directory, report=_say)
    was_up = pool.status().processes > 0
    pool.down()
    _say(f"the pool in {pool.directory} is down" if was_up else f"no pool was running in {pool.directory}")


@command.command()
@_directory
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def status(directory: Path | None, as_json: bool) -> None:
    """Say whether the pool runs; exit 1 when it does not."""
    found = EmbeddedPool(directory).status()
    if as_json:
        click.echo(json.dumps(json.loads(found.as_json()), indent=2))
    elif found.ready:
        click.echo(
            f"up: HTCondor {found.version} ({found.source}) in {found.directory}, {found.jobs} jobs in the queue"
        )
    elif found.processes:
        click.echo(
            f"broken: {found.processes} processes in {found.directory}, daemons: {', '.join(found.daemons) or 'none'}"
        )
    else:
        click.echo(f"down: {found.directory}")
    sys.exit(0 if found.ready else 1)


@command.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_directory
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD...")
def run(directory: Path | None, argv: tuple[str, ...]) -> None:
    """Run a command against the pool: `segue pool run -- condor_q`; its exit code is ours."""
    pool = EmbeddedPool(directory)
    if not pool.running():
        raise click.UsageError(f"no pool is running in {pool.directory}: {_pool_command('up', directory)}")
    try:
        done = pool.run(argv)
    except subprocess.SubprocessError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)


def _pool_command(verb: str, directory: Path | None) -> str:
    option = (
        f" --directory {shlex.quote(str(directory))}"
        if directory is not None and directory != default_directory()
        else ""
    )
    return f"segue pool {verb}{option}"
