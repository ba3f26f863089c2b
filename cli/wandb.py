"""`segue wandb sync RUN`: send what the trainer wrote offline, all attempts of a run as one W&B run.

The files lie in the run's store as one archive an attempt; W&B's own client sends them, in order of their start.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from agent.config import Wandb
from agent.errors import BadInput, SegueError


def unpack(archives: Sequence[Path], directory: Path) -> list[Path]:
    """The offline runs in ``archives``; members that are no plain file, or lead out, are left out."""
    found: list[Path] = []
    for archive in archives:
        target = directory / archive.stem
        target.mkdir()
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    place = Path(os.path.normpath(target / member.name))
                    data = tar.extractfile(member) if member.isreg() and target in place.parents else None
                    if data is not None:
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(data.read())
        except (OSError, tarfile.TarError) as error:
            raise SegueError(f"{archive}: cannot be unpacked ({error})") from error
        found += sorted(target.glob("wandb/offline-run-*"))
    return found


def sync_command(wandb: Wandb, runs: Sequence[Path]) -> list[str]:
    """W&B's client, told which run all of it belongs to."""
    command = [sys.executable, "-m", "wandb", "sync", "--yes", "--id", wandb.id, "--project", wandb.project]
    if wandb.entity:
        command += ["--entity", wandb.entity]
    return [*command, *map(str, runs)]


@click.group()
def command() -> None:
    """What W&B wrote offline, where the jobs had no network."""


@command.command()
@click.argument("run")
@click.option("--keep", is_flag=True, help="Leave the archives in the store afterwards.")
def sync(run: str, keep: bool) -> None:
    """Send the offline files of RUN (a run.toml, a workflow directory or a job.json)."""
    from dagman.runs import find_run
    from dagman.wandb_key import key_file

    place = find_run(run)
    job = place.job
    if job.wandb is None:
        raise BadInput(f"{run}: the run has no [wandb] table, so there is nothing to send")
    directory = place.store / "wandb"
    archives = sorted(directory.glob("*.tar")) if directory.is_dir() else []
    if not archives:
        click.echo("segue: nothing was written offline", err=True)
        return
    if importlib.util.find_spec("wandb") is None:
        raise SegueError("W&B's client is not installed here: pip install 'segue[wandb]'")
    key = key_file()
    if key is None:
        raise SegueError("there is no W&B key here: segue login")
    with tempfile.TemporaryDirectory() as temporary:
        runs = unpack(archives, Path(temporary))
        environment = {**os.environ, "WANDB_API_KEY": key.read_text(encoding="utf-8").strip()}
        code = subprocess.run(sync_command(job.wandb, runs), env=environment, stdout=sys.stderr).returncode
    if code:
        raise SegueError(f"W&B's client ended with exit code {code}; the files stay in {directory}")
    if not keep:
        for archive in archives:
            archive.unlink()
    click.echo(f"segue: sent {len(runs)} offline parts of run {job.wandb.id}", err=True)
