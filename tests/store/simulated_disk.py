"""A file system in memory that forgets what was not synced, for proving what the store survives.

Two states are kept of everything: what live clients see, and what the disk has. Calls change the first; a sync carries over; a
crash keeps any subset of the dead client's un-synced calls, in any mixture, writes torn. A rename is atomic. All choices come
from one seeded generator, so a seed is a history.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.store.fs import Space, Stat


class Dead(BaseException):
    """The process that made this call is no more; not an Exception, so that nothing cleans up after it."""


@dataclass(eq=False)
class Node:
    """A file, directory or link. ``unsynced`` holds, oldest first, (client, change) that the disk may not have yet."""

    kind: str
    number: int
    mode: int
    links: int = 0
    target: str = ""
    modified: float = 0.0
    data: bytearray = field(default_factory=bytearray)
    synced_data: bytes = b""
    entries: dict[str, Node] = field(default_factory=dict)
    synced_entries: dict[str, Node] = field(default_factory=dict)
    unsynced: list[tuple[str, object]] = field(default_factory=list)
    attributes: dict[str, bytes] = field(default_factory=dict)


FREED = "freed"
"""A change of a file's data: its last name was removed. A disk that loses power may have done this and not the change of the name; a
rename over another file is atomic."""

Names = tuple[tuple[str, "Node | None"], ...]
"""One atomic change of a directory: names with what they are from now on (None: absent)."""


class Disk:
    """What all clients share. Sizes in bytes; ``capacity`` bounds the sum of all files under ``/staging``."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._numbers = 1
        self.clock = 1_000_000.0
        self.reserves = True
        """Whether room can be reserved; CephFS and NFS 3 cannot."""
        self.links = True
        """Whether there are hard links."""
        self.root = self.node("directory", 0o755)

    def node(self, kind: str, mode: int, target: str = "") -> Node:
        self._numbers += 1
        return Node(kind, self._numbers, mode, target=target, modified=self.clock)

    def find(self, path: str) -> Node:
        node = self.root
        for part in path.split("/"):
            if part:
                if node.kind != "directory":
                    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                below = node.entries.get(part)
                if below is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                node = below
        return node

    def change(self, client: str, directory: Node, names: Names) -> None:
        """Change a directory's entries for all who look, un-synced."""
        directory.unsynced.append((client, names))
        apply(directory.entries, names)

    def place(self, path: str, data: bytes | None, mode: int = 0o644) -> None:
        """Put a durable file (or a directory, ``data`` None) there, without any client."""
        above, _, name = path.rpartition("/")
        parent = self.find(above)
        made = self.node("directory" if data is None else "file", mode)
        made.links = 1
        if data is not None:
            made.data = bytearray(data)
            made.synced_data = data
        parent.entries[name] = made
        parent.synced_entries[name] = made

    def lose(self, client: str | None) -> None:
        """A machine dies (None: all of them): of its un-synced calls any subset has reached the disk."""
        seen: set[int] = set()
        todo = [self.root]
        while todo:
            node = todo.pop()
            if node.number in seen:
                continue
            seen.add(node.number)
            todo.extend(node.entries.values())
            todo.extend(node.synced_entries.values())
            if node.kind == "directory":  # what only a call that may be lost has named or removed
                todo.extend(one for _, names in node.unsynced for _, one in names if one is not None)  # type: ignore[attr-defined]
            if any(client is None or who == client for who, _ in node.unsynced):
                if node.kind == "directory":
                    self._lose_names(node, client)
                else:
                    self._lose_data(node, client)

    def _lose_names(self, node: Node, client: str | None) -> None:
        entries = dict(node.synced_entries)
        left: list[tuple[str, object]] = []
        for who, names in node.unsynced:
            if client is None or who == client:
                if self.rng.random() < 0.5:
                    apply(entries, names)  # type: ignore[arg-type]
                    apply(node.synced_entries, names)  # type: ignore[arg-type]
            else:
                apply(entries, names)  # type: ignore[arg-type]
                left.append((who, names))
        node.entries = entries
        node.unsynced = left

    def _lose_data(self, node: Node, client: str | None) -> None:
        data = bytearray(node.synced_data)
        left: list[tuple[str, object]] = []
        for who, change in node.unsynced:
            if client is None or who == client:
                change = self._torn(change, client)
                if change is None:
                    continue
                node.synced_data = bytes(changed(bytearray(node.synced_data), change))
            else:
                left.append((who, change))
            data = changed(data, change)
        node.data = data
        node.unsynced = left

    def _torn(self, change: object, client: str | None) -> object | None:
        luck = self.rng.random()
        if luck < 0.4 or (change is FREED and client is not None):
            return None
        if change is FREED:
            return 0
        if luck < 0.7 or isinstance(change, int):
            return change
        offset, data = change  # type: ignore[misc]
        return (offset, data[: self.rng.randrange(len(data) + 1)])


def apply(entries: dict[str, Node], names: Names) -> None:
    for name, node in names:
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def changed(data: bytearray, change: object) -> bytearray:
    """A write (offset, bytes) or a new size (int) done to a file's data; FREED leaves it to whoever has it open."""
    if change is FREED:
        return data
    if isinstance(change, int):
        if change < len(data):
            del data[change:]
        else:
            data.extend(bytes(change - len(data)))
    else:
        offset, piece = change  # type: ignore[misc]
        if offset > len(data):
            data.extend(bytes(offset - len(data)))
        data[offset : offset + len(piece)] = piece
    return data


def _none(_name: str, _path: str) -> None:
    return None


class Client:
    """One process's view of the disk: the FileSystem protocol. ``before`` runs ahead of each call and may raise; ``after`` behind it.

    ``half`` says of a write how many bytes get through before the process dies (None: all, and it lives).
    """

    def __init__(self, disk: Disk, name: str) -> None:
        self.disk = disk
        self.name = name
        self.before: Callable[[str, str], None] = _none
        self.after: Callable[[str, str], None] = _none
        self.half: Callable[[int], int | None] = lambda _size: None
        self.spoil: Callable[[memoryview], None] = lambda _read: None
        self.free: Callable[[], int] = lambda: 1 << 50
        self._open: dict[int, tuple[Node, str]] = {}
        self._next = 3

    def _parent(self, path: str) -> tuple[Node, str]:
        above, _, name = path.rpartition("/")
        parent = self.disk.find(above)
        if parent.kind != "directory":
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return parent, name

    def _absent(self, path: str) -> tuple[Node, str]:
        parent, name = self._parent(path)
        if name in parent.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        return parent, name

    def names(self, path: str) -> list[str]:
        self.before("names", path)
        node = self.disk.find(path)
        if node.kind != "directory":
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        found = list(node.entries)
        self.after("names", path)
        return found

    def _stat(self, node: Node) -> Stat:
        size = len(node.data) if node.kind == "file" else 0
        return Stat(node.kind, size, node.mode, node.links, node.number, node.modified)

    def stat(self, path: str) -> Stat:
        self.before("stat", path)
        found = self._stat(self.disk.find(path))
        self.after("stat", path)
        return found

    def stat_open(self, fd: int) -> Stat:
        node, path = self._open[fd]
        self.before("stat_open", path)
        return self._stat(node)

    def _handle(self, node: Node, path: str) -> int:
        self._next += 1
        self._open[self._next] = (node, path)
        return self._next

    def open(self, path: str) -> int:
        self.before("open", path)
        node = self.disk.find(path)
        if node.kind != "file":
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        self.after("open", path)
        return self._handle(node, path)

    def create(self, path: str, mode: int = 0o644) -> int:
        self.before("create", path)
        parent, name = self._absent(path)
        node = self.disk.node("file", mode)
        node.links = 1
        self.disk.change(self.name, parent, ((name, node),))
        self.after("create", path)
        return self._handle(node, path)

    def close(self, fd: int) -> None:
        _, path = self._open[fd]
        self.before("close", path)
        del self._open[fd]

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        node, path = self._open[fd]
        self.before("read_into", path)
        piece = node.data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self.spoil(buffer[: len(piece)])
        return len(piece)

    def forget(self, fd: int) -> None:
        """A hint: nothing is remembered here."""

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        node, path = self._open[fd]
        self.before("write", path)
        piece = bytes(data)
        through = self.half(len(piece))
        if through is not None:
            piece = piece[:through]
        change = (offset, piece)
        node.unsynced.append((self.name, change))
        changed(node.data, change)
        if through is not None:
            raise Dead
        self.after("write", path)
        return len(piece)

    def _resize(self, fd: int, size: int, call: str) -> None:
        node, path = self._open[fd]
        self.before(call, path)
        node.unsynced.append((self.name, size))
        changed(node.data, size)
        self.after(call, path)

    def reserve(self, fd: int, size: int) -> bool:
        if not self.disk.reserves:
            self.before("reserve", self._open[fd][1])
            return False
        self._resize(fd, size, "reserve")
        return True

    def start_writing(self, fd: int, offset: int, size: int) -> None:
        """A hint, which promises nothing."""

    def make_hole(self, fd: int, offset: int, size: int) -> None:
        """A hint: zeros are there before and after."""

    def truncate(self, fd: int, size: int) -> None:
        self._resize(fd, size, "truncate")

    def sync(self, fd: int) -> None:
        node, path = self._open[fd]
        self.before("sync", path)
        node.synced_data = bytes(node.data)
        node.unsynced.clear()
        self.after("sync", path)

    def sync_directory(self, path: str) -> None:
        self.before("sync_directory", path)
        node = self.disk.find(path)
        node.synced_entries = dict(node.entries)
        node.unsynced.clear()
        self.after("sync_directory", path)

    def rename(self, old: str, new: str) -> None:
        self.before("rename", new)
        source, old_name = self._parent(old)
        target, new_name = self._parent(new)
        node = source.entries.get(old_name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
        replaced = target.entries.get(new_name)
        if replaced is node:
            return
        if replaced is not None:
            replaced.links -= 1
        if source is target:
            self.disk.change(self.name, source, ((old_name, None), (new_name, node)))
        else:
            self.disk.change(self.name, target, ((new_name, node),))
            self.disk.change(self.name, source, ((old_name, None),))
        self.after("rename", new)

    def link(self, old: str, new: str) -> None:
        self.before("link", new)
        if not self.disk.links:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), new)
        node = self.disk.find(old)
        parent, name = self._absent(new)
        node.links += 1
        self.disk.change(self.name, parent, ((name, node),))
        self.after("link", new)

    def unlink(self, path: str) -> None:
        self.before("unlink", path)
        parent, name = self._parent(path)
        node = parent.entries.get(name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        node.links -= 1
        if node.links == 0:  # who has it open reads on
            node.unsynced.append((self.name, FREED))
        self.disk.change(self.name, parent, ((name, None),))
        self.after("unlink", path)

    def symlink(self, target: str, path: str) -> None:
        self.before("symlink", path)
        parent, name = self._absent(path)
        self.disk.change(self.name, parent, ((name, self.disk.node("link", 0o777, target)),))
        self.after("symlink", path)

    def readlink(self, path: str) -> str:
        self.before("readlink", path)
        return self.disk.find(path).target

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self.before("mkdir", path)
        parent, name = self._absent(path)
        self.disk.change(self.name, parent, ((name, self.disk.node("directory", mode)),))
        self.after("mkdir", path)

    def rmdir(self, path: str) -> None:
        self.before("rmdir", path)
        if self.disk.find(path).entries:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        parent, name = self._parent(path)
        self.disk.change(self.name, parent, ((name, None),))
        self.after("rmdir", path)

    def chmod(self, path: str, mode: int) -> None:
        self.before("chmod", path)
        self.disk.find(path).mode = mode

    def touch(self, path: str) -> None:
        self.before("touch", path)
        self.disk.find(path).modified = self.disk.clock

    def get_attribute(self, path: str, name: str) -> bytes | None:
        return self.disk.find(path).attributes.get(name)

    def set_attribute(self, path: str, name: str, value: bytes) -> None:
        self.before("set_attribute", path)
        self.disk.find(path).attributes[name] = value

    def space(self, path: str) -> Space:
        self.before("space", path)
        return Space(self.free(), None)

    def real_path(self, path: str) -> str:
        return path
