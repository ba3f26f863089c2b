"""Directories that travel from attempt to attempt as one archive, so that a resumed segment skips compilation (JAX's cache).

`<store>/carry/carry-<16 of sha256>.tar`: the name says the content, a damaged one is ignored. Nothing depends on it but time.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agent.keeping import below, make_place, size_of

MOST_BYTES = 2 << 30
_NAME = re.compile(r"carry-([0-9a-f]{16})\.tar")


def newest(directory: Path) -> Path | None:
    """The archive to unpack, if there is one."""
    if not directory.is_dir():
        return None
    found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()[:16]


def bring(directory: Path, scratch: Path) -> int:
    """Unpack the newest archive into ``scratch``; returns the number of files, 0 when there is none or it is damaged."""
    path = newest(directory)
    if path is None:
        return 0
    match = _NAME.fullmatch(path.name)
    if match is None or _digest(path) != match[1]:
        return 0
    count = 0
    with tarfile.open(path) as tar:
        for member in tar:
            target = Path(os.path.normpath(scratch / member.name))
            if not member.isreg() or scratch not in target.parents or target.exists():
                continue
            source = tar.extractfile(member)
            assert source is not None
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read())
            count += 1
    return count


def files(scratch: Path, directories: Sequence[str]) -> list[Path]:
    """The regular files to carry, in a fixed order."""
    found: list[Path] = []
    for name in directories:
        root = Path(os.path.normpath(scratch / name))
        if scratch in root.parents and root.is_dir():
            found += [path for path in below(root) if path.is_file() and not path.is_symlink()]
    return sorted(found)


def mark(scratch: Path, directories: Sequence[str]) -> str:
    """Changes when anything to carry does: names and sizes, not times."""
    parts = [f"{path}:{size_of(path)}" for path in files(scratch, directories)]
    return f"{len(parts)}:{hash(tuple(parts))}" if parts else ""


def take(directory: Path, scratch: Path, directories: Sequence[str], epoch: int = 0) -> str:
    """Write one archive and remove older ones; returns its name, empty when there is nothing to carry or too much."""
    chosen = files(scratch, directories)
    if not chosen or sum(map(size_of, chosen)) > MOST_BYTES:
        return ""
    make_place(directory)
    temporary = directory / f".carry.{epoch:06d}.tmp"
    try:
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for path in chosen:
                    with suppress(FileNotFoundError):  # caches come and go while the trainer runs
                        tar.add(path, arcname=str(path.relative_to(scratch)), filter=_plain)
            file.flush()
            os.fsync(file.fileno())
        name = f"carry-{_digest(temporary)}.tar"
        temporary.replace(directory / name)
    finally:
        temporary.unlink(missing_ok=True)
    for path in directory.iterdir():
        if path.name != name:
            path.unlink(missing_ok=True)
    return name


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member
