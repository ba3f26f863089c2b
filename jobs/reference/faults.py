"""Misbehaviour on request, and helper processes: what a demonstration or a test needs from a trainer to show what the agent does about it."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from typing import NoReturn

from agent.errors import SegueError


class Workers:
    """Child processes that do light work, like data loaders. Started before JAX, because a fork beside its threads is unsafe."""

    def __init__(self, count: int) -> None:
        parent = os.getpid()
        self.pids: list[int] = []
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                _work(parent)
            self.pids.append(pid)

    def check(self) -> None:
        """Raise SegueError when one has died."""
        for pid in self.pids:
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                self.pids.remove(pid)
                raise SegueError(f"data worker {pid} died")

    def end(self) -> None:
        """Kill and reap all."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self.pids:
            os.waitpid(pid, 0)
        self.pids.clear()


def _work(parent: int) -> NoReturn:
    digest = b""
    while os.getppid() == parent:
        for _ in range(100):
            digest = hashlib.sha256(digest).digest()
        time.sleep(0.1)
    os._exit(0)


def crash(step: int) -> NoReturn:
    """As a bug would."""
    raise RuntimeError(f"told to crash in step {step} (--crash-at)")


def hang(step: int) -> NoReturn:
    """As a stuck collective would: alive, silent, for ever."""
    print(f"told to hang in step {step} (--hang-at)", file=sys.stderr, flush=True)
    while True:
        time.sleep(3600)
