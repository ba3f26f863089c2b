"""What befalls the attempts of a seeded history: crashes, stalls, errors, memory that fails."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ESTALE)


@dataclass
class Fate:
    """What befalls one attempt, by the number of its call; with ``…_at``, by its number among calls of that name."""

    starts: int = 0
    crash: int = 0
    crash_kind: str = "process"
    crash_place: str = "before"
    crash_at: str = ""
    stall: int = 0
    stall_calls: int = 0
    stall_at: str = ""
    error: int = 0
    error_calls: int = 0
    error_number: int = errno.EIO
    error_at: str = ""
    repeated: bool = False
    bad_read: int = 0
    reads_badly: bool = False


def fates(rng: random.Random, seed: int) -> list[Fate]:
    """What befalls each attempt of a history."""
    made = []
    memory = random.Random(f"{seed} whose memory fails")
    together = rng.random() < 0.6
    begin = 0
    for _ in range(rng.choice((1, 2, 2, 3))):
        fate = Fate(starts=begin)
        begin += rng.randrange(20, 250) if together else 100_000
        if rng.random() < 0.75:
            fate.crash = rng.randrange(1, 260)
            fate.crash_kind = rng.choice(("process", "machine", "machine", "power"))
            fate.crash_place = rng.choice(("before", "after", "half"))
            fate.crash_at = rng.choice(("", "", "rename", "sync_directory", "link", "unlink"))
            if fate.crash_at:
                fate.crash = rng.randrange(1, 12)
        if together and rng.random() < 0.5:
            fate.stall, fate.stall_calls = rng.randrange(1, 200), rng.randrange(50, 400)
            fate.stall_at = rng.choice(("", "rename", "rename", "link"))
            if fate.stall_at:
                fate.stall = rng.randrange(1, 5)
        if rng.random() < 0.3:
            fate.error, fate.error_calls = rng.randrange(1, 220), rng.choice((1, 1, 2, 10, 60))
            fate.error_number = rng.choice(ERRORS)
            fate.error_at = rng.choice(("", "", "sync_directory", "sync", "rename", "unlink"))
            if fate.error_at:
                fate.error = rng.randrange(1, 12)
        fate.repeated = rng.random() < 0.08
        if rng.random() < 0.1:
            fate.bad_read = rng.randrange(1, 25)
        fate.reads_badly = memory.random() < 0.05
        made.append(fate)
    return made
