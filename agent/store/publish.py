"""Publish a checkpoint: write it whole under a temporary name, sync, and only then let a rename make it a commit.

Each step of the write order of docs/format.md is one function here, so that the proof can break each and must notice.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from agent.store import names
from agent.store.archive import Layout
from agent.store.copying import EMPTY, Pace, each, hash_through
from agent.store.errors import (
    BadArchive,
    BadCheckpoint,
    CheckpointChanged,
    ReadFailed,
    SnapshotUnreadable,
    StoreError,
)
from agent.store.fs import FileSystem, rename_once, write_all
from agent.store.manifest import LARGEST_MANIFEST, Manifest, read_manifest
from agent.store.names import Commit
from agent.store.tree import as_name, fingerprint, scan

WORKERS = 2


@dataclass(frozen=True)
class Metadata:
    """What a manifest says beside its files. ``step``: updates done; ``label``: the trainer's name of the checkpoint;
    ``parent``: the commit from which the attempt resumed; ``pace`` in seconds."""

    step: int
    label: str
    recipe: str = ""
    parent: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    pace: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A publish before its first byte: where it goes, what is in it, how large it will be."""

    directory: str
    source: str
    manifest: Manifest
    layout: Layout
    times: Mapping[str, float] = field(default_factory=dict)
    """When each file was modified: none may change from here to the end."""

    @property
    def final(self) -> str:
        return f"{self.directory}/{names.commit_name(self.manifest.step, self.manifest.epoch)}"

    def temporary(self, token: str) -> str:
        return f"{self.directory}/{names.temporary_name(self.manifest.step, self.manifest.epoch, token)}"


def plan(
    fs: FileSystem, root: str, source: Path, epoch: int, metadata: Metadata, now: float, seen: str | None = None
) -> Plan:
    """Look at the snapshot and lay the archive out. ``seen``: its fingerprint when it was made. Raises BadCheckpoint, OSError."""
    try:
        found = sorted(fs.names(str(source)))
    except FileNotFoundError as error:
        raise CheckpointChanged(f"{source}: there is no snapshot to publish") from error
    if not found:
        raise BadCheckpoint(f"{source}: the snapshot is empty; an empty checkpoint is not published")
    times: dict[str, float] = {}
    entries = scan(fs, source, found, times)
    if seen is not None and fingerprint(entries, times) != seen:
        raise CheckpointChanged(f"{source}: it changed after its snapshot was made; was it still being written?")
    manifest = Manifest(
        Path(root).name,
        metadata.step,
        metadata.label,
        epoch,
        metadata.parent,
        metadata.recipe,
        max(0.0, now),  # a clock before 1970 would make a commit that no reader takes
        entries,
        dict(metadata.versions),
        dict(metadata.pace),
        dict(metadata.metrics),
    )
    size = len(manifest.encode())
    if size > LARGEST_MANIFEST:
        raise BadCheckpoint(
            f"{source}: it has {len(entries)} members, more than a manifest can list; pack the many small ones"
        )
    return Plan(f"{root}/{names.CHECKPOINTS}", str(source), manifest, manifest.layout(size), times)


def already_there(fs: FileSystem, path: str) -> bool:
    """Whether a whole commit has the final name: this attempt reached the step before, and it is immutable."""
    try:
        fd = fs.open(path)
    except FileNotFoundError:
        return False
    try:
        read_manifest(fs, path, fd)
    except BadArchive:
        return False
    finally:
        fs.close(fd)
    return True


def write_commit(
    fs: FileSystem, job: Plan, token: str, pace: Pace, workers: int, may_commit: Callable[[], None]
) -> None:
    """Steps 2 to 6 of the write order. Raises OSError, BadCheckpoint, Cancelled and what ``may_commit`` raises."""
    temporary = job.temporary(token)
    try:
        fd = fs.create(temporary)
        try:
            write_archive(fs, fd, job, pace, workers)
            make_durable(fs, fd)
            inode = fs.stat_open(fd).inode
        finally:
            fs.close(fd)
        pace.check()
        may_commit()
        make_commit(fs, temporary, job.final, inode)
    except BaseException:
        with suppress(OSError):
            fs.unlink(temporary)
        raise
    acknowledge(fs, job)


def make_durable(fs: FileSystem, fd: int) -> None:
    """Step 3: the whole file reaches the disk before it can have a name that readers believe."""
    fs.sync(fd)


def make_commit(fs: FileSystem, temporary: str, final: str, inode: int) -> None:
    """Step 5."""
    rename_once(fs, temporary, final, inode)


def acknowledge(fs: FileSystem, job: Plan) -> None:
    """Step 6: the name reaches the disk; from here on the commit counts."""
    fs.sync_directory(job.directory)


def write_archive(fs: FileSystem, fd: int, job: Plan, pace: Pace, workers: int) -> None:
    """One pass over the data: workers take whole files, largest first, read, hash and write each at its known offset."""
    reserved = fs.reserve(fd, job.layout.total)
    if not reserved:
        fs.truncate(fd, job.layout.total)
    digests: dict[int, str] = {
        number: EMPTY for number, one in enumerate(job.manifest.entries) if one.kind == "file" and not one.size
    }

    def copy(offset: int, size: int, number: int, buffer: memoryview) -> None:
        path = f"{job.source}/{as_name(job.manifest.entries[number].path)}"
        try:
            source = fs.open(path)
        except FileNotFoundError as error:
            raise vanished(path) from error
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            before = fs.stat_open(source)
            modified = job.times.get(job.manifest.entries[number].path, before.modified)
            if before.modified != modified:
                raise changed(path)
            done, digests[number] = hash_through(fs, source, 0, size, buffer, pace, fd, offset, write_early=True)
            after = fs.stat_open(source)
            if done != size or (after.size, after.modified) != (size, modified):
                raise changed(path)
        except ReadFailed as error:
            raise unreadable(path, error) from error
        finally:
            fs.close(source)

    largest_first = sorted(job.layout.pieces, key=lambda piece: piece.size, reverse=True)
    each([partial(copy, piece.offset, piece.size, piece.number) for piece in largest_first], workers, pace)
    require_unchanged(fs, job)
    for offset, data in job.layout.fixed:
        write_all(fs, fd, data, offset)
    write_all(fs, fd, job.manifest.with_digests(digests).encode(), job.layout.manifest_offset)


def require_unchanged(fs: FileSystem, job: Plan) -> None:
    """One file may have been rewritten while another was read: the two do not belong together. An empty one is looked at only here."""
    for entry in job.manifest.entries:
        if entry.path in job.times:
            path = f"{job.source}/{as_name(entry.path)}"
            try:
                found = fs.stat(path)
            except FileNotFoundError as error:
                raise vanished(path) from error
            except OSError as error:
                raise unreadable(path, error) from error
            if (found.size, found.modified) != (entry.size, job.times[entry.path]):
                raise changed(path)


def changed(path: str) -> CheckpointChanged:
    return CheckpointChanged(f"{path}: it changed while it was published; was it still being written?")


def vanished(path: str) -> CheckpointChanged:
    return CheckpointChanged(f"{path}: it vanished while it was published")


def unreadable(path: str, error: OSError) -> StoreError:
    """A member that its mode forbids is the checkpoint's fault, anything else the disk's."""
    kind = BadCheckpoint if error.errno in (errno.EACCES, errno.EPERM) else SnapshotUnreadable
    return kind(f"{path}: it cannot be read: {error.strerror}")


def as_commit(fs: FileSystem, job: Plan) -> Commit:
    """The commit as a listing will show it."""
    found = fs.stat(job.final)
    return Commit(Path(job.final), job.manifest.step, job.manifest.epoch, found.size, found.modified)
