"""HTCondor's Chirp, the little of it that puts numbers of a live run into its job ad, where `condor_q -af ChirpStep` shows them.

The starter listens on the loopback side of the slot and names itself in a file (host, port, cookie). One connection an update, without
waiting anywhere: a starter that does not answer costs nothing.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from agent.loop import Loop, Timer

_LONGEST_S = 5.0
_ESCAPED = str.maketrans({"\\": "\\\\", " ": "\\ ", "\n": "\\n", "\t": "\\t", "\r": "\\r"})


def expression(value: float | int | str | None) -> str:
    """A value as a ClassAd expression."""
    if value is None:
        return "undefined"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
    return repr(round(value, 6)) if isinstance(value, float) else str(value)


def requests(cookie: str, attributes: Mapping[str, float | int | str | None]) -> list[bytes]:
    """The lines to send, one answer each: the cookie, then one delayed update an attribute (names begin with Chirp)."""
    lines = [f"cookie {cookie}\n"]
    for name, value in attributes.items():
        lines.append(f"set_job_attr_delayed {name.translate(_ESCAPED)} {expression(value).translate(_ESCAPED)}\n")
    return [line.encode() for line in lines]


class Chirp:
    """Updates of the job ad; ``send`` returns at once, and leaves an update out while the one before is under way."""

    def __init__(self, loop: Loop, config: Path | None) -> None:
        self._loop = loop
        self._config = config
        self._socket: socket.socket | None = None
        self._lines: list[bytes] = []
        self._timer: Timer | None = None
        self.sent = 0
        """Updates that the starter has taken."""

    def send(self, attributes: Mapping[str, float | int | str | None]) -> None:
        """Send these attributes, if there is a starter to take them."""
        if self._config is None or self._socket is not None:
            return
        connection: socket.socket | None = None
        try:
            host, port, cookie = self._config.read_text(encoding="ascii").split()[:3]
            connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            connection.setblocking(False)
            state = connection.connect_ex((host, int(port)))
        except (OSError, ValueError, OverflowError):  # no such file, name or port: nor will there be one
            if connection is not None:
                connection.close()
            self._config = None
            return
        self._socket = connection
        self._lines = requests(cookie, attributes)
        self._timer = self._loop.after(_LONGEST_S, self._close)
        self._loop.watch_writable(connection.fileno(), self._writable)
        if state not in (0, errno.EINPROGRESS):
            self._close()

    def _writable(self) -> None:
        connection = self._socket
        if connection is None:
            return
        self._loop.forget(connection.fileno())
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._socket = None
            connection.close()
            self._stop_timer()
            return
        self._loop.watch(connection.fileno(), self._readable)
        self._say_next()

    def _say_next(self) -> None:
        """One request at a time: the next only after the answer to the one before."""
        assert self._socket is not None
        if not self._lines:
            self.sent += 1
            self._close()
            return
        try:
            self._socket.send(self._lines.pop(0))
        except OSError:
            self._close()

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            answer = os.read(self._socket.fileno(), 4096)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if not answer or answer.startswith(b"-"):
            self._close()
        elif answer.endswith(b"\n"):
            self._say_next()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._stop_timer()
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None
