"""Make the calling process give way to the training: processor time by nice, disk time by ionice."""

from __future__ import annotations

import os
import platform
from contextlib import suppress

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "ppc64le": 273}
_PROCESS = 1
_LOWEST_BEST_EFFORT = (2 << 13) | 7
_NICENESS = 15


def lower_priority() -> None:
    """Lower this process's priority for good. What the system does not allow or have is left out.

    Best effort at its lowest level and not the idle class: a publish that never gets its turn would never end.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        return
    with suppress(OSError, AttributeError, ImportError):
        import ctypes

        ctypes.CDLL(None).syscall(number, _PROCESS, 0, _LOWEST_BEST_EFFORT)
