"""Names in the store and what they say: step and epoch are in the name, so a listing needs to open nothing.

The order of two commits is decided here and nowhere else: epoch first, then step (invariant I4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS = "checkpoints"
EPOCHS = "epochs"
FINAL = "final"
RUN_FILE = "run.json"
VERIFIED = "user.segue.verified"

_COMMIT = re.compile(r"([0-9]{9,18})\.e([0-9]{6,18})\.tar")
_CLAIM = re.compile(r"([0-9]{6,18})\.json")
_LEFTOVER = re.compile(r"\.[0-9]{9,18}\.e([0-9]{6,18})\.(?:[0-9a-f]+\.tmp|tar\.pruned)")
_PRUNED = re.compile(r"\.[0-9]{9,18}\.e[0-9]{6,18}\.tar\.pruned")
_CLAIM_LEFTOVER = re.compile(r"\.claim-([0-9]{6,18})-[0-9a-f]+\.tmp")
_RUN_LEFTOVER = re.compile(r"\.run-([0-9]{6,18})-[0-9a-f]+\.tmp")
_SET_ASIDE = re.compile(r"[0-9]{9,18}\.e[0-9]{6,18}\.tar\.bad-e[0-9]{6,18}")


@dataclass(frozen=True)
class Commit:
    """A commit as the directory shows it; ``size`` in bytes, ``published`` and ``verified`` in Unix seconds (None: never read back)."""

    path: Path
    step: int
    epoch: int
    size: int
    published: float
    verified: float | None = None

    @property
    def name(self) -> str:
        return self.path.name


def commit_name(step: int, epoch: int) -> str:
    return f"{step:09d}.e{epoch:06d}.tar"


def claim_name(epoch: int) -> str:
    return f"{epoch:06d}.json"


def temporary_name(step: int, epoch: int, token: str) -> str:
    return f".{step:09d}.e{epoch:06d}.{token}.tmp"


def claim_temporary_name(epoch: int, token: str) -> str:
    return f".claim-{epoch:06d}-{token}.tmp"


def run_temporary_name(epoch: int, token: str) -> str:
    return f".run-{epoch:06d}-{token}.tmp"


def pruned_name(commit: str) -> str:
    return f".{commit}.pruned"


def set_aside_name(commit: str, by_epoch: int) -> str:
    return f"{commit}.bad-e{by_epoch:06d}"


def parse_commit(name: str) -> tuple[int, int] | None:
    """(step, epoch) of a commit's name, None for any other name."""
    match = _COMMIT.fullmatch(name)
    if match is None:
        return None
    step, epoch = int(match[1]), int(match[2])
    return (step, epoch) if commit_name(step, epoch) == name else None


def parse_claim(name: str) -> int | None:
    """The epoch of a claim's name, None for any other name."""
    match = _CLAIM.fullmatch(name)
    if match is None:
        return None
    epoch = int(match[1])
    return epoch if claim_name(epoch) == name else None


def leftover_epoch(name: str) -> int | None:
    """The epoch that made a temporary or un-referenced name in ``checkpoints/``, None for any other name."""
    match = _LEFTOVER.fullmatch(name)
    return int(match[1]) if match else None


def is_pruned(name: str) -> bool:
    return _PRUNED.fullmatch(name) is not None


def claim_leftover_epoch(name: str) -> int | None:
    """The epoch for which a temporary claim was written, None for any other name."""
    match = _CLAIM_LEFTOVER.fullmatch(name)
    return int(match[1]) if match else None


def run_leftover_epoch(name: str) -> int | None:
    """The epoch that wrote a temporary run.json, None for any other name."""
    match = _RUN_LEFTOVER.fullmatch(name)
    return int(match[1]) if match else None


def is_set_aside(name: str) -> bool:
    return _SET_ASIDE.fullmatch(name) is not None


def readers_order(step: int, epoch: int) -> tuple[int, int]:
    """Sort key: the greater is the better to restore."""
    return (epoch, step)


def best_first(commits: Iterable[Commit]) -> list[Commit]:
    """In readers' order: the one to restore first stands first."""
    return sorted(commits, key=lambda commit: readers_order(commit.step, commit.epoch), reverse=True)
