"""From what run.toml names to archives in staging: digests of datasets and assets, remembered so that nothing large is read twice.

The record beside run.toml (`<name>.staged.json`) travels with it: `segue stage` writes it where the data is, and the access point, which
does not have the data, generates the workflow from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from agent.config import InputArchive
from agent.errors import BadInput, SegueError
from agent.pack import Member, archive_name, members, pack

FORMAT = 1
_ARCHIVE = re.compile(r"[^/\0]+\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    """A digest over names, sizes and times: equal as long as nobody wrote. SegueError when a file has gone since it was listed."""
    found = hashlib.sha256()
    for entry in entries:
        try:
            time = entry.path.stat().st_mtime_ns if entry.kind == "file" else 0
        except OSError as error:
            raise SegueError(
                f"{entry.path}: changes while it is looked at ({error.strerror}): let it rest, then try again"
            ) from error
        line = f"{entry.name}\0{entry.kind}\0{entry.size}\0{time}\0{entry.executable}\0{entry.link}\n"
        found.update(line.encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def read_record(path: Path) -> dict[str, Recorded]:
    """What was recorded, by input name; empty when there is no record. BadInput when it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = {str(name): _recorded(entry) for name, entry in data["inputs"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}: is no record of staged inputs ({error}): remove it and run `segue stage` again"
        ) from error
    return found


def _recorded(entry: Mapping[str, Any]) -> Recorded:
    """One entry, checked; what a newer segue adds is passed over. Raises ValueError, KeyError, TypeError, AttributeError."""
    known = {field.name for field in fields(Recorded)}
    found = Recorded(**{key: value for key, value in entry.items() if key in known})
    texts = (found.archive, found.sha256, found.source, found.state, found.staged, found.about)
    if not all(isinstance(text, str) for text in texts) or type(found.bytes) is not int or found.bytes < 0:
        raise ValueError("a field has the wrong type")
    if not _ARCHIVE.fullmatch(found.archive) or not _SHA256.fullmatch(found.sha256):
        raise ValueError(f"{found.archive!r} is no name of an archive, or {found.sha256!r} no SHA-256")
    return found


def same_source(known: Recorded | None, source: Path) -> bool:
    """Whether a record may stand for a source that is not here: directories differ between machines, the last name does not."""
    return known is not None and Path(known.source).name == source.name


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


class NotHere(BadInput):
    """A source that is not on this machine, and that nobody has staged as far as is known."""


def recorded(request: InputRequest, record: Mapping[str, Recorded]) -> Recorded:
    """What the record says of a source that is not on this machine. Raises NotHere."""
    known = record.get(request.name)
    if known is None or not same_source(known, request.source):
        raise NotHere(
            f"data: {request.source}: {request.name} is not on this machine, and no record says that it was staged: run `segue stage` "
            "where it is, and bring the record that it writes beside run.toml along"
        )
    return known


def resolve(request: InputRequest, record: dict[str, Recorded]) -> tuple[InputArchive, Recorded]:
    """Name and digest of one input, from its source where that is here, else from the record.

    Raises NotHere when neither is.
    """
    source, found = "", None
    if request.source.exists():
        source, found = str(request.source), examine(request.name, request.source, members(request.source), record)
    found = found or recorded(request, record)
    return InputArchive(request.name, found.archive, found.sha256, found.bytes, request.target, source), found


def resolve_inputs(requests: Sequence[InputRequest], record_path: Path, keep: bool = True) -> list[InputArchive]:
    """All inputs of a run; the record is kept up to date if ``keep``. Raises BadInput as above."""
    record = read_record(record_path)
    resolved, new = [], dict(record)
    for request in requests:
        archive, found = resolve(request, record)
        resolved.append(archive)
        new[request.name] = found
    if keep and new != record:
        # Only a cache here: run.toml may lie where nothing can be written.
        with contextlib.suppress(SegueError):
            write_record(record_path, new)
    return resolved
