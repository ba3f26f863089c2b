"""The thin writer: a workflow's files to the disk, each complete or not there; what a running DAGMan uses is not touched."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from agent.errors import BadInput, SegueError
from agent.pack import archive_name, write_archive
from agent.store.names import parse_commit, readers_order
from dagman.events import SUBMIT, read_events
from dagman.workflow import Archive, File, Workflow

_BEGINS_WITHIN_S = 60.0


def _put(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def running_dagman(workflow: Path, dag: str) -> str | None:
    """Who runs this workflow on this machine, as words: a live DAGMan's process, or its job that has not begun; None when nobody does.

    DAGMan's arguments name the .dag file; its lock file holds a process id in HTCondor 23 and a cluster in 25.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = _command(int(entry.name))
            if Path(words[0]).name == "condor_dagman" and str(workflow / dag) in words:
                return f"condor_dagman, process {entry.name}"
    own = read_events(workflow / f"{dag}.dagman.log")
    newest = max((event.cluster for event in own), default=None)
    kinds = {event.kind for event in own if event.cluster == newest}
    if kinds == {SUBMIT} and time.time() - max(event.at for event in own) < _BEGINS_WITHIN_S:
        return f"job {newest}.0, which begins"
    return None


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [""]


def write_workflow(workflow: Workflow) -> list[Path]:
    """Write all files and build the zipapps; returns their paths. SegueError when the disk refuses, BadInput when the DAG is running."""
    from agent.bundle import build_agent, build_jobs

    directory = workflow.directory
    who = running_dagman(directory, workflow.dag)
    if who is not None:
        raise BadInput(
            f"{directory}: this workflow is running ({who}); wait for it, or condor_rm its job, then generate again"
        )
    # An attempt to write that failed half-way has no job.json, but the placeholder's directory, which is made first.
    ours = (directory / "job.json").exists() or (directory / "placeholder").is_dir()
    if directory.exists() and not ours and any(directory.iterdir()):
        raise BadInput(
            f"{directory}: exists, is not empty and is no workflow directory: move it, or give another with --to"
        )
    written = []
    try:
        for sub in ("placeholder", "handovers", "logs", "scripts"):
            (directory / sub).mkdir(parents=True, exist_ok=True)
        for path in workflow.directories:
            path.mkdir(parents=True, exist_ok=True)
        for name, build in (("agent.pyz", build_agent), ("jobs.pyz", build_jobs)):
            build(directory / name)
            written.append(directory / name)
        for archive in workflow.archives:
            written.append(_pack(archive, directory))
        _put_away_handovers(workflow)
        # job.json comes last: a directory that has it has everything.
        for file in sorted(workflow.files, key=_job_last):
            (directory / file.path).parent.mkdir(exist_ok=True)
            _put(directory / file.path, file.text.encode("utf-8", errors="surrogateescape"), file.mode)
            written.append(directory / file.path)
    except OSError as error:
        raise SegueError(
            f"{error.filename or directory}: cannot write the workflow: {error.strerror}; nothing was submitted"
        ) from error
    return written


def _put_away_handovers(workflow: Workflow) -> None:
    """A store whose commits are not as far as earlier handovers say has lost them: none of these handovers may skip a segment.

    Where the store is not to be seen from here, the handovers are all that is known.
    """
    store = workflow.job.store_seen_from(workflow.directory)
    if not store.parent.parent.is_dir():
        return
    commits = [found for path in store.glob("checkpoints/[0-9]*.tar") if (found := parse_commit(path.name)) is not None]
    if commits and max(commits, key=lambda found: readers_order(*found))[0] >= workflow.job.steps:
        return
    for path in (workflow.directory / "handovers").glob("segment-*.json"):
        earlier = path.parent / "earlier"
        earlier.mkdir(exist_ok=True)
        path.replace(earlier / path.name)


def _pack(archive: Archive, directory: Path) -> Path:
    target = directory / archive.name
    if not target.exists():  # named by digest: what is there is right
        target, packed = write_archive(
            archive.entries, directory, lambda packed: archive_name(archive.name.rpartition("-")[0], packed.sha256)
        )
        if packed.sha256 != archive.sha256:
            raise SegueError(
                f"{directory}: the source of {archive.name} changed while it was packed: let it rest, then try again"
            )
    return target


def _job_last(file: File) -> bool:
    return file.path == "job.json"
