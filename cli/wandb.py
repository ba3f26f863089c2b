"""`segue wandb sync RUN`: send what the trainer wrote offline, all attempts of a run as one W&B run.

The files lie in the run's store as one archive an attempt; W&B's own client sends them, in order of their start.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from agent.config import Wandb
from agent.errors import BadInput, SegueError


@dataclass(frozen=True)
class Part:
    """One attempt's archive: the offline runs that were unpacked from it, and which file it was (`_state`)."""

    archive: Path
    runs: tuple[Path, ...]
    state: tuple[int, int, int]


def _state(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def unpack(archives: Sequence[Path], directory: Path) -> list[Part]:
    """The offline runs in ``archives``; members that are no plain file, or lead out, are left out."""
    parts: list[Part] = []
    for archive in archives:
        target = directory / archive.stem
        target.mkdir()
        try:
            with archive.open("rb") as file, tarfile.open(fileobj=file) as tar:
                state = _state(os.fstat(file.fileno()))
                for member in tar:
                    place = Path(os.path.normpath(target / member.name))
                    data = tar.extractfile(member) if member.isreg() and target in place.parents else None
                    if data is not None:
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(data.read())
        except (OSError, tarfile.TarError) as error:
            raise SegueError(f"{archive}: cannot be unpacked ({error})") from error
        parts.append(Part(archive, tuple(sorted(target.glob("wandb/offline-run-*"))), state))
    return parts


def _remove(sent: Sequence[Part]) -> list[Path]:
    """Remove the archives that were sent; returns those that a running attempt has replaced since: they hold more, and stay."""
    newer = []
    for part in sent:
        with contextlib.suppress(FileNotFoundError):
            if _state(part.archive.stat()) == part.state:
                part.archive.unlink()
            else:
                newer.append(part.archive)
    return newer


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
    from agent.recipes import recipe
    from agent.wandb_label import Server, label
    from agent.wandb_run import DEFAULT_URL
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
        parts = unpack(archives, Path(temporary))
        sent = [part for part in parts if part.runs]
        runs = [run for part in sent for run in part.runs]
        secret = key.read_text(encoding="utf-8").strip()
        environment = {**os.environ, "WANDB_API_KEY": secret}
        url = job.env.get("WANDB_BASE_URL") or os.environ.get("WANDB_BASE_URL")
        if url:  # where nothing names a server, the client's own settings do
            environment["WANDB_BASE_URL"] = url
        code = _send(job.wandb, runs, environment) if runs else 0
    if code:
        raise SegueError(f"W&B's client ended with exit code {code}; the files stay in {directory}")
    if runs and (job.wandb.name or job.wandb.tags) and recipe(job.recipe).labels_wandb:
        try:
            label(Server(secret, url or DEFAULT_URL), job.wandb, job.wandb.id)
        except SegueError as error:
            click.echo(f"segue: warning: {error}", err=True)
    newer = [] if keep else _remove(sent)
    click.echo(f"segue: sent {len(runs)} offline parts of run {job.wandb.id}", err=True)
    if newer:
        click.echo(
            f"segue: {', '.join(path.name for path in newer)} was written again meanwhile and stays: its attempt runs; send it once more later",
            err=True,
        )
    empty = [part.archive.name for part in parts if not part.runs]
    if empty:
        raise SegueError(
            f"{directory}: nothing in {', '.join(empty)} can be sent (no wandb/offline-run-*), so it stays: look with `tar tf`, and remove it if it "
            "is of no use"
        )


def _send(wandb: Wandb, runs: Sequence[Path], environment: Mapping[str, str]) -> int:
    return subprocess.run(sync_command(wandb, runs), env=environment, stdout=sys.stderr).returncode
