"""`python -m jobs.convert OPTIONS-AS-JSON [PIPE]`: the conversion in this Python, for `segue convert --python`.

Prints the result as JSON on stdout; ends with the exit code of the error, and its sentence on stderr. PIPE is the number of an open file: when
its other end is closed, nobody waits for the result any more, and the conversion ends as an interrupted one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from agent.errors import SegueError

_ENDING = (signal.SIGINT, signal.SIGTERM)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Once: Ctrl-C comes from the terminal, and once more from the command that ends by it."""
    for each in _ENDING:
        signal.signal(each, _nothing)
    raise KeyboardInterrupt


def _nothing(number: int, frame: FrameType | None) -> None:
    """Instead of SIG_IGN: of a signal that has arrived already Python would say that it was ignored."""


def _watch(pipe: int) -> None:
    try:
        os.read(pipe, 1)
    except OSError:
        return  # a program between the command and this one has not passed it on
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Run it; returns the exit code."""
    try:
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
        if len(sys.argv) > 2:
            threading.Thread(target=_watch, args=(int(sys.argv[2]),), daemon=True).start()
        from jobs.convert.conversion import convert
        from jobs.convert.options import load

        print(convert(load(sys.argv[1])).dump())
    except SegueError as error:
        print(f"segue: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("segue: interrupted; run the same command again, it goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
