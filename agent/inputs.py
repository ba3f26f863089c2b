"""Inputs and code come from staging as archives named by their digest; they are unpacked into the scratch directory once."""

from __future__ import annotations

from pathlib import Path

from agent.config import InputArchive, JobConfig
from agent.errors import BadInput, SegueError


class InputMissing(SegueError):
    """An input archive is not in staging (or not readable now)."""


class DamagedOnTheWay(SegueError):
    """An archive that HTCondor brought is not what its digest promises; the next transfer may be."""


def wanted(job: JobConfig) -> list[InputArchive]:
    """All archives that this job needs in scratch."""
    return [*job.inputs, *([job.code] if job.code is not None else [])]


def _unpack(archive: Path, target: Path, sha256: str, temporary: Path) -> None:
    """As ``agent.pack.unpack``; what was found damaged is read once more, from the disk: a bad read is not a bad archive."""
    from agent.pack import DigestMismatch, unpack

    try:
        unpack(archive, target, sha256, temporary)
    except DigestMismatch:
        from agent.store.fs import PosixFileSystem

        with archive.open("rb") as file:
            PosixFileSystem().forget(file.fileno())
        unpack(archive, target, sha256, temporary)


def fetch(job: JobConfig, scratch: Path) -> list[str]:
    """Unpack what is not there yet; returns the targets.

    Raises InputMissing, StoreUnavailable when staging is away, BadInput for a target outside scratch, DamagedOnTheWay, and what ``unpack`` raises.
    """
    placed = []
    for entry in wanted(job):
        target = (scratch / entry.target).resolve()
        if scratch.resolve() not in target.parents:
            raise BadInput(
                f"job.json: input {entry.name!r} has target {entry.target!r}, which is outside the job's directory"
            )
        mark = scratch / ".segue" / "inputs" / entry.sha256
        if mark.exists() and target.exists():
            continue
        archive = scratch / entry.archive  # transferred by HTCondor where no staging is mounted
        if not archive.is_file():
            archive = job.inputs_root / entry.archive
        if not archive.is_file():
            if not job.checkpoint_exit and not job.store_root.parent.is_dir():  # it was there when the run was claimed
                from agent.store.errors import StoreUnavailable

                raise StoreUnavailable(
                    f"{archive}: staging has gone away: {job.store_root.parent} is not there any more"
                )
            where = "with the job (workflow directory)" if entry.travels == "plain" else "in staging"
            raise InputMissing(
                f"{archive}: input {entry.name!r} is not {where}; `segue stage` and `segue dag` put it there"
            )
        from agent.pack import DigestMismatch

        mark.parent.mkdir(parents=True, exist_ok=True)
        try:
            _unpack(archive, target, entry.sha256, mark.with_suffix(".unpacking"))
        except DigestMismatch as error:
            if archive.parent != scratch:
                raise
            raise DamagedOnTheWay(
                f"{archive.name}: input {entry.name!r} was damaged on its way to this machine; another transfer may do better ({error})"
            ) from error
        mark.touch()
        if archive.parent == scratch:
            archive.unlink()  # its room on the disk is needed, and the job's output is listed by name
        placed.append(entry.target)
    from agent.norm_stats import bring

    return [*placed, *bring(job, scratch)]
