"""Many seeded histories on all cores, and all mutants: `make torture`. One seed again: `python -m tests.store.torture --seed 1381`.

The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable

from tests.store.history import play
from tests.store.mutants import MUTANTS, caught_by

_SHARE = 250
Points = set[tuple[str, str, int, str]]


def play_range(seeds: tuple[int, int]) -> tuple[int, Points, list[tuple[int, str]]]:
    """(histories, crash points, violations) of the seeds from the first to before the second number."""
    points: Points = set()
    violations: list[tuple[int, str]] = []
    for seed in range(*seeds):
        world = play(seed)
        points |= world.points
        violations += [(seed, one) for one in world.violations]
    return seeds[1] - seeds[0], points, violations


def catch(number: int) -> tuple[str, tuple[int, str] | None]:
    """What notices mutant ``number`` within 3,000 histories."""
    return MUTANTS[number].__name__, caught_by(MUTANTS[number], range(3000))


def _shares(count: int) -> Iterable[tuple[int, int]]:
    return ((begin, min(begin + _SHARE, count)) for begin in range(0, count, _SHARE))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100_000)
    parser.add_argument("--seed", type=int, help="play this one again and say what it violates")
    given = parser.parse_args()
    if given.seed is not None:
        world = play(given.seed)
        print("\n".join(world.violations) or f"seed {given.seed}: nothing violated; {world.calls} calls")
        return 1 if world.violations else 0
    began = time.monotonic()
    points: Points = set()
    violations: list[tuple[int, str]] = []
    played = 0
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as workers:
        for count, found, wrong in workers.imap_unordered(play_range, _shares(given.seeds)):
            played += count
            points |= found
            violations += wrong
            if played % 10_000 == 0:
                print(
                    f"{played} histories, {len(violations)} violations, {time.monotonic() - began:.0f} s",
                    file=sys.stderr,
                )
        caught = workers.map(catch, range(len(MUTANTS)), chunksize=1)
    for seed, what in sorted(violations)[:20]:
        print(f"seed {seed}: {what}")
    for name, notice in caught:
        print(f"mutant {name}: {f'noticed by seed {notice[0]}: {notice[1]}' if notice else 'NOT NOTICED'}")
    noticed = sum(1 for _, notice in caught if notice)
    print(f"{time.monotonic() - began:.0f} s on {os.cpu_count()} cores", file=sys.stderr)
    summary = {
        "seeds": played,
        "crash_points": len(points),
        "violations": len(violations),
        "mutants": len(caught),
        "mutants_caught": noticed,
    }
    print(json.dumps(summary))
    return 0 if not violations and noticed == len(caught) else 1


if __name__ == "__main__":
    sys.exit(main())
