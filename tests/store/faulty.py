"""A file system that counts the calls of a real one and fails, or ends the process, at a chosen call."""

from __future__ import annotations

import os
import signal
from typing import Any

from agent.store.fs import PosixFileSystem


class FaultyFileSystem:
    """The real disk; call number ``at`` (from 1), counted over all, fails.

    ``number`` is the errno to raise; 0 ends the process by SIGKILL before the call, -1 right after it.
    """

    def __init__(self, at: int, number: int) -> None:
        self._real = PosixFileSystem()
        self.at = at
        self.number = number
        self.calls = 0
        self.log: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)

        def call(*arguments: Any) -> Any:
            self.calls += 1
            self.log.append(name)
            if self.calls == self.at:
                if self.number > 0:
                    raise OSError(self.number, os.strerror(self.number), str(arguments[0]))
                if self.number == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                try:
                    real(*arguments)
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return call
