"""`segue image`: build, push or convert the training image; prints the commands where Docker is not."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import click

from agent.errors import BadInput, SegueError
from dagman.images import apptainer_command, openpi_source
from dagman.paths import absolute

_openpi = click.option(
    "--openpi",
    "checkout",
    type=click.Path(path_type=Path),
    envvar="OPENPI_DIR",
    help="OpenPI checkout that the image is for.  [default: $OPENPI_DIR]",
)
_print = click.option("--print", "only_print", is_flag=True, help="Print the command on stdout and run nothing.")


@click.group()
def command() -> None:
    """Build or push the training image. Code travels with each run: an image changes with its dependencies only."""


@command.command()
@_openpi
@click.option("--repository", default="openpi", show_default=True, help="Name of the image, as ACCOUNT/NAME.")
@click.option("--tag", help="Tag of the image.  [default: a digest of its dependencies]")
@_print
def build(checkout: Path | None, repository: str, tag: str | None, only_print: bool) -> None:
    """Build the image with Docker, for linux/amd64; its name is printed on stdout."""
    source = openpi_source(_given(checkout))
    image = f"{repository}:{tag or source.tag()}"
    _run(source.build_command(image), only_print)
    if not only_print:
        click.echo(image)
        click.echo(f"next: segue image push {image}", err=True)


@command.command()
@click.argument("image")
@_print
def push(image: str, only_print: bool) -> None:
    """Push IMAGE to its registry."""
    if ":" not in image.rpartition("/")[2]:
        raise BadInput(
            f"{image} has no tag: jobs must name one image for ever, so push NAME:TAG as `segue image build` prints it"
        )
    _run(["docker", "push", image], only_print)
    if not only_print:
        click.echo(f'next: [container] image = "docker://{image}" in run.toml', err=True)


@command.command()
@_openpi
@click.option("--definition", type=click.Path(path_type=Path), help="Definition file.  [default: OpenPI's]")
@click.option(
    "--to", "target", type=click.Path(path_type=Path), required=True, help="FILE.sif, or a directory: a sandbox."
)
@_print
def sif(checkout: Path | None, definition: Path | None, target: Path, only_print: bool) -> None:
    """Build an Apptainer image without Docker; Apptainer is fetched when it is not here."""
    # Apptainer and apt are not needed to print a command.
    from cli.ending import clearing_up
    from dagman.pool.apptainer import find, mirror_arguments

    arguments: dict[str, str] = {}
    if definition is None:
        source = openpi_source(_given(checkout))
        definition, arguments = source.definitions / "openpi.def", source.apptainer_arguments()
    elif not definition.is_file():
        raise BadInput(f"there is no definition file {definition}")
    elif "{{ MIRROR }}" in definition.read_text():
        arguments = mirror_arguments()
    target = absolute(target).resolve()
    if target.exists():
        raise BadInput(f"{target} exists: remove it or choose another name with --to")
    if only_print:
        click.echo(shlex.join(apptainer_command(definition, target, arguments, target.suffix != ".sif")))
        return
    with clearing_up():
        find(_say).build(definition, target, arguments, _say)
    click.echo(target)
    click.echo(f'next: [container] image = "{target}" in run.toml', err=True)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _given(checkout: Path | None) -> Path:
    if checkout is None:
        raise BadInput("no OpenPI checkout: give --openpi DIRECTORY or set OPENPI_DIR")
    return checkout


def _run(argv: list[str], only_print: bool) -> None:
    if only_print:
        click.echo(shlex.join(argv))
        return
    if shutil.which(argv[0]) is None:
        raise SegueError(f"{argv[0]} is not on this machine; where it is, run: {shlex.join(argv)}")
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise SegueError(f"{' '.join(argv[:2])} failed with exit code {done.returncode}; its words are above")
