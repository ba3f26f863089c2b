"""What a run may occupy and what it does: bytes and items, from the bound that is most to be trusted (invariant I5).

Order of trust: quota attributes of CephFS, what ``get_quotas`` printed on an access point, the run's own budget, the file
system's free space. The store starts no process, so the text of ``get_quotas`` is handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from agent.store.errors import NoRoom
from agent.store.fs import FileSystem

_GIGABYTE = 1_000_000_000


@dataclass(frozen=True)
class Budget:
    """What the run may occupy, in bytes and items; None: no bound of its own."""

    bytes: int | None = None
    items: int | None = None


@dataclass(frozen=True)
class Room:
    """What one bound leaves free; None: it says nothing of that. ``source`` names the bound for messages; ``own``: the run's budget,
    where that is the bound.
    """

    source: str
    bytes: int | None
    items: int | None
    own: Budget | None = None


@dataclass(frozen=True)
class Usage:
    """What lies in a directory and below."""

    bytes: int
    items: int


def usage(fs: FileSystem, path: str) -> Usage:
    """Bytes and items of ``path`` with itself, by walking it; what does not exist has none."""
    total = items = 0
    todo = [path]
    while todo:
        here = todo.pop()
        try:
            found = fs.stat(here)
            below = fs.names(here) if found.kind == "directory" else []
        except FileNotFoundError:
            continue
        items += 1
        total += found.size if found.kind != "directory" else 0
        todo.extend(f"{here}/{name}" for name in below)
    return Usage(total, items)


def ceph_rooms(fs: FileSystem, path: str) -> list[Room]:
    """What the quotas of CephFS on ``path`` and the directories above it leave, the nearest first. One that cannot be asked is passed over.

    The directories above where the data lies: a link in the path has no quota.
    """
    found = []
    parts = fs.real_path(path).rstrip("/").split("/")
    for depth in range(len(parts), 0, -1):
        above = "/".join(parts[:depth]) or "/"
        try:
            most_bytes = _number(fs.get_attribute(above, "ceph.quota.max_bytes"))
            most_items = _number(fs.get_attribute(above, "ceph.quota.max_files"))
            if not most_bytes and not most_items:
                continue
            used_bytes = _number(fs.get_attribute(above, "ceph.dir.rbytes")) or 0
            used_items = _number(fs.get_attribute(above, "ceph.dir.rentries")) or 0
        except OSError:
            continue
        found.append(
            Room(
                f"the quota of {above}",
                most_bytes - used_bytes if most_bytes else None,
                most_items - used_items if most_items else None,
            )
        )
    return found


def ceph_room(fs: FileSystem, path: str) -> Room | None:
    """The nearest of these; None where there is none."""
    return next(iter(ceph_rooms(fs, path)), None)


def _number(value: bytes | None) -> int | None:
    try:
        return int(value) if value else None
    except ValueError:
        return None


def quotas_room(text: str, path: str) -> Room | None:
    """Room by the output of ``get_quotas`` (Path Disk_Used(GB) Disk_Limit(GB) Files_Used File_Limit) for the longest path above ``path``."""
    best: tuple[int, Room] | None = None
    for line in text.splitlines():
        fields = line.split()
        if len(fields) != 5 or not fields[0].startswith("/"):
            continue
        above = fields[0].rstrip("/")
        if path != above and not path.startswith(above + "/"):
            continue
        try:
            used, limit, files, most = (float(one.replace(",", "")) for one in fields[1:])
        except ValueError:
            continue
        room = Room(
            f"the quota of {above} (get_quotas)",
            int((limit - used) * _GIGABYTE) if limit else None,
            int(most - files) if most else None,
        )
        if best is None or len(above) > best[0]:
            best = (len(above), room)
    return best[1] if best else None


def rooms(fs: FileSystem, root: str, budget: Budget, quotas: str | None = None) -> list[Room]:
    """All bounds that count, the most trusted first."""
    found = ceph_rooms(fs, root)
    real = fs.real_path(root)
    if not found and quotas and (room := quotas_room(quotas, root) or quotas_room(quotas, real)) is not None:
        found.append(room)
    trusted = bool(found)
    if budget.bytes is not None or budget.items is not None:
        used = usage(fs, real)
        found.append(
            Room(
                "the run's budget",
                None if budget.bytes is None else budget.bytes - used.bytes,
                None if budget.items is None else budget.items - used.items,
                budget,
            )
        )
    if not trusted:
        space = fs.space(root)
        found.append(Room("the file system", space.bytes, space.items))
    return found


def require_room(bounds: list[Room], root: str, needed: int, items: int = 1, *, prunable: bool = True) -> None:
    """Raise NoRoom, with exact amounts, by the first bound that ``needed`` bytes and ``items`` items do not fit.

    ``prunable``: there are commits that a person may let go.
    """
    for room in bounds:
        short_bytes = max(0, needed - room.bytes) if room.bytes is not None else 0
        short_items = max(0, items - room.items) if room.items is not None else 0
        if short_bytes or short_items:
            missing = [f"{short_bytes} bytes"] * bool(short_bytes) + [f"{short_items} items"] * bool(short_items)
            if room.own is not None:
                remedy = f"raise {_raised(room.own, short_bytes, short_items)} and submit again"
            else:
                remedy = f"remove data from staging{',' if prunable else ' or'} ask for a larger quota"
            if prunable:
                remedy += ", or lower retention (segue prune)"
            raise NoRoom(
                f"{root}: the next commit needs {needed} bytes and {items} item; {room.source} lacks {' and '.join(missing)}: "
                f"{remedy}; until then the last commit stays",
                needed=needed,
                missing_bytes=short_bytes,
                missing_items=short_items,
                own_budget=room.own is not None,
            )


def _raised(own: Budget, short_bytes: int, short_items: int) -> str:
    """What would suffice for one more commit, as keys of run.toml; without them the site's usual quota counts."""
    keys = []
    if short_bytes:
        enough = ((own.bytes or 0) + short_bytes) / _GIGABYTE
        digits = 2 - math.floor(math.log10(enough))  # three figures, rounded up
        said = f"{math.ceil(round(enough * 10.0**digits, 6)) / 10.0**digits:.{max(0, digits)}f}"
        keys.append(f"budget.gb to {said.rstrip('0').rstrip('.') if '.' in said else said} or more")
    if short_items:
        keys.append(f"budget.items to {(own.items or 0) + short_items} or more")
    return f"{' and '.join(keys)} in run.toml"
