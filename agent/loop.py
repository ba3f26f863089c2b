"""One thread, one selector: descriptors, timers and signals of the agent.

Signals arrive as bytes on a pipe of our own, so nothing runs inside a handler and no wait can miss one. Between events the
process sleeps in the kernel, which is what keeps it at a fraction of a per cent of a core.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable

_ASLEEP_S = 2.0
_CLOCK: int = getattr(
    time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC
)  # Linux alone has the first, but the rest imports anywhere
_OFFSET_S = time.time() - time.clock_gettime(_CLOCK)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD)
_OF_A_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""Those that `nohup`, or a shell for what runs in its background, lets a program ignore stay ignored."""


def steady() -> float:
    """Unix seconds by the clock as it stood at the agent's start: what is compared with the deadline or measured must not jump with it."""
    return time.clock_gettime(_CLOCK) + _OFFSET_S


def _noticed(number: int, frame: object) -> None:
    """Nothing: the number travels through the wakeup descriptor."""


class Timer:
    """A callback at a time of the monotonic clock, again after ``every`` seconds when that is given."""

    def __init__(self, at: float, call: Callable[[], None], every: float | None) -> None:
        self.at = at
        self.call = call
        self.every = every
        self.cancelled = False

    def cancel(self) -> None:
        """Never call again."""
        self.cancelled = True


class Loop:
    """See above. ``on_signal`` is called with the number of each signal except SIGCHLD, ``on_child`` after a SIGCHLD."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._asleep_s = 0.0
        self._woke = time.monotonic()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._selector.register(self._read, selectors.EVENT_READ, self._signalled)
        self.on_signal: Callable[[int], None] = lambda number: None
        self.on_child: Callable[[], None] = lambda: None
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        ours = [
            number for number in SIGNALS if number not in _OF_A_TERMINAL or signal.getsignal(number) != signal.SIG_IGN
        ]
        self._before = {number: signal.signal(number, _noticed) for number in ours}

    def close(self) -> None:
        """Give signals back to whoever had them before."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._selector.close()
        os.close(self._read)
        os.close(self._write)

    def _signalled(self) -> None:
        try:
            numbers = os.read(self._read, 512)
        except BlockingIOError:
            return
        if signal.SIGCHLD in numbers:
            self.on_child()
        for number in numbers:
            if number != signal.SIGCHLD:
                self.on_signal(number)

    def watch(self, fd: int, call: Callable[[], None]) -> None:
        """Call whenever ``fd`` can be read or is at its end."""
        self._selector.register(fd, selectors.EVENT_READ, call)

    def watch_writable(self, fd: int, call: Callable[[], None]) -> None:
        """Call when ``fd`` can be written (a connection that is being made)."""
        self._selector.register(fd, selectors.EVENT_WRITE, call)

    def forget(self, fd: int) -> None:
        """Stop watching."""
        self._selector.unregister(fd)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call once, ``seconds`` from now."""
        timer = Timer(time.monotonic() + seconds, call, None)
        self._timers.append(timer)
        return timer

    def every(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call every ``seconds`` from now on."""
        timer = Timer(time.monotonic() + seconds, call, seconds)
        self._timers.append(timer)
        return timer

    def awake(self) -> float:
        """The monotonic clock without the time in which this process could not run (a suspended job): for how long something is silent."""
        return time.monotonic() - self._asleep_s

    def once(self, longest: float | None = None) -> None:
        """Wait for the next event, at most ``longest`` seconds, and serve what is due."""
        self._timers = [timer for timer in self._timers if not timer.cancelled]
        began = time.monotonic()
        due = [timer.at for timer in self._timers]
        if longest is not None:
            due.append(began + longest)
        events = self._selector.select(max(0.0, min(due) - began) if due else None)
        woke = time.monotonic()
        if due and (late := woke - max(self._woke, min(due))) > _ASLEEP_S:
            self._asleep_s += late
            for timer in self._timers:
                if timer.every is None:  # a grace that nobody could use is not over
                    timer.at += woke - self._woke
        self._woke = woke
        for key, _ in events:
            if key.fileobj in self._selector.get_map():  # an earlier callback of this round may have closed it
                key.data()
        now = time.monotonic()
        for timer in list(self._timers):
            if timer.cancelled or timer.at > now:
                continue
            if timer.every is None:
                timer.cancelled = True
            else:
                timer.at = now + timer.every
            timer.call()

    def run_until(self, done: Callable[[], bool], until: float | None = None) -> bool:
        """Serve events until ``done()`` is true (True) or the monotonic clock shows ``until`` (False)."""
        while not done():
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return False
            self.once(left)
        return True


def forget_signals() -> None:
    """In a forked child: default handlers and no wakeup descriptor."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
