"""Ends a pool when the process that started it is gone: reads standard input, a pipe that only the starter holds open.

A signal handler or atexit would not run when the starter is killed; the end of a pipe is always seen.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from agent.errors import SegueError
from dagman.pool.embedded import EmbeddedPool


def main(directory: Path) -> int:
    """Wait for the end of input, then end the pool."""
    # Ctrl-C reaches the whole terminal; the starter decides what it means.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(1024):
        pass
    try:
        EmbeddedPool(directory).down()
    except SegueError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
