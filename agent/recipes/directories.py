"""Checkpoint directories whose names are numbers: which there are, and what is removed from a scratch disk that must not fill up."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from agent.recipes.base import Finished, Start
from agent.store.multiples import first_at_each


def numbered(root: Path) -> dict[int, str]:
    """Directories below ``root`` whose name is a number, by that number."""
    try:
        with os.scandir(root) as entries:
            return {int(entry.name): entry.name for entry in entries if entry.name.isdecimal() and entry.is_dir()}
    except FileNotFoundError:
        return {}


def loosen(path: Path) -> None:
    """Let what is below be removed: what a trainer copies into a checkpoint may be read-only, directories too."""
    for directory, _, _ in os.walk(path) if not path.is_symlink() else ():
        with suppress(OSError):
            os.chmod(directory, 0o700)  # noqa: PTH101 (each directory of a checkpoint)


def remove(path: Path) -> None:
    """Remove a directory, file or link."""
    if path.is_dir() and not path.is_symlink():
        loosen(path)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def thin_out(start: Start, found: list[Finished], keep: int = 2) -> list[Finished]:
    """Remove older finished checkpoints of a trainer that never does: a full scratch disk ends the job.

    The newest ``keep`` stay, and what retention.every wants published until there is a snapshot of it. Returns those that stay. What cannot
    be removed stays in scratch: no reason to stop a training.
    """
    before = max(start.resume_step, start.secured_step)
    wanted = first_at_each([one.step for one in found if one.step > before], start.job.retention.every, before)
    staying = [one for one in found[:-keep] if one.step in wanted]
    for one in found[:-keep]:
        if one not in staying:
            with suppress(OSError):
                remove(one.root / one.label)
    return [*staying, *found[-keep:]]
