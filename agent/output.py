"""What the trainer says: pumped into the attempt's log and to our own stdout, cut into lines for the recipe, the last ones kept.

Progress bars end their lines with a carriage return; both endings count. A reader of our stdout that does not read must not hold
up the training: to a pipe only as much is written as it takes.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from agent.loop import Loop

KEPT_LINES = 50
_LONGEST_LINE = 1 << 16
_TROUBLE = ("Traceback (most recent call last)", "Fatal Python error")
_TROUBLE_LINES = 20
_MOST_TROUBLES = 4


class Log:
    """The log of one attempt, and the agent's own voice: to stderr and into the log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._stdout_may_block = not stat.S_ISREG(os.fstat(1).st_mode) if _open(1) else None
        self.last: deque[str] = deque(maxlen=KEPT_LINES)
        self._troubles: list[tuple[float, list[str]]] = []

    def say(self, text: str) -> None:
        """One message of the agent's own."""
        line = f"segue: {text}\n"
        self.write(line.encode(errors="replace"))
        try:
            sys.stderr.write(line)
            sys.stderr.flush()
        except (OSError, ValueError):
            return

    def hear(self, text: str) -> None:
        """A line of the trainer's. The first traceback of its end is remembered apart: threads that stumble over that end may say more."""
        self.last.append(text)
        if self._troubles and len(self._troubles[-1][1]) < _TROUBLE_LINES:
            self._troubles[-1][1].append(text)
        elif text.startswith(_TROUBLE) and len(self._troubles) < _MOST_TROUBLES:
            self._troubles.append((time.time(), [text]))

    def calm(self, at: float) -> None:
        """A step was done at the Unix time ``at``: what was said before was not the end."""
        self._troubles = [one for one in self._troubles if one[0] > at]

    def last_lines(self) -> list[str]:
        """For the handover: the last ones, and before them the first traceback since the last step when it is not among them."""
        last = list(self.last)
        first = self._troubles[0][1] if self._troubles else []
        if not set(first) - set(last):
            return last
        return [*first, "…", *last[len(first) + 1 - KEPT_LINES :]]

    def write(self, data: bytes) -> None:
        """Append to the log; a full scratch disk must not end the training."""
        try:
            os.write(self._fd, data)
        except OSError:
            return

    def repeat(self, data: bytes) -> None:
        """To our own stdout, as much of it as it takes without waiting."""
        if self._stdout_may_block is None:
            return
        try:
            if not self._stdout_may_block:
                os.write(1, data)
                return
            ready = select.poll()
            ready.register(1, select.POLLOUT)
            for start in range(0, len(data), select.PIPE_BUF):
                if not any(event & select.POLLOUT for _, event in ready.poll(0)):
                    return
                os.write(1, data[start : start + select.PIPE_BUF])
        except OSError:
            self._stdout_may_block = None


def _open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class Output:
    """The pipe behind one trainer's stdout and stderr. ``writer`` goes to the keeper and is closed here by ``started``."""

    def __init__(self, loop: Loop, log: Log, on_line: Callable[[str], None]) -> None:
        self._loop = loop
        self._log = log
        self._on_line = on_line
        self._rest = b""
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        loop.watch(self._reader, self._readable)
        self._closed = False

    def started(self) -> None:
        """The keeper has its copy of the writing end."""
        os.close(self.writer)

    def _readable(self) -> None:
        self._pump()

    def _pump(self) -> bool:
        """Take one piece; False at the end or when there is nothing now."""
        if self._closed:
            return False
        try:
            data = os.read(self._reader, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._close()
            return False
        self._log.write(data)
        self._log.repeat(data)
        *lines, self._rest = (self._rest + data.replace(b"\r", b"\n")).split(b"\n")
        self._rest = self._rest[-_LONGEST_LINE:]
        for line in lines:
            self._line(line)
        return True

    def _line(self, line: bytes) -> None:
        text = line[:_LONGEST_LINE].decode("utf-8", "replace").rstrip()
        if text:
            self._log.hear(text)
            self._on_line(text)

    def finish(self) -> None:
        """All that is still in the pipe, once everybody who could write has gone."""
        while self._pump():
            pass
        self._close()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.forget(self._reader)
        os.close(self._reader)
        if self._rest:
            self._line(self._rest)
            self._rest = b""
