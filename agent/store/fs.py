"""The store's only door to a disk: one method per system call, so that a test can fail, delay or crash at any single one.

Paths are strings (surrogate-escaped bytes), offsets are explicit (threads share a descriptor), errors are OSError.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from contextlib import suppress
from typing import NamedTuple, Protocol

_FALLOCATE_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})

_SYNC_FILE_RANGE_WRITE = 2
_FALLOC_PUNCH_HOLE_KEEP_SIZE = 2 | 1


class Stat(NamedTuple):
    """What the store wants to know of a name. ``kind``: file, directory, link or other; ``modified`` in Unix seconds."""

    kind: str
    size: int
    mode: int
    links: int
    inode: int
    modified: float


class Space(NamedTuple):
    """What the file system says is free for an ordinary user; ``items`` is None where it does not count them."""

    bytes: int
    items: int | None


class FileSystem(Protocol):
    """Single calls. No method but ``real_path`` follows a symbolic link in the last part of a path."""

    def names(self, path: str) -> list[str]: ...
    def stat(self, path: str) -> Stat: ...
    def stat_open(self, fd: int) -> Stat: ...
    def open(self, path: str) -> int: ...
    def create(self, path: str, mode: int = 0o644) -> int: ...
    def close(self, fd: int) -> None: ...
    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int: ...
    def forget(self, fd: int) -> None: ...
    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int: ...
    def reserve(self, fd: int, size: int) -> bool: ...
    def start_writing(self, fd: int, offset: int, size: int) -> None: ...
    def make_hole(self, fd: int, offset: int, size: int) -> None: ...
    def truncate(self, fd: int, size: int) -> None: ...
    def sync(self, fd: int) -> None: ...
    def sync_directory(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def link(self, old: str, new: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def readlink(self, path: str) -> str: ...
    def mkdir(self, path: str, mode: int = 0o755) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def touch(self, path: str) -> None: ...
    def get_attribute(self, path: str, name: str) -> bytes | None: ...
    def set_attribute(self, path: str, name: str, value: bytes) -> None: ...
    def space(self, path: str) -> Space: ...
    def real_path(self, path: str) -> str: ...


_KINDS = {modes.S_IFREG: "file", modes.S_IFDIR: "directory", modes.S_IFLNK: "link"}


def _stat(result: os.stat_result) -> Stat:
    mode = result.st_mode
    kind = _KINDS.get(mode & 0o170000, "other")
    return Stat(kind, result.st_size, mode & 0o7777, result.st_nlink, result.st_ino, result.st_mtime)


class PosixFileSystem:
    """The real one."""

    def names(self, path: str) -> list[str]:
        return os.listdir(path)  # noqa: PTH208  (names, not paths: a thousand Path objects cost milliseconds)

    def stat(self, path: str) -> Stat:
        return _stat(os.lstat(path))

    def stat_open(self, fd: int) -> Stat:
        return _stat(os.fstat(fd))

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def create(self, path: str, mode: int = 0o644) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(fd, [buffer], offset)

    def forget(self, fd: int) -> None:
        """Drop what memory holds of a file, so that the next read comes from the disk. A hint, no promise."""
        with suppress(OSError, AttributeError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def reserve(self, fd: int, size: int) -> bool:
        """Reserve ``size`` bytes from the start; False where the file system cannot.

        Not os.posix_fallocate: where the file system lacks it (CephFS), the C library writes a byte into each block instead.
        """
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        try:
            fallocate = libc.fallocate
        except AttributeError:
            return False
        fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        while fallocate(fd, 0, 0, size) != 0:
            number = ctypes.get_errno()
            if number in _FALLOCATE_UNSUPPORTED:
                return False
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        return True

    def start_writing(self, fd: int, offset: int, size: int) -> None:
        """Let the disk begin with these bytes, without waiting: the sync at the end then finds little left. A hint, no promise."""
        import ctypes

        with suppress(AttributeError):
            call = ctypes.CDLL(None).sync_file_range
            call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
            call(fd, offset, size, _SYNC_FILE_RANGE_WRITE)

    def make_hole(self, fd: int, offset: int, size: int) -> None:
        """Give back room that was reserved and is not needed; what is there reads as zeros before and after. A hint, no promise."""
        import ctypes

        with suppress(AttributeError):
            call = ctypes.CDLL(None).fallocate
            call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
            call(fd, _FALLOC_PUNCH_HOLE_KEEP_SIZE, offset, size)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # file systems whose directories need no sync refuse it so
                raise
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)  # noqa: PTH104

    def link(self, old: str, new: str) -> None:
        os.link(old, new, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(path)  # noqa: PTH108

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)  # noqa: PTH211

    def readlink(self, path: str) -> str:
        return os.readlink(path)  # noqa: PTH115

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        os.mkdir(path, mode)  # noqa: PTH102

    def rmdir(self, path: str) -> None:
        os.rmdir(path)  # noqa: PTH106

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)  # noqa: PTH101

    def touch(self, path: str) -> None:
        os.utime(path, follow_symlinks=False)

    def get_attribute(self, path: str, name: str) -> bytes | None:
        """An extended attribute, None where it or attributes as such are absent."""
        try:
            return os.getxattr(path, name, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL):
                return None
            raise

    def set_attribute(self, path: str, name: str, value: bytes) -> None:
        os.setxattr(path, name, value, follow_symlinks=False)

    def space(self, path: str) -> Space:
        result = os.statvfs(path)
        return Space(result.f_bavail * result.f_frsize, result.f_favail if result.f_files else None)

    def real_path(self, path: str) -> str:
        """Where the path leads when every link in it is followed."""
        return os.path.realpath(path)


def write_all(fs: FileSystem, fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``, however short the single writes are."""
    view = memoryview(data)
    while view:
        written = fs.write(fd, view, offset)
        if written <= 0:
            raise OSError(errno.EIO, "a write wrote nothing")
        view = view[written:]
        offset += written


def rename_once(fs: FileSystem, old: str, new: str, inode: int) -> None:
    """Rename what has this inode number. A network file system that repeats a request says "no such file" of a rename that it has done."""
    try:
        fs.rename(old, new)
    except FileNotFoundError as error:
        try:
            done = fs.stat(new).inode == inode
        except FileNotFoundError:
            done = False
        if not done:
            raise error


def read_all(fs: FileSystem, fd: int, size: int, offset: int) -> bytes:
    """Read ``size`` bytes at ``offset``; fewer only where the file ends."""
    buffer = bytearray(size)
    view = memoryview(buffer)
    done = 0
    while done < size:
        count = fs.read_into(fd, view[done:], offset + done)
        if count == 0:
            break
        done += count
    return bytes(view[:done])


def read_file(fs: FileSystem, path: str, limit: int = 1 << 20) -> bytes:
    """A small file's bytes, at most ``limit``."""
    fd = fs.open(path)
    try:
        return read_all(fs, fd, min(fs.stat_open(fd).size, limit), 0)
    finally:
        fs.close(fd)


def remove_tree(fs: FileSystem, path: str) -> None:
    """Remove a file, link or directory with all in it; nothing is followed. An absent path is fine."""
    todo, directories = [path], []
    while todo:
        here = todo.pop()
        try:
            kind = fs.stat(here).kind
        except FileNotFoundError:
            continue
        if kind != "directory":
            fs.unlink(here)
            continue
        fs.chmod(here, 0o700)
        directories.append(here)
        todo.extend(f"{here}/{name}" for name in fs.names(here))
    for directory in reversed(directories):
        fs.rmdir(directory)
