"""Archives in the store's format (docs/format.md) outside the store's own directory of commits: what consolidation leaves, and reading any.

A final archive is laid out like a commit, so one reader verifies both and `tar xf` opens both.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from agent.errors import BadInput
from agent.store.archive import Layout
from agent.store.copying import CHUNK, Pace, hash_through
from agent.store.errors import BadArchive, speaking
from agent.store.fs import PosixFileSystem, write_all
from agent.store.manifest import Manifest, read_manifest
from agent.store.tree import as_name, scan


def unpack(archive: Path, destination: Path) -> Manifest:
    """Write every member below ``destination`` (which exists and is empty) and return the manifest.

    Raises BadArchive when a byte is not what the manifest says, BadInput when it is no archive of segue, StoreUnavailable when the disk fails.
    """
    fs = PosixFileSystem()
    buffer = memoryview(bytearray(CHUNK))
    with speaking("reading", str(archive)):
        source = fs.open(str(archive))
        try:
            try:
                manifest, layout = read_manifest(fs, archive.name, source)
            except BadArchive as error:
                raise BadInput(f"{archive}: {'; '.join(error.problems)}") from error
            _check_fixed(archive.name, source, layout)
            offsets = {piece.index: piece.offset for piece in layout.pieces}
            for number, entry in enumerate(manifest.entries):
                target = f"{destination}/{as_name(entry.path)}"
                if entry.kind == "directory":
                    fs.mkdir(target, 0o700)
                elif entry.kind == "link":
                    fs.symlink(as_name(entry.target), target)
                else:
                    made = fs.create(target, 0o600)
                    try:
                        done, digest = hash_through(
                            fs, source, offsets.get(number, 0), entry.size, buffer, Pace(), made, 0
                        )
                        os.ftruncate(made, entry.size)
                    finally:
                        fs.close(made)
                    if done != entry.size or digest != entry.sha256:
                        raise BadArchive(archive.name, [f"{entry.path}: its bytes are not those of the manifest"])
                    fs.chmod(target, entry.mode)
            for entry in reversed(manifest.entries):
                if entry.kind == "directory":
                    fs.chmod(f"{destination}/{as_name(entry.path)}", entry.mode)
        finally:
            fs.close(source)
    return manifest


def _check_fixed(name: str, source: int, layout: Layout) -> None:
    for offset, expected in layout.fixed:
        if os.pread(source, len(expected), offset) != expected:
            raise BadArchive(name, [f"headers or padding at byte {offset} are damaged"])


def pack(root: Path, paths: Sequence[str], about: Manifest, target: Path) -> Manifest:
    """Write ``paths`` of ``root`` into the archive ``target``: temporary name beside it, fsync, rename, fsync of the directory.

    ``about`` says what the manifest shall say, its entries are replaced. Returns the manifest as written.
    """
    fs = PosixFileSystem()
    from dataclasses import replace

    manifest = replace(about, entries=scan(fs, root, paths))
    layout = manifest.layout(len(manifest.encode()))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    buffer = memoryview(bytearray(CHUNK))
    with speaking("writing", str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        made = fs.create(str(temporary), 0o644)
        try:
            digests: dict[int, str] = {
                number: _EMPTY for number, entry in enumerate(manifest.entries) if entry.kind == "file"
            }
            for piece in layout.pieces:
                entry = manifest.entries[piece.index]
                source = fs.open(f"{root}/{as_name(entry.path)}")
                try:
                    done, digests[piece.index] = hash_through(
                        fs, source, 0, entry.size, buffer, Pace(), made, piece.offset
                    )
                finally:
                    fs.close(source)
                if done != entry.size:
                    raise BadInput(f"{root}/{entry.path}: it changed while it was read")
            manifest = manifest.with_digests(digests)
            for offset, data in layout.fixed:
                write_all(fs, made, memoryview(data), offset)
            write_all(fs, made, memoryview(manifest.encode()), layout.manifest_offset)
            os.fsync(made)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            fs.close(made)
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    return manifest


_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
