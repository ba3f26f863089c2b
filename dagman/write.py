"""The thin writer: a workflow's files to the disk, each complete or not there; what a running DAGMan uses is not touched."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from pathlib import Path

from agent.errors import BadInput, SegueError
from agent.pack import archive_name, write_archive
from agent.store.names import parse_commit, readers_order
from dagman.events import read_events
from dagman.history import dag_state
from dagman.workflow import PLACEHOLDER, Archive, File, Workflow

# As agent.pack.archive_name has it.
_ARCHIVE = re.compile(r".+-[0-9a-f]{16}\.tar")


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
    """Who runs this workflow, and what to do about it, as words; None when nobody does.

    A live DAGMan is told by the .dag file that its arguments name, relative to where it was submitted. One that is queued or held has no
    process, here or anywhere, but begins as soon as HTCondor lets it: only its own log tells of it.
    """
    log = workflow / f"{dag}.dagman.log"
    own = dag_state(read_events(log))
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _runs(entry, workflow / dag, own.state == "running"):
            # After its end, or a removal, the log's job is not the one to remove.
            known = own.state in ("queued", "running", "held")
            return f"(condor_dagman, process {entry.name}); wait for it, or condor_rm {own.job if known else 'its job'}"
    if own.state not in ("queued", "held"):
        return None
    go_on = "wait for it" if own.state == "queued" else f"condor_release {own.job} and wait for it"
    return (
        f"(DAGMan's job {own.job} is {own.state}); {go_on}, or condor_rm {own.job} (where HTCondor knows that job no more: "
        f"rm {shlex.quote(str(log))})"
    )


def refused_while_running(workflow: Path, dag: str) -> str | None:
    """Why this workflow cannot be generated now, None when nobody runs it."""
    who = running_dagman(workflow, dag)
    return None if who is None else f"{workflow}: this workflow is running {who}, then generate again"


def _runs(process: Path, dag: Path, begun: bool) -> bool:
    """Whether this entry of /proc is a DAGMan with this .dag file. HTCondor starts it under a name of the job's own, too.

    ``begun``: its log says that it runs, which is believed where this process may not see that one's directory.
    """
    try:
        program, *words = (process / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
    except OSError:
        return False
    if Path(program).name != "condor_dagman" and not Path(program).name.startswith("condor_scheduniv_exec."):
        return False
    for word in words:
        if Path(word).name == dag.name:
            try:
                if (process / "cwd" / word).samefile(dag):
                    return True
            except PermissionError:  # another user's, or one of another user namespace, as a pool of one's own has them
                return begun
            except OSError:  # the file was removed under DAGMan
                return word == str(dag)
    return False


def check_unoccupied(directory: Path) -> None:
    """BadInput when something else than a workflow lies there."""
    # An attempt to write that failed half-way has no job.json, but the placeholder's directory, which is made first.
    ours = (directory / "job.json").exists() or (directory / "placeholder").is_dir()
    if directory.is_dir() and not ours and any(directory.iterdir()):
        raise BadInput(
            f"{directory}: exists, is not empty and is no workflow directory: move it, or give another with --to"
        )


def write_workflow(workflow: Workflow) -> list[Path]:
    """Write all files and build the zipapps; returns their paths. SegueError when the disk refuses, BadInput when the DAG is running."""
    from agent.bundle import build_agent, build_jobs

    directory = workflow.directory
    running = refused_while_running(directory, workflow.dag)
    if running is not None:
        raise BadInput(running)
    check_unoccupied(directory)
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
        newest = _newest_commit(workflow)
        _put_away_handovers(workflow, newest)
        # job.json comes last: a directory that has it has everything.
        for file in sorted(workflow.files, key=_job_last):
            (directory / file.path).parent.mkdir(exist_ok=True)
            told = _knowing(file.text, newest) if file.path == PLACEHOLDER else file.text
            _put(directory / file.path, told.encode("utf-8", errors="surrogateescape"), file.mode)
            written.append(directory / file.path)
        _drop_archives(workflow)
    except OSError as error:
        raise SegueError(
            f"{error.filename or directory}: cannot write the workflow: {error.strerror}; nothing was submitted"
        ) from error
    return written


def _newest_commit(workflow: Workflow) -> str:
    """The commit that a restore would take first, as seen from here; empty without one."""
    store = workflow.job.store_seen_from(workflow.directory)
    names = [path.name for path in store.glob("checkpoints/[0-9]*.tar") if parse_commit(path.name) is not None]
    return max(names, key=lambda name: readers_order(*(parse_commit(name) or (0, 0))), default="")


def _knowing(placeholder: str, commit: str) -> str:
    """The placeholder that travels with the first job, with the commit that it must find: the PRE script names later ones."""
    return json.dumps({**json.loads(placeholder), "known": commit}) + "\n" if commit else placeholder


def _put_away_handovers(workflow: Workflow, newest: str) -> None:
    """A store whose commits are not as far as earlier handovers say has lost them: none of these handovers may skip a segment.

    Where the store is not to be seen from here, the handovers are all that is known.
    """
    store = workflow.job.store_seen_from(workflow.directory)
    if not store.parent.parent.is_dir():
        return
    found = parse_commit(newest)
    if found is not None and found[0] >= workflow.job.steps:
        return
    for path in (workflow.directory / "handovers").glob("segment-*.json"):
        earlier = path.parent / "earlier"
        earlier.mkdir(exist_ok=True)
        path.replace(earlier / path.name)


def _drop_archives(workflow: Workflow) -> None:
    """Archives of earlier code and inputs go once nothing names them: each change of the code would leave one more."""
    named = {archive.name for archive in workflow.archives}
    for path in workflow.directory.glob("*.tar"):
        if _ARCHIVE.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)


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
