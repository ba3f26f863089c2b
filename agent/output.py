"""What the trainer says: pumped into the attempt's log and to our own stdout, cut into lines for the recipe, the last ones kept.

Progress bars end their lines with a carriage return; both endings count. A reader of our stdout or stderr that does not read must not hold
up the training: to a pipe only as much is written as it takes. Nor may a trainer that says much fill the scratch disk, which would leave
no room for checkpoints and handover: files are bounded, their beginning and their end stay.
"""

from __future__ import annotations

import os
import re
import select
import stat
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from agent.loop import Loop, steady

KEPT_LINES = 50
_LONGEST_LINE = 1 << 16
_KEPT_BEGINNING = 1500
_KEPT_END = 500
_HEAD = 64 << 20
_NEWEST = 16 << 20
_PIECE = 1 << 20
_LEFT_OUT = re.compile(rb"\n\xe2\x80\xa6 (\d+) bytes left out \xe2\x80\xa6\n")
_COLOUR = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""What colours a terminal, or moves about on it."""
_HIDDEN = b"***"
_SHORTEST_SECRET = 8
_TROUBLE = ("Traceback (most recent call last)", "Fatal Python error")
_TROUBLE_LINES = 20
_MOST_TROUBLES = 4
_STACK_LINES = 500


def left_out(fd: int) -> int:
    """How many bytes more a bounded file would have, had nothing of its middle gone."""
    found = _LEFT_OUT.match(os.pread(fd, 80, _HEAD))
    return int(found[1]) - len(found[0]) if found is not None else 0


class Bounded:
    """A file that only we append to: ``_HEAD`` bytes of its beginning stay, then at least ``_NEWEST`` of its end, with a line between them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._room = _HEAD + 2 * _NEWEST - os.fstat(fd).st_size

    def write(self, data: bytes) -> None:
        """Append; now and then what lies between beginning and end goes, in place, so that a full disk does not matter."""
        self._room -= os.write(self._fd, data)
        if self._room <= 0:
            self._room = _NEWEST
            try:
                self._room -= self._shorten()
            except OSError:  # it cannot be read here: tried again later
                return

    def _shorten(self) -> int:
        """Move the end forward; returns by how much it is longer than ``_NEWEST``."""
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR)  # what only appends cannot write in between
        try:
            source, target = os.fstat(fd).st_size - _NEWEST, _HEAD
            gone = source - target + left_out(fd)
            target += os.pwrite(fd, f"\n… {gone} bytes left out …\n".encode(), target)
            marked = target - _HEAD
            while piece := os.pread(fd, _PIECE, source):
                source += len(piece)
                target += os.pwrite(fd, piece, target)
            os.ftruncate(fd, target)
        finally:
            os.close(fd)
        os.lseek(self._fd, 0, os.SEEK_END)
        return marked


class Log:
    """The log of one attempt, and the agent's own voice: to stderr and into the log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = Bounded(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
        self._stdout_may_block = not stat.S_ISREG(os.fstat(1).st_mode) if _open(1) else None
        ours = sys.stderr is sys.__stderr__  # and nobody's who caught it
        self._stderr_may_block = ours and _open(2) and not stat.S_ISREG(os.fstat(2).st_mode)
        # HTCondor's is a file in scratch, transferred at the end; elsewhere it is a person's own.
        bounded = self._stdout_may_block is False and "_CONDOR_SCRATCH_DIR" in os.environ
        self._stdout = Bounded(1) if bounded else None
        self.last: deque[str] = deque(maxlen=KEPT_LINES)
        self._secret = b""
        self._troubles: list[tuple[float, list[str]]] = []

    def say(self, text: str) -> None:
        """One message of the agent's own."""
        line = f"segue: {text}\n".encode(errors="replace")
        if self._secret:
            line = line.replace(self._secret, _HIDDEN)
        self.write(line)
        try:
            if self._stderr_may_block:
                _offer(2, line)
            elif sys.stderr is not None:
                sys.stderr.write(line.decode())
                sys.stderr.flush()
        except (OSError, ValueError):
            return

    def hide(self, secret: str) -> None:
        """Nothing that is said from now on shows ``secret``: a trainer may print its environment. A short word is no secret."""
        if len(secret) >= _SHORTEST_SECRET:
            self._secret = os.fsencode(secret)

    def veiled(self, data: bytes) -> tuple[bytes, bytes]:
        """``data`` without the secret, and apart its end that may be the beginning of one: to be seen again with what follows."""
        if not self._secret:
            return data, b""
        data = data.replace(self._secret, _HIDDEN)
        for length in range(min(len(self._secret) - 1, len(data)), 0, -1):
            if self._secret.startswith(data[-length:]):
                return data[:-length], data[-length:]
        return data, b""

    def hear(self, text: str) -> None:
        """A line of the trainer's. The first traceback of its end is remembered apart: threads that stumble over that end may say more.

        Of a very long line both ends are kept: fifty of them travel in the handover, and either may say what happened.
        """
        if len(text) > _KEPT_BEGINNING + _KEPT_END:
            text = f"{text[:_KEPT_BEGINNING]} … {text[-_KEPT_END:]}"
        self.last.append(text)
        if self._troubles and len(self._troubles[-1][1]) < _TROUBLE_LINES:
            self._troubles[-1][1].append(text)
        elif text.startswith(_TROUBLE) and len(self._troubles) < _MOST_TROUBLES:
            self._troubles.append((steady(), [text]))

    def stacks_follow(self) -> None:
        """Of a trainer and of each of its workers, with all their threads: keep more lines, or one's stack pushes out another's."""
        self.last = deque(self.last, maxlen=_STACK_LINES)

    def begin(self, at: float) -> None:
        """A start of the trainer begins: what those before it said is not what ends this one."""
        self.last = deque(maxlen=KEPT_LINES)
        self.calm(at)

    def calm(self, at: float) -> None:
        """A step was done at the Unix time ``at``: what was said before was not the end."""
        self._troubles = [one for one in self._troubles if one[0] > at]

    def last_lines(self) -> list[str]:
        """For the handover: the last ones, and before them the first traceback since the last step when it is not among them."""
        last = list(self.last)
        first = self._troubles[0][1] if self._troubles else []
        if not set(first) - set(last):
            return last
        return [*first, "…", *last[len(first) + 1 - (self.last.maxlen or KEPT_LINES) :]]

    def write(self, data: bytes) -> None:
        """Append to the log; a full scratch disk must not end the training."""
        try:
            self._file.write(data)
        except OSError:
            return

    def repeat(self, data: bytes) -> None:
        """To our own stdout, as much of it as it takes without waiting."""
        if self._stdout_may_block is None:
            return
        try:
            if self._stdout is not None:
                self._stdout.write(data)
                return
            if not self._stdout_may_block:
                os.write(1, data)
                return
            _offer(1, data)
        except OSError:
            self._stdout_may_block = None


def _offer(fd: int, data: bytes) -> None:
    """Write as much as is taken without waiting."""
    ready = select.poll()
    ready.register(fd, select.POLLOUT)
    for start in range(0, len(data), select.PIPE_BUF):
        if not any(event & select.POLLOUT for _, event in ready.poll(0)):
            return
        os.write(fd, data[start : start + select.PIPE_BUF])


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
        self._held = b""
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
        data, self._held = self._log.veiled(self._held + data)
        if data:
            self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        self._log.write(data)
        self._log.repeat(data)
        *lines, self._rest = (self._rest + data.replace(b"\r", b"\n")).split(b"\n")
        self._rest = self._rest[-_LONGEST_LINE:]
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        text = _COLOUR.sub("", line[:_LONGEST_LINE].decode("utf-8", "replace")).rstrip()
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
        if self._held:  # what came of a secret before the end is most of it, or nothing of one
            self._take(_HIDDEN if len(self._held) >= _SHORTEST_SECRET else self._held)
        if self._rest:
            self._line(self._rest)
            self._rest = b""
