"""From what run.toml names to archives in staging: digests of datasets and assets, remembered so that nothing large is read twice.

The record beside run.toml (`<name>.staged.json`) travels with it: `segue stage` writes it where the data is, and the access point, which
does not have the data, generates the workflow from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.config import InputArchive
from agent.errors import BadInput, SegueError
from agent.pack import Member, archive_name, members, pack

FORMAT = 1


@dataclass(frozen=True)
class InputRequest:
    """One input: its name, where it is (absolute), and where jobs find it, relative to their scratch directory."""

    name: str
    source: Path
    target: str


@dataclass(frozen=True)
class Recorded:
    """What was found out about a source: ``state`` is a digest of its names, sizes and times, to notice that it changed."""

    archive: str
    sha256: str
    bytes: int
    source: str
    state: str
    staged: str = ""
    about: str = ""


def state_of(entries: Sequence[Member]) -> str:
    """A digest over names, sizes and times: equal as long as nobody wrote."""
    found = hashlib.sha256()
    for entry in entries:
        time = entry.path.stat().st_mtime_ns if entry.kind == "file" else 0
        found.update(f"{entry.name}\0{entry.kind}\0{entry.size}\0{time}\0{entry.executable}\0{entry.link}\n".encode())
    return found.hexdigest()


def read_record(path: Path) -> dict[str, Recorded]:
    """What was recorded, by input name; empty when there is no record. BadInput when it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = {name: Recorded(**entry) for name, entry in data["inputs"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}: is no record of staged inputs ({error}): remove it and run `segue stage` again"
        ) from error
    return found


def write_record(path: Path, record: dict[str, Recorded]) -> None:
    """Replace the record. SegueError when the disk refuses."""
    data: dict[str, Any] = {"format": FORMAT, "inputs": {name: asdict(entry) for name, entry in sorted(record.items())}}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SegueError(f"{path}: cannot be written: {error.strerror}") from error


def examine(
    name: str,
    source: Path,
    entries: Sequence[Member],
    record: dict[str, Recorded],
    progress: Callable[[int], None] | None = None,
    about: str = "",
) -> Recorded:
    """The archive that ``source`` makes; taken from the record when nothing changed since, else computed by reading everything once."""
    state, before = state_of(entries), record.get(name)
    if before is not None and before.state == state and before.about == about:
        return before
    packed = pack(entries, progress=progress)
    archive = archive_name(name, packed.sha256)
    staged = before.staged if before is not None and before.archive == archive else ""
    return Recorded(archive, packed.sha256, packed.bytes, str(source), state, staged, about)


def resolve(request: InputRequest, record: dict[str, Recorded]) -> tuple[InputArchive, Recorded]:
    """Name and digest of one input, from its source where that is here, else from the record.

    Raises BadInput when neither is.
    """
    if request.source.exists():
        found = examine(request.name, request.source, members(request.source), record)
    else:
        known = record.get(request.name)
        if known is None:
            raise BadInput(
                f"data: {request.source}: {request.name} is not on this machine, and no record says that it was staged: run `segue stage` "
                "where it is, and bring the record that it writes beside run.toml along"
            )
        found = known
    return InputArchive(
        request.name,
        found.archive,
        found.sha256,
        found.bytes,
        request.target,
        str(request.source) if request.source.exists() else "",
    ), found


def resolve_inputs(requests: Sequence[InputRequest], record_path: Path) -> list[InputArchive]:
    """All inputs of a run; the record is kept up to date. Raises BadInput as above."""
    record = read_record(record_path)
    resolved, new = [], dict(record)
    for request in requests:
        archive, found = resolve(request, record)
        resolved.append(archive)
        new[request.name] = found
    if new != record:
        # Only a cache here: run.toml may lie where nothing can be written.
        with contextlib.suppress(SegueError):
            write_record(record_path, new)
    return resolved
