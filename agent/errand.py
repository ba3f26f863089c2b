"""A piece of work in a forked child at low priority: everything that touches staging, so that a hung mount cannot hang the agent.

The child speaks JSON lines over a pipe: reports while it works, one result at the end. It ends with its work, keeps no descriptor of
the agent's, dies with the agent, and can be killed at any call: the store is built for that.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.errors import SegueError
from agent.loop import Loop, forget_signals
from agent.processes import die_with_parent

_SIGN_S = 10.0
_SLOWEST_BYTES_S = 20e6

Report = Callable[[dict[str, Any]], None]
Work = Callable[[Report], dict[str, Any]]

NO_PROCESS = -1
running: set[int] = set()
"""Process ids of the errands under way: not to be taken for orphans of a trainer."""


def patience_s(size: float, least: float) -> float:
    """How long ``size`` bytes may take without a sign of life: the sync at the end moves them all and says nothing meanwhile."""
    return max(least, size / _SLOWEST_BYTES_S)


@dataclass(frozen=True)
class Outcome:
    """How an errand ended: ``error`` is the exception's class name (``OSError`` for all below it, however they are called),
    empty when all went well; ``seconds`` it took.
    """

    value: dict[str, Any]
    error: str = ""
    message: str = ""
    seconds: float = 0.0
    foreseen: bool = False
    """The error is a SegueError: its message was written for the user, and its class says whether to try again."""

    @property
    def ok(self) -> bool:
        return not self.error


class Errand:
    """Started by its construction. ``silent_s``: killed when it says nothing for so long (then the error is ``Hung``).

    A report ``{"size": bytes}`` says how much is moved, and lets it be silent as long as that may take.
    """

    def __init__(
        self,
        loop: Loop,
        work: Work,
        done: Callable[[Outcome], None],
        *,
        report: Callable[[dict[str, Any]], None] | None = None,
        silent_s: float = 300.0,
        low_priority: bool = True,
    ) -> None:
        self._loop = loop
        self._done = done
        self._report = report
        self._began = time.monotonic()
        self._heard = loop.awake()
        self._silent_s = silent_s
        self._buffer = b""
        self._outcome: Outcome | None = None
        self.finished = False
        agent = os.getpid()
        self._fd, writer = os.pipe()
        os.set_blocking(self._fd, False)
        try:
            self.pid = os.fork()
        except OSError as error:  # too many processes or no memory, for now
            self.pid = NO_PROCESS
            told = {"error": "OSError", "message": f"no process for this: {error}"}
            os.write(writer, json.dumps(told).encode() + b"\n")  # as a child does, so that it is heard later
        if self.pid == 0:
            _child(agent, writer, work, low_priority)
        os.close(writer)
        if self.pid != NO_PROCESS:
            running.add(self.pid)
        loop.watch(self._fd, self._readable)
        self._watchdog = loop.every(min(silent_s, 5.0), self._watch)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        self._heard = self._loop.awake()
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "report" in message:
                self._silent_s = patience_s(message["report"].get("size", 0), self._silent_s)
                if self._report is not None:
                    self._report(message["report"])
            elif message:
                self._outcome = Outcome(
                    message.get("value") or {},
                    message.get("error", ""),
                    message.get("message", ""),
                    time.monotonic() - self._began,
                    message.get("foreseen", False),
                )
        if not data or self._outcome is not None:
            self._end(
                self._outcome or Outcome({}, "Killed", "the process that works on staging ended without a result")
            )

    def _watch(self) -> None:
        silent = self._loop.awake() - self._heard
        if silent >= self._silent_s:
            self._kill()
            self._end(Outcome({}, "Hung", f"staging did not answer for {silent:.0f} s", time.monotonic() - self._began))

    def _kill(self) -> None:
        if self.pid == NO_PROCESS:
            return
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def cancel(self) -> None:
        """Kill it; ``done`` is called with the error ``Cancelled``."""
        if not self.finished:
            self._kill()
            self._end(Outcome({}, "Cancelled", "cancelled", time.monotonic() - self._began))

    def _end(self, outcome: Outcome) -> None:
        if self.finished:
            return
        self.finished = True
        running.discard(self.pid)
        self._watchdog.cancel()
        self._loop.forget(self._fd)
        os.close(self._fd)
        self._done(outcome)


def _child(agent: int, writer: int, work: Work, low_priority: bool) -> None:
    """Never returns."""
    code = 1
    try:
        forget_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        die_with_parent(agent)
        os.set_inheritable(writer, False)
        kept = os.dup2(writer, 3, inheritable=False) if writer != 3 else 3
        os.closerange(4, 4096)
        os.setsid()

        turn = _thread.allocate_lock()

        def say(message: dict[str, Any]) -> None:
            view = memoryview(json.dumps(message).encode() + b"\n")
            with turn:
                while view:
                    view = view[os.write(kept, view) :]

        _thread.start_new_thread(_show_progress, (say,))
        try:
            if low_priority:
                from agent.store import lower_priority

                lower_priority()
            say({"value": work(lambda report: say({"report": report}))})
        except Exception as error:
            name = "OSError" if isinstance(error, OSError) else type(error).__name__
            told = {"error": name, "message": str(error) or repr(error), "value": _details(error)}
            say({**told, "foreseen": isinstance(error, SegueError)})
        code = 0
    finally:
        os._exit(code)


def _show_progress(say: Callable[[dict[str, Any]], None]) -> None:
    """Say now and then that bytes move: a large publish takes long, a hung mount moves nothing."""
    before = b""
    while True:
        time.sleep(_SIGN_S)
        try:
            with open("/proc/self/io", "rb") as file:  # noqa: PTH123
                now = b"".join(line for line in file if line.startswith((b"rchar", b"wchar")))
        except OSError:
            return
        if now != before:
            before = now
            say({})


def _details(error: Exception) -> dict[str, Any]:
    """The plain attributes of an error (errno, missing bytes), so that the agent can decide by them."""
    return {key: value for key, value in vars(error).items() if isinstance(value, (str, int, float, bool))}
