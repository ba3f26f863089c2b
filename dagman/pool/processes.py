"""Finds and ends every process of one pool, whatever is left of it: daemons, DAGMan, jobs and their children.

A pool's processes are told by their environment (daemons carry SEGUE_POOL, jobs their scratch directory, DAGMan the pool's
configuration) and by descent from such a process; a record of process ids would not survive a crash, nor would it know the jobs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

MARK = "SEGUE_POOL"
_DAGMAN = "condor_dagman"


@dataclass(frozen=True)
class Process:
    """One entry of /proc."""

    pid: int
    parent: int
    name: str
    environment: frozenset[bytes]


def running() -> dict[int, Process]:
    """Every process that can be looked at; zombies excluded."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name, _, rest = (entry / "stat").read_text(errors="replace").partition("(")[2].rpartition(")")
            state, parent, *_ = rest.split()
            if state in "ZX":
                continue
            environment = frozenset((entry / "environ").read_bytes().split(b"\0"))
        except PermissionError:
            environment = frozenset()
        except (OSError, ValueError):
            continue
        found[int(entry.name)] = Process(int(entry.name), int(parent), name, environment)
    return found


def born(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot: with its id, its identity. None when it has ended."""
    try:
        rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if rest[0] in "ZX" else int(rest[19])


def of_pool(directory: Path) -> list[int]:
    """Process ids that belong to the pool in `directory`; never our own or an ancestor's."""
    everything = running()
    ours = _ancestors(os.getpid(), everything)
    children: dict[int, list[int]] = defaultdict(list)
    for process in everything.values():
        children[process.parent].append(process.pid)
    todo = [
        process.pid for process in everything.values() if _marked(process, str(directory)) and process.pid not in ours
    ]
    members: set[int] = set()
    while todo:
        pid = todo.pop()
        if pid not in members and pid not in ours:
            members.add(pid)
            todo.extend(children[pid])
    return sorted(members)


def _marked(process: Process, directory: str) -> bool:
    place = os.fsencode(directory)
    if os.fsencode(f"{MARK}={directory}") in process.environment:
        return True
    if process.name.startswith(_DAGMAN) and b"CONDOR_CONFIG=" + place + b"/condor_config" in process.environment:
        return True
    scratch = b"_CONDOR_SCRATCH_DIR=" + place + b"/execute/"
    return any(entry.startswith(scratch) for entry in process.environment)


def _ancestors(pid: int, everything: dict[int, Process]) -> set[int]:
    found: set[int] = set()
    while pid in everything and pid not in found:
        found.add(pid)
        pid = everything[pid].parent
    return found


def end(directory: Path, deadline_s: float = 20.0) -> list[int]:
    """SIGKILL to all of the pool's processes until none is left; what is still there at the deadline."""
    deadline = time.monotonic() + deadline_s
    empty = 0
    # A process has no environment for a moment while it becomes another program: none seen twice means none.
    while empty < 2:
        left = of_pool(directory)
        empty = 0 if left else empty + 1
        if left and time.monotonic() > deadline:
            return left
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return []
