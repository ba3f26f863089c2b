"""Read a commit back: every byte is compared or hashed, and nothing shows in the destination before all of it was good.

A bad read is not a bad commit, so a failure is read a second time before the next older commit is taken.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from agent.store.archive import Layout
from agent.store.copying import EMPTY, Pace, each, hash_through
from agent.store.errors import BadArchive, ReadFailed, no_room
from agent.store.fs import FileSystem, read_all, remove_tree
from agent.store.manifest import Manifest, read_manifest
from agent.store.names import Commit
from agent.store.tree import as_name

TEMPORARY = ".segue-restore-"


@dataclass(frozen=True)
class Restored:
    """What now lies in the destination; ``skipped``: newer commits that were bad."""

    commit: Commit
    manifest: Manifest
    skipped: tuple[Commit, ...] = ()


def check_commit(fs: FileSystem, commit: Commit, pace: Pace, workers: int, into: str | None = None) -> Manifest:
    """Read every byte of a commit; unpack it into the new directory ``into`` when given.

    Raises BadArchive, NewerFormat; ReadFailed for the store's disk, OSError for the destination's; FileNotFoundError when
    the commit has gone.
    """
    path = str(commit.path)
    try:
        fd = fs.open(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ReadFailed(error.errno, error.strerror) from error
    try:
        try:
            manifest, layout = read_manifest(fs, commit.name, fd)
            _compare_fixed(fs, commit.name, fd, layout)
        except OSError as error:
            raise ReadFailed(error.errno, error.strerror) from error
        if (manifest.step, manifest.epoch) != (commit.step, commit.epoch):
            raise BadArchive(
                commit.name, [f"its manifest is of step {manifest.step}, epoch {manifest.epoch}: the file was renamed"]
            )
        if into is not None:
            _make_tree(fs, manifest, into)
        problems: list[str] = []
        tasks = [
            partial(_check_file, fs, fd, manifest, piece, into, pace, problems)
            for piece in sorted(layout.pieces, key=lambda piece: piece.size, reverse=True)
        ]
        for entry in manifest.entries:
            if entry.kind == "file" and not entry.size and entry.sha256 != EMPTY:
                problems.append(f"{entry.path!r} is empty but has the digest of something else")
        each(tasks, workers, pace)
        if problems:
            raise BadArchive(commit.name, sorted(problems))
    except BadArchive:
        fs.forget(fd)  # the second look shall be at the disk, not at the same wrong byte in memory
        raise
    finally:
        fs.close(fd)
    return manifest


def _compare_fixed(fs: FileSystem, name: str, fd: int, layout: Layout) -> None:
    for offset, data in layout.fixed:
        if read_all(fs, fd, len(data), offset) != data:
            raise BadArchive(name, [f"headers or padding at byte {offset} are not what the manifest implies"])


def _check_file(
    fs: FileSystem,
    fd: int,
    manifest: Manifest,
    piece: tuple[int, int, int],
    into: str | None,
    pace: Pace,
    problems: list[str],
    buffer: memoryview,
) -> None:
    offset, size, number = piece
    entry = manifest.entries[number]
    target = None
    if into is not None:
        target = fs.create(f"{into}/{as_name(entry.path)}", 0o600)
    try:
        # Reserved, as in a publish: block by block the file system takes a third more of the processor, and "no room" comes late.
        reserved = target is not None and fs.reserve(target, size)
        if target is not None and not reserved:
            fs.truncate(target, size)
        done, digest = hash_through(fs, fd, offset, size, buffer, pace, target, holes=reserved)
    finally:
        if target is not None:
            fs.close(target)
    if done != size:
        problems.append(f"{entry.path!r} ends after {done} of {size} bytes")
    elif digest != entry.sha256:
        problems.append(f"the data of {entry.path!r} does not fit its SHA-256")


def _make_tree(fs: FileSystem, manifest: Manifest, into: str) -> None:
    fs.mkdir(into, 0o700)
    for entry in manifest.entries:
        path = f"{into}/{as_name(entry.path)}"
        if entry.kind == "directory":
            fs.mkdir(path, 0o700)
        elif entry.kind == "link":
            fs.symlink(as_name(entry.target), path)
        elif not entry.size:
            fs.close(fs.create(path, 0o600))


def put_in_place(fs: FileSystem, manifest: Manifest, temporary: str, destination: str) -> None:
    """Give the modes and move each top-level entry to its name; what had that name goes."""
    for entry in reversed(manifest.entries):
        if entry.kind != "link" and "/" in entry.path:
            fs.chmod(f"{temporary}/{as_name(entry.path)}", entry.mode)
    for entry in manifest.entries:
        if "/" in entry.path:
            continue
        target = f"{destination}/{as_name(entry.path)}"
        remove_tree(fs, target)
        fs.rename(f"{temporary}/{as_name(entry.path)}", target)
        if entry.kind != "link":
            fs.chmod(target, entry.mode)
    fs.rmdir(temporary)


def unpack(fs: FileSystem, commit: Commit, destination: str, token: str, pace: Pace, workers: int) -> Manifest:
    """Restore one commit into the existing directory ``destination``, or raise as ``check_commit`` and leave nothing there."""
    temporary = f"{destination}/{TEMPORARY}{token}"
    try:
        manifest = check_commit(fs, commit, pace, workers, temporary)
        put_in_place(fs, manifest, temporary, destination)
    except BaseException:
        with suppress(OSError):
            remove_tree(fs, temporary)
        raise
    return manifest


def twice(attempt: Callable[[], Manifest]) -> Manifest:
    """Read again what was found bad: memory and networks err as well as disks. Only what fails twice in the same way has failed.

    An error of reading says nothing of the data, so one bad reading after it is still the first.
    """
    seen: set[type[Exception]] = set()
    while True:
        try:
            return attempt()
        except (BadArchive, ReadFailed) as error:
            if type(error) in seen:
                raise
            seen.add(type(error))


def only_this_commit(error: ReadFailed) -> bool:
    """Whether an error of reading may be of one file alone; anything else is the file system's trouble."""
    return error.errno == errno.EIO and not no_room(error)
