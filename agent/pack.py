"""Input archives: a directory or file as one plain tar whose bytes depend on names and contents alone, so that its SHA-256 names it.

OSDF caches by name, so new content needs a new name; the same content gives the same name on every machine. Packing streams: no second
copy is needed to learn the digest. Unpacking verifies the whole archive before anything stands under its target.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from agent.errors import BadInput, ReadDamaged, SegueError
from agent.store.tree import as_name, as_text

_UNLOCKED_S = 3600.0
"""A file so young may not have its lock yet, or one that is not seen on another machine (some mounts): it is left alone."""
_PIECE = 1 << 20
# Names as bytes, whatever the locale.
_ENCODING, _ERRORS = "utf-8", "surrogateescape"
# What a working copy grows by itself: never part of a dataset or of code.
LEFT_OUT = (".git", "__pycache__", ".DS_Store")
# Of the names in the archive and at the target, not of a disk that fails.
_NEVER_FITS = frozenset({errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})


class DigestMismatch(ReadDamaged):
    """An archive's bytes are not those that its digest promises."""


class UnpackFailed(SegueError):
    """A disk failed while an archive was unpacked: it says nothing of the archive, and another machine may do better."""


@dataclass(frozen=True)
class Member:
    """One entry: ``name`` in the archive (relative, /-separated), where it is read, and where a kept link leads."""

    name: str
    path: Path
    kind: str
    size: int = 0
    executable: bool = False
    link: str = ""


@dataclass(frozen=True)
class Packed:
    """SHA-256 in hexadecimal digits, bytes of the archive, and how many files are in it."""

    sha256: str
    bytes: int
    files: int


def members(source: Path, only: Sequence[str] | None = None) -> list[Member]:
    """What the archive of ``source`` holds, in order. ``only``: paths relative to it, instead of everything.

    A file is archived under its own name. Links that stay inside are kept, others are followed (HuggingFace's cache is made of those).
    Raises BadInput when it is missing, empty, cannot be read, or a link leads nowhere.
    """
    try:
        if not source.exists():
            raise BadInput(f"{source}: no such file or directory")
        if source.is_file():
            return [_file(as_text(source.name), source)]
        found = list(_walk(source, source.resolve(), "", ())) if only is None else list(_chosen(source, only))
    except OSError as error:
        raise BadInput(f"{error.filename or source}: cannot be read: {error.strerror or error}") from error
    if not any(member.kind == "file" for member in found):
        raise BadInput(f"{source}: holds no files")
    return found


def _file(name: str, path: Path) -> Member:
    status = path.stat()
    return Member(name, path, "file", status.st_size, bool(status.st_mode & stat.S_IXUSR))


def _walk(directory: Path, root: Path, prefix: str, above: tuple[Path, ...]) -> Iterator[Member]:
    above = (*above, directory.resolve())
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: as_text(entry.name))
    except OSError as error:
        raise BadInput(f"{directory}: cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name in LEFT_OUT:
            continue
        yield from _entry(Path(entry.path), f"{prefix}{as_text(entry.name)}", root, above)


def _entry(path: Path, name: str, root: Path, above: tuple[Path, ...], *, chosen: bool = False) -> Iterator[Member]:
    if path.is_symlink():
        link = as_text(str(path.readlink()))
        if chosen and not path.exists() and not link.startswith("/") and ".." not in PurePosixPath(link).parts:
            yield Member(name, path, "link", link=link)  # as in a fresh clone
            return
        if not path.exists():
            raise BadInput(f"{path}: is a link to {link}, which is not there: remove it or bring back what it names")
        if not link.startswith("/") and path.resolve().is_relative_to(root) and ".." not in PurePosixPath(link).parts:
            yield Member(name, path, "link", link=link)
            return
    if path.is_dir():
        if path.resolve() in above:
            raise BadInput(f"{path}: is a link to a directory above itself: remove it")
        yield Member(name, path, "directory")
        yield from _walk(path, root, f"{name}/", above)
    elif path.is_file():
        yield _file(name, path)
    else:
        raise BadInput(f"{path}: is neither a file nor a directory: remove it")


def _chosen(source: Path, only: Sequence[str]) -> Iterator[Member]:
    root, made = source.resolve(), set()
    for name in sorted(set(only), key=as_text):
        path = source / name
        for parent in reversed(PurePosixPath(name).parents[:-1]):
            if str(parent) not in made:
                made.add(str(parent))
                yield Member(as_text(str(parent)), source / parent, "directory")
        if path.is_symlink() or path.is_file():
            yield from _entry(path, as_text(name), root, (), chosen=True)


class _Sink(io.RawIOBase):
    """Counts and hashes what is written, and passes it on."""

    def __init__(self, out: IO[bytes] | None, progress: Callable[[int], None] | None) -> None:
        self.digest = hashlib.sha256()
        self.count = 0
        self._out = out
        self._progress = progress

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.count += len(data)
        if self._out is not None:
            self._out.write(data)
        if self._progress is not None:
            self._progress(self.count)
        return len(data)


def _header(entry: Member) -> tarfile.TarInfo:
    """No owner, no time: what two machines could disagree about stays out."""
    info = tarfile.TarInfo(entry.name)
    info.mode = 0o755 if entry.executable or entry.kind == "directory" else 0o644
    if entry.kind == "file":
        info.size = entry.size
    else:
        info.type = tarfile.DIRTYPE if entry.kind == "directory" else tarfile.SYMTYPE
        info.linkname = entry.link
    return info


def archive_size(entries: Sequence[Member]) -> int:
    """Bytes of the archive that ``pack`` writes, without reading any file."""
    total = 2 * tarfile.BLOCKSIZE
    for entry in entries:
        info = _header(entry)
        total += len(info.tobuf(tarfile.PAX_FORMAT, _ENCODING, _ERRORS)) + info.size + -info.size % tarfile.BLOCKSIZE
    return total + -total % tarfile.RECORDSIZE


def pack(
    entries: Sequence[Member], out: IO[bytes] | None = None, progress: Callable[[int], None] | None = None
) -> Packed:
    """Write the archive to ``out``, or only compute what it would be. ``progress`` is told the bytes so far.

    Raises SegueError when a file changes its size meanwhile or cannot be read.
    """
    sink = _Sink(out, progress)
    with tarfile.open(
        fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_PIECE, encoding=_ENCODING, errors=_ERRORS
    ) as tar:
        for entry in entries:
            info = _header(entry)
            if entry.kind == "file":
                try:
                    with entry.path.open("rb") as file:
                        if os.fstat(file.fileno()).st_size != entry.size:
                            raise SegueError(f"{entry.path}: changes while it is packed: let it rest, then try again")
                        tar.addfile(info, file)
                except OSError as error:
                    raise SegueError(f"{entry.path}: cannot be packed: {error.strerror or error}") from error
            else:
                tar.addfile(info)
    return Packed(sink.digest.hexdigest(), sink.count, sum(entry.kind == "file" for entry in entries))


def write_archive(
    entries: Sequence[Member],
    directory: Path,
    name: Callable[[Packed], str],
    progress: Callable[[int], None] | None = None,
) -> tuple[Path, Packed]:
    """Pack into ``directory`` under ``name(packed)``: temporary name, fsync, rename. What stands under a final name is whole.

    Raises SegueError when the disk refuses; nothing is left then. What a killed one left goes first.
    """
    temporary = directory / f".packing-{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        with temporary.open("xb") as out:
            with suppress(OSError):  # a file system without locks: then nobody sweeps either
                fcntl.flock(out, fcntl.LOCK_EX)
            packed = pack(entries, out, progress)
            out.flush()
            os.fsync(out.fileno())
        target = directory / name(packed)
        temporary.replace(target)
    except OSError as error:
        raise SegueError(
            f"{directory}: cannot be written: {error.strerror or error}; nothing was left there"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target, packed


def _sweep(directory: Path) -> None:
    """Remove unfinished archives that nobody packs any more: the lock of a process ends with it, on another machine too."""
    for path in directory.glob(".packing-*.tmp"):
        with suppress(OSError), path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime > _UNLOCKED_S:
                path.unlink()


def archive_name(name: str, sha256: str) -> str:
    """Of an input's archive: its name and as much of its digest as makes it unique."""
    return f"{name}-{sha256[:16]}.tar"


def digest_of(path: Path, progress: Callable[[int], None] | None = None) -> Packed:
    """SHA-256 and size of an archive as it lies on the disk."""
    digest, count = hashlib.sha256(), 0
    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(view[:size])
            count += size
            if progress is not None:
                progress(count)
    return Packed(digest.hexdigest(), count, 0)


class _Source(io.RawIOBase):
    """Hashes what is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self.digest.update(memoryview(buffer)[:size])
        return size


def unpack(archive: Path, target: Path, sha256: str, temporary: Path | None = None) -> int:
    """Unpack into the directory ``target`` what the digest promises; returns the number of files.

    Everything goes into a temporary directory first (``temporary``, on the same file system as the target) and is moved when the
    digest was right. A file that is at the target already is replaced. Raises DigestMismatch, or SegueError when the archive leads out of
    its directory or does not fit to what is there, UnpackFailed when a disk refuses; the target is as it was then.
    """
    work = temporary or target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        with archive.open("rb", buffering=0) as file:
            source = _Source(file)
            try:
                with tarfile.open(fileobj=source, mode="r|", bufsize=_PIECE, encoding=_ENCODING, errors=_ERRORS) as tar:
                    files = _extract(tar, work, archive)
            except (tarfile.TarError, ValueError, EOFError) as error:
                raise DigestMismatch(f"{archive}: is damaged ({error}); {_REMEDY}") from error
            rest = bytearray(_PIECE)
            while source.readinto(rest):
                pass
        if source.digest.hexdigest() != sha256:
            raise DigestMismatch(
                f"{archive}: its SHA-256 is {source.digest.hexdigest()[:16]}…, not {sha256[:16]}…: it is damaged; {_REMEDY}"
            )
        _merge(work, target)
    except OSError as error:
        kind = SegueError if error.errno in _NEVER_FITS else UnpackFailed
        raise kind(f"{target}: cannot be unpacked from {archive}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return files


_REMEDY = "remove it and run `segue stage` again"


def _extract(tar: tarfile.TarFile, work: Path, archive: Path) -> int:
    files = 0
    for info in tar:
        path = _inside(info.name, archive)
        place = work / path
        if info.isdir():
            place.mkdir(parents=True, exist_ok=True)
        elif info.issym():
            _inside(info.linkname, archive)  # without .. and relative: it cannot lead out, through no other link either
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(as_name(info.linkname))
        elif info.isreg():
            data = tar.extractfile(info)
            assert data is not None
            # O_EXCL and O_NOFOLLOW: a name that comes twice, or through a link, is not written.
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.parent.resolve() != (work.resolve() / path).parent:
                raise SegueError(f"{archive}: member {info.name!r} lies behind a link; {_REMEDY}")
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            with os.fdopen(descriptor, "wb") as out:
                shutil.copyfileobj(data, out, _PIECE)
            place.chmod(0o755 if info.mode & 0o100 else 0o644)
            files += 1
        else:
            raise SegueError(f"{archive}: member {info.name!r} is neither file, directory nor link; {_REMEDY}")
    return files


def _inside(name: str, archive: Path) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise SegueError(f"{archive}: {name!r} leads out of its directory; {_REMEDY}")
    return as_name(str(path))


def _merge(work: Path, target: Path) -> None:
    """Move what is in ``work`` to ``target``, whole where that is new."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        work.rename(target)
        return
    for path in sorted(work.iterdir()):
        place = target / path.name
        if path.is_dir() and not path.is_symlink() and place.is_dir() and not place.is_symlink():
            _merge(path, place)
        elif place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
            path.rename(place)
        else:
            path.replace(place)
