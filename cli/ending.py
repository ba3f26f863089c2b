"""A command that is told to end (SIGTERM, a closed terminal) clears up like an interrupted one: its children end, its room is given back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def clearing_up() -> Iterator[None]:
    """For the block, these signals raise SystemExit in the main thread; the shell's usual code is the exit code."""
    before = [(number, signal.getsignal(number)) for number in _SIGNALS]
    for number, handler in before:
        if handler is signal.SIG_DFL:  # nohup ignores SIGHUP, and goes on doing so
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
