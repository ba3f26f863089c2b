"""What the reference programs share on their command lines: number types, and errors as one sentence instead of a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from agent.errors import SegueError


def natural(text: str) -> int:
    """argparse type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return number


def run_main(main: Callable[[], int]) -> int:
    """``main()``'s exit code; a SegueError becomes its sentence on stderr and its exit code."""
    try:
        return main()
    except SegueError as error:
        print(f"segue: error: {error}", file=sys.stderr)
        return error.exit_code
