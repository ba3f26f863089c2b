"""`python jobs.pyz stage | consolidate | norm-stats …`: the programs of the nodes that are no segments.

They end as the agent does (agent/exit_codes.py): 78 where no retry can help, 75 where one may, each with one sentence on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agent import exit_codes
from agent.errors import BadInput, SegueError

PROGRAMS = {
    "stage": "jobs.stage",
    "consolidate": "jobs.consolidate",
    "norm-stats": "jobs.norm_stats",
    "record": "jobs.reference.record",
    "train": "jobs.reference.train",
    "evaluate": "jobs.reference.evaluate",
    "compare": "jobs.reference.compare",
    "serve": "jobs.reference.serve",
    "drive": "jobs.reference.drive",
}
"""Name on the command line → module with ``main(arguments) -> int``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one program; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    usage = f"usage: jobs.pyz {{{','.join(PROGRAMS)}}} …"
    if words[:1] in (["-h"], ["--help"]):
        print(usage)
        return exit_codes.OK
    words[:1] = [word.replace("_", "-") for word in words[:1]]  # a node of the DAG has no hyphen in its name
    if not words or words[0] not in PROGRAMS:
        print(usage, file=sys.stderr)
        return exit_codes.PERMANENT
    from importlib import import_module

    try:
        done: int = import_module(PROGRAMS[words[0]]).main(words[1:])
        return done
    except SegueError as error:
        print(f"segue: error: {error}", file=sys.stderr)
        return _exit_code(error)


def _exit_code(error: SegueError) -> int:
    from agent.store.errors import StoreUnavailable

    if isinstance(error, StoreUnavailable):
        return exit_codes.TEMPORARY
    return exit_codes.PERMANENT if isinstance(error, BadInput) else error.exit_code


if __name__ == "__main__":
    sys.exit(main())
