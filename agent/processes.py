"""Linux's means to lose no process: sub-reaper, parent-death signal, and the tree under a process.

A sub-reaper inherits the orphans below it, so whatever a trainer's worker does (double fork, session of its own), it stays a
descendant of the keeper or of the agent and can be found and killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time

_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    """prctl(2); nothing happens where there is none (a laptop without Linux)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def become_subreaper() -> None:
    """Orphaned descendants become children of this process."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent, the process ``parent``, ends; at once when it has ended already."""
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def parents() -> dict[int, int]:
    """Parent of every process that can be seen; empty where there is no /proc."""
    found: dict[int, int] = {}
    try:
        names = os.listdir("/proc")  # noqa: PTH208  (names only; this runs often)
    except OSError:
        return found
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b")")[2].split()
                found[int(name)] = int(fields[1])
            except (OSError, IndexError, ValueError):
                continue
    return found


def descendants(root: int) -> list[int]:
    """Processes below ``root``, nearer ones first, without zombies' missing children and without ``root``."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    level = [root]
    while level:
        level = [child for pid in level for child in children.get(pid, ())]
        found += level
    return found


def family(root: int) -> list[int]:
    """As ``descendants``, at a cost that does not grow with the machine's other processes; may miss one that forks or ends meanwhile."""
    if not os.path.exists(f"/proc/{root}/task/{root}/children"):  # noqa: PTH110
        return descendants(root)
    found: list[int] = []
    todo = [root]
    while todo:
        pid = todo.pop()
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                    children = [int(word) for word in file.read().split()]
                found += children
                todo += children
        except OSError:
            continue
    return found


def signal_all(pids: list[int], number: int) -> None:
    """Send a signal to each; those that have gone are no error."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or waits for its parent to notice."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return True


def signal_in_turn(pids: list[int], number: int, each_s: float, all_s: float) -> None:
    """Send a signal that ends a process to one after another, the others standing still meanwhile (SIGSTOP), and wait for each to end.

    At most ``each_s`` seconds for one and ``all_s`` for all; nobody is left standing.
    """
    signal_all(pids[1:], signal.SIGSTOP)
    until = time.monotonic() + all_s
    for pid in pids:
        signal_all([pid], number)
        signal_all([pid], signal.SIGCONT)
        limit = min(until, time.monotonic() + each_s)
        while time.monotonic() < limit and not has_ended(pid):
            time.sleep(0.005)


def reap() -> dict[int, int]:
    """Wait statuses of all children that have ended, by process id; never blocks."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def kill_below(root: int, spare: frozenset[int] = frozenset(), seconds: float = 10.0) -> list[int]:
    """SIGKILL everything below ``root`` but ``spare`` and what is below that, reaping meanwhile; returns who is still there.

    Repeats, because a process may fork while the tree is read. Processes in uninterruptible sleep outlast ``seconds``.
    """
    until = time.monotonic() + seconds
    pause = 0.001
    while True:
        spared = set(spare)
        for pid in spare:
            spared.update(descendants(pid))
        left = [pid for pid in descendants(root) if pid not in spared]
        if not left or time.monotonic() > until:
            return left
        signal_all(left, signal.SIGKILL)
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
        for pid in left:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
