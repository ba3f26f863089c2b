"""A checkpoint's files before they are published: the hard-link snapshot and the list of what is in it.

The snapshot costs no room and no time; the trainer may delete its own names while the publish goes on.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agent.store.archive import Entry
from agent.store.errors import IN_SCRATCH, BadCheckpoint, CheckpointChanged, speaking
from agent.store.fs import FileSystem, PosixFileSystem, remove_tree, write_all
from agent.store.manifest import unsafe

_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})


def as_text(name: str) -> str:
    """A name of this system as UTF-8 text with surrogates, whatever the locale."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def as_name(text: str) -> str:
    """The reverse of ``as_text``."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def scan(fs: FileSystem, root: Path, paths: Sequence[str], times: dict[str, float] | None = None) -> tuple[Entry, ...]:
    """All that lies under ``paths`` (relative to ``root``), with the directories above them, sorted by path; ``times`` gets the
    modification time of each file.

    Raises BadCheckpoint for what a restore would refuse: devices, sockets, pipes, links that lead out; CheckpointChanged for a missing path.
    """
    found: dict[str, Entry] = {}
    top = str(root)
    times = {} if times is None else times
    try:
        for path in paths:
            clean = _relative(path)
            parts = clean.split("/")
            for depth in range(1, len(parts)):
                above = "/".join(parts[:depth])
                found[as_text(above)] = _entry(fs, top, above, times)
            for entry in _walk(fs, top, clean, times):
                found[entry.path] = entry
    except FileNotFoundError as error:
        raise CheckpointChanged(
            f"{error.filename or top}: it vanished before it was published; was it deleted?"
        ) from error
    entries = tuple(sorted(found.values(), key=lambda entry: entry.path.split("/")))
    problems = unsafe(entries)
    if problems:
        raise BadCheckpoint(
            f"{root}: {'; '.join(problems)}: such a checkpoint cannot be restored, so it is not published"
        )
    return entries


def _relative(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not parts:
        raise BadCheckpoint(f"{path!r}: paths of a checkpoint are relative to its root and stay in it")
    return "/".join(parts)


def _walk(fs: FileSystem, top: str, path: str, times: dict[str, float]) -> Iterator[Entry]:
    todo = [path]
    while todo:
        here = todo.pop()
        entry = _entry(fs, top, here, times)
        yield entry
        if entry.kind == "directory":
            todo.extend(f"{here}/{name}" for name in sorted(fs.names(f"{top}/{here}"), reverse=True))


def _entry(fs: FileSystem, top: str, path: str, times: dict[str, float]) -> Entry:
    full = f"{top}/{path}"
    found = fs.stat(full)
    if found.kind == "file":
        times[as_text(path)] = found.modified
        return Entry(as_text(path), "file", found.mode, found.size)
    if found.kind == "link":
        return Entry(as_text(path), "link", 0o777, target=as_text(fs.readlink(full)))
    if found.kind == "directory":
        return Entry(as_text(path), "directory", found.mode)
    raise BadCheckpoint(f"{full}: a device, socket or pipe cannot be part of a checkpoint")


def fingerprint(entries: Sequence[Entry], times: Mapping[str, float]) -> str:
    """Of names, sizes and modification times: another one means that something changed. Not of inodes and change times: links and
    some file systems alter those.
    """
    digest = hashlib.sha256()
    for entry in entries:
        line = f"{entry.path}\0{entry.kind}\0{entry.size}\0{entry.target}\0{times.get(entry.path)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def snapshot(
    root: Path, paths: Sequence[str], destination: Path, fs: FileSystem | None = None, copied: int = -1
) -> str:
    """Hard-link ``paths`` of ``root`` into the new directory ``destination``; copies where links are impossible, and files of up to
    ``copied`` bytes. Returns its fingerprint as the files were in the beginning: a link does not protect from a trainer that goes on writing.

    Raises CheckpointChanged when something vanishes meanwhile (nothing is left behind), StoreError on a failing disk.
    """
    fs = fs or PosixFileSystem()
    target = str(destination)
    with speaking("making a snapshot in", target, IN_SCRATCH):
        fs.mkdir(target, 0o700)
        try:
            times: dict[str, float] = {}
            entries = scan(fs, root, paths, times)
            for entry in entries:
                _place(fs, f"{root}/{as_name(entry.path)}", f"{target}/{as_name(entry.path)}", entry, times, copied)
            for entry in reversed(entries):
                if entry.kind == "directory":
                    fs.chmod(f"{target}/{as_name(entry.path)}", entry.mode)
            return fingerprint(entries, times)
        except FileNotFoundError as error:
            remove_tree(fs, target)
            raise CheckpointChanged(f"{root}: it vanished while the snapshot was made; was it deleted?") from error
        except BaseException:
            remove_tree(fs, target)
            raise


def _place(fs: FileSystem, source: str, target: str, entry: Entry, times: dict[str, float], copied: int) -> None:
    if entry.kind == "directory":
        fs.mkdir(target, 0o700)
    elif entry.kind == "link":
        fs.symlink(as_name(entry.target), target)
    else:
        try:
            if entry.size > copied:
                fs.link(source, target)
                return
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        _copy(fs, source, target, entry)
        found = fs.stat(source)
        if (found.size, found.modified) != (entry.size, times[entry.path]):
            raise CheckpointChanged(f"{source}: it changed while the snapshot was made; was it still being written?")
        times[entry.path] = fs.stat(target).modified


def _copy(fs: FileSystem, source: str, target: str, entry: Entry) -> None:
    buffer = memoryview(bytearray(1 << 20))
    source_fd = fs.open(source)
    try:
        target_fd = fs.create(target, 0o600)
        try:
            offset = 0
            while count := fs.read_into(source_fd, buffer, offset):
                write_all(fs, target_fd, buffer[:count], offset)
                offset += count
        finally:
            fs.close(target_fd)
        fs.chmod(target, entry.mode)
    finally:
        fs.close(source_fd)
