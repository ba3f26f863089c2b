"""Make the calling process give way to the training: processor time by nice, disk time by ionice."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "ppc64le": 273}
_PROCESS = 1
_LOWEST_BEST_EFFORT = (2 << 13) | 7
_NICENESS = 15
_AUTOGROUP = "/proc/self/autogroup"
_TRIES, _PAUSE_S = 5, 0.1


def lower_priority() -> None:
    """Lower this process's priority for good. What the system does not allow or have is left out.

    Best effort at its lowest level and not the idle class: a publish that never gets its turn would never end.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    _group_gives_way()
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        return
    with suppress(OSError, AttributeError, ImportError):
        import ctypes

        ctypes.CDLL(None).syscall(number, _PROCESS, 0, _LOWEST_BEST_EFFORT)


def _group_gives_way() -> None:
    """Linux may share the processor among sessions first (sched_autogroup): then nice counts only within one, and the trainer has its own.

    So a session that this process leads gets the niceness too; another's is not ours to lower. Source: sched(7), "The autogroup feature".
    """
    if os.getsid(0) != os.getpid():
        return
    for _ in range(_TRIES):
        try:
            with open(_AUTOGROUP, "w", encoding="ascii") as file:  # noqa: PTH123
                file.write(str(_NICENESS))
            return
        except BlockingIOError:  # the kernel takes one change in 0.1 s, whosever it is
            time.sleep(_PAUSE_S)
        except OSError:
            return
