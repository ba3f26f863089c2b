"""Archives in the store's format (docs/format.md) outside the store's own directory of commits: what consolidation leaves, and reading any.

A final archive is laid out like a commit and written by the same function, so one reader verifies both and `tar xf` opens both.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from agent.errors import BadInput
from agent.store.archive import Layout
from agent.store.copying import EMPTY, Pace, each, hash_through
from agent.store.errors import BadArchive, speaking
from agent.store.fs import FileSystem, PosixFileSystem, read_all
from agent.store.manifest import Manifest, read_manifest
from agent.store.publish import WORKERS, Plan, make_durable, write_archive
from agent.store.tree import as_name, scan


def everything(manifest: Manifest, path: str) -> bool:
    """The choice of a reader who wants all members."""
    return True


def unpack(archive: Path, destination: Path, wanted: Callable[[Manifest, str], bool] = everything) -> Manifest:
    """Verify every member, write the wanted ones below ``destination`` (which exists and is empty), and return the manifest.

    A member below an unwanted directory must be unwanted too. Raises BadArchive when a byte is not what the manifest says,
    BadInput when it is no archive of segue, StoreUnavailable when the disk fails.
    """
    fs = PosixFileSystem()
    with speaking("reading", str(archive)):
        fd = fs.open(str(archive))
        try:
            try:
                manifest, layout = read_manifest(fs, archive.name, fd)
            except BadArchive as error:
                raise BadInput(f"{archive}: {'; '.join(error.problems)}") from error
            chosen = [entry for entry in manifest.entries if wanted(manifest, entry.path)]
            paths = {entry.path: f"{destination}/{as_name(entry.path)}" for entry in chosen}
            for entry in chosen:
                if entry.kind == "directory":
                    fs.mkdir(paths[entry.path], 0o700)
                elif entry.kind == "link":
                    fs.symlink(as_name(entry.target), paths[entry.path])
                elif not entry.size:
                    fs.close(fs.create(paths[entry.path], 0o600))
            _data(fs, archive.name, fd, manifest, layout, paths)
            for entry in reversed(chosen):
                if entry.kind != "link":
                    fs.chmod(paths[entry.path], entry.mode)
        finally:
            fs.close(fd)
    return manifest


def _data(fs: FileSystem, name: str, fd: int, manifest: Manifest, layout: Layout, paths: dict[str, str]) -> None:
    problems = [
        f"headers or padding at byte {offset} are damaged"
        for offset, expected in layout.fixed
        if read_all(fs, fd, len(expected), offset) != expected
    ]
    pace = Pace()

    def check(offset: int, size: int, number: int, buffer: memoryview) -> None:
        entry = manifest.entries[number]
        target = fs.create(paths[entry.path], 0o600) if entry.path in paths else None
        try:
            if target is not None:
                fs.truncate(target, size)
            done, digest = hash_through(fs, fd, offset, size, buffer, pace, target)
        finally:
            if target is not None:
                fs.close(target)
        if (done, digest) != (size, entry.sha256):
            problems.append(f"{entry.path}: its bytes are not those of the manifest")

    problems += [
        f"{one.path}: is empty"
        for one in manifest.entries
        if one.kind == "file" and not one.size and one.sha256 != EMPTY
    ]
    each([partial(check, piece.offset, piece.size, piece.number) for piece in layout.pieces], WORKERS, pace)
    if problems:
        raise BadArchive(name, sorted(problems))


def pack(root: Path, paths: Sequence[str], about: Manifest, target: Path) -> Manifest:
    """Write ``paths`` of ``root`` into the archive ``target``: temporary name beside it, fsync, rename, fsync of the directory.

    ``about`` says what the manifest shall say, its entries are replaced. Returns the manifest, whose files have no digests yet.
    Raises BadCheckpoint when a file changes meanwhile, NoRoom, StoreUnavailable.
    """
    fs = PosixFileSystem()
    manifest = replace(about, entries=scan(fs, root, paths))
    directory = str(target.parent)
    plan = Plan(directory, str(root), manifest, manifest.layout(len(manifest.encode())))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with speaking("writing", str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = fs.create(str(temporary))
            try:
                write_archive(fs, fd, plan, Pace(), WORKERS)
                make_durable(fs, fd)
            finally:
                fs.close(fd)
            fs.rename(str(temporary), str(target))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fs.sync_directory(directory)
    return manifest
