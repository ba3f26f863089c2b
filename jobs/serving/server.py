"""A policy server as a child process: started, waited for, listened to, ended with all that it started.

Its output passes through line by line; the last lines are kept, because they say why a server died.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from agent.errors import SegueError
from agent.processes import die_with_parent
from jobs.serving.client import POLL_S, answers

_KEPT = 12
_GRACE_S = 10.0


class ServerDied(SegueError):
    """The server ended by itself; the message has its last lines."""


def check_port(host: str, port: int) -> None:
    """Raises SegueError when another program listens there, or the address is none of this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SegueError(
                    f"port {port} of {host} is taken by another program; give --port another number"
                ) from error
            raise SegueError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


class Server:
    """The process. A context manager: the server is gone when the block ends.

    ``say`` gets each line that the server prints, from a thread of its own.
    """

    def __init__(
        self,
        words: Sequence[str],
        directory: Path | None,
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._lines: deque[str] = deque(maxlen=_KEPT)
        try:
            self._process = subprocess.Popen(
                list(words),
                cwd=directory,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # Of its own group: Ctrl-C comes to us alone, and what the server started ends with it.
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        except OSError as error:
            raise SegueError(f"{words[0]}: cannot be started ({error.strerror or error})") from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self._lines.append(line)
            self._say(line)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def check(self) -> None:
        """Raises ServerDied when it has ended."""
        code = self._process.poll()
        if code is None:
            return
        self._reader.join(_GRACE_S)
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        last = " | ".join(line for line in self._lines if line.strip()) or "it said nothing"
        raise ServerDied(f"the policy server ended {how}; its last lines: {last[-1500:]}")

    def until_answering(self, host: str, port: int, limit_s: float) -> float:
        """Wait until the health check answers; the seconds it took. ServerDied; SegueError after ``limit_s``."""
        began = time.monotonic()
        while not answers(host, port):
            self.check()
            if time.monotonic() - began > limit_s:
                raise SegueError(
                    f"the policy server does not answer on {host}, port {port}, after {limit_s:.0f} s; give it longer with --wait"
                )
            time.sleep(POLL_S)
        self.check()
        return time.monotonic() - began

    def until_ended(self) -> None:
        """Wait for as long as it serves; ends by ServerDied, or by what the caller's signal handlers raise."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self.check()

    def end(self) -> None:
        """SIGTERM to the server's group; SIGKILL for what is left after ten seconds, or of it when it has ended."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join(_GRACE_S)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def to_stderr(line: str) -> None:
    """A `say` for people."""
    print(f"server: {line}", file=sys.stderr, flush=True)
