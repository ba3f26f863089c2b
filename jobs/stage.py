"""`jobs.pyz stage --config job.json`: before any GPU is asked for, make sure that every input is in staging and is what its digest says.

Inputs come from `segue stage`; where the jobs see the access point's disk (the embedded pool), this node packs what is missing itself.
Reading everything once here costs minutes without a GPU; a damaged dataset found in a segment would cost a GPU match each time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from agent import exit_codes
from agent.config import InputArchive, JobConfig, load
from agent.errors import SegueError
from agent.pack import DigestMismatch, archive_name, digest_of, members, write_archive
from agent.store.errors import speaking
from jobs.staging import require_staging


class NotStaged(SegueError):
    """An input is missing or damaged; no retry of this node changes that."""

    exit_code = exit_codes.PERMANENT


def in_staging(job: JobConfig) -> list[InputArchive]:
    """The inputs that must lie in staging."""
    return [entry for entry in (*job.inputs, *([job.code] if job.code else [])) if entry.travels != "plain"]


def place(job: JobConfig, entry: InputArchive) -> bool:
    """Verify one input, or pack it from its source; True when it was packed. NotStaged, SegueError, StoreUnavailable."""
    path = job.inputs_root / entry.archive
    with speaking("reading", str(path)):
        if path.is_file():
            found = digest_of(path)
            if found.sha256 == entry.sha256:
                return False
            if not entry.source:
                raise NotStaged(
                    f"{path}: input {entry.name!r} is damaged in staging (SHA-256 {found.sha256[:16]}…, wanted {entry.sha256[:16]}…): "
                    "run `segue stage` again where the data is"
                )
            print(f"stage: {path}: is damaged; it is packed again", file=sys.stderr)
    if not entry.source:
        raise NotStaged(f"{path}: input {entry.name!r} is not in staging: run `segue stage` where the data is")
    source = Path(entry.source)
    _, packed = write_archive(members(source), job.inputs_root, lambda packed: archive_name(entry.name, packed.sha256))
    if packed.sha256 != entry.sha256:
        raise NotStaged(
            f"{source}: changed since the workflow was generated (SHA-256 {packed.sha256[:16]}…, wanted {entry.sha256[:16]}…): "
            "run `segue dag` or `segue submit` again"
        )
    return True


def stage(job: JobConfig) -> dict[str, object]:
    """The whole node; what it did, as plain data. Raises as `place` does."""
    if in_staging(job):
        require_staging(job)
    packed: list[str] = []
    verified: list[str] = []
    for entry in in_staging(job):
        (packed if place(job, entry) else verified).append(entry.archive)
    return {"verified": verified, "packed": packed, "bytes": sum(entry.bytes for entry in in_staging(job))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Stage; JSON on stdout."""
    parser = argparse.ArgumentParser(prog="jobs.pyz stage", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("job.json"))
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(stage(load(options.config))))
    except DigestMismatch as error:
        raise NotStaged(str(error)) from error
    return exit_codes.OK
