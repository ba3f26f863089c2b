"""`agent.pyz run --config job.json --segment 3 --class short [--handover handover.json]`: the executable of every segment's job.

The few options are read by hand: a parser module would cost a tenth of the start-up that the agent may add.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from agent import exit_codes
from agent.errors import CannotRead, SegueError

USAGE = "usage: agent.pyz run --config JOB.json --segment N --class CLASS [--handover HANDOVER.json]"
_NEEDED = ("config", "segment", "class")


def _options(arguments: Sequence[str]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    words = list(arguments)
    while words:
        name, _, value = words.pop(0).partition("=")
        if name not in ("--config", "--segment", "--class", "--handover"):
            return None
        if not value:
            if not words:
                return None
            value = words.pop(0)
        found[name[2:]] = value
    return found if all(name in found for name in _NEEDED) and found["segment"].isdigit() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent; returns its exit code. A wrong command line or job.json cannot be helped by a retry: 78."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _options(words[1:]) if words[:1] == ["run"] else None
    if options is None:
        print(USAGE, file=sys.stderr)
        return exit_codes.OK if words[:1] in (["-h"], ["--help"]) else exit_codes.PERMANENT
    handover = Path(options.get("handover", "handover.json")).absolute()
    try:
        from agent.config import load
        from agent.running import run

        return run(load(Path(options["config"])), int(options["segment"]), options["class"], handover)
    except SegueError as error:
        print(f"segue: error: {error}", file=sys.stderr)
        return exit_codes.TEMPORARY if isinstance(error, CannotRead) else exit_codes.PERMANENT


if __name__ == "__main__":
    sys.exit(main())
