"""The commits of a run, from one directory listing: names tell step and epoch, so no commit is opened."""

from __future__ import annotations

from pathlib import Path

from agent.store import names
from agent.store.fs import FileSystem
from agent.store.names import Commit

_ROUNDS = 100
"""A name that is listed but never found is a fault of the file system, not a prune; then what was found is believed."""


def list_commits(fs: FileSystem, root: str, *, marks: bool = True) -> list[Commit]:
    """All commits in readers' order. ``marks``: also read when each was last verified (an extended attribute each).

    Raises OSError; a run that does not exist yet has none. A name that vanishes before it is looked at was pruned because better
    ones are there, so the list is made again: what is left of the old one may not hold them.
    """
    directory = f"{root}/{names.CHECKPOINTS}"
    place = Path(directory)
    commits: list[Commit] = []
    for _ in range(_ROUNDS):
        try:
            found = fs.names(directory)
        except FileNotFoundError:
            return []
        commits, vanished = [], False
        for name in found:
            numbers = names.parse_commit(name)
            if numbers is None:
                continue
            path = f"{directory}/{name}"
            try:
                stat = fs.stat(path)
            except FileNotFoundError:
                vanished = True
                continue
            if stat.kind == "file":
                verified = _verified(fs, path) if marks else None
                commits.append(Commit(place / name, *numbers, stat.size, stat.modified, verified))
        if not vanished:
            break
    return names.best_first(commits)


def best_commit(fs: FileSystem, root: str) -> Commit | None:
    """The commit that a reader tries first: one listing and one stat, however many there are."""
    directory = f"{root}/{names.CHECKPOINTS}"
    for _ in range(_ROUNDS):
        try:
            found = fs.names(directory)
        except (FileNotFoundError, NotADirectoryError):
            return None
        numbered = [(names.readers_order(*numbers), name) for name in found if (numbers := names.parse_commit(name))]
        try:
            for (epoch, step), name in sorted(numbered, reverse=True):
                stat = fs.stat(f"{directory}/{name}")
                if stat.kind == "file":
                    return Commit(Path(directory) / name, step, epoch, stat.size, stat.modified)
        except FileNotFoundError:
            continue
        return None
    return None


def highest_committed_epoch(fs: FileSystem, root: str) -> int:
    """The highest epoch that any name in ``checkpoints/`` carries, 0 when there is none."""
    try:
        found = fs.names(f"{root}/{names.CHECKPOINTS}")
    except FileNotFoundError:
        return 0
    return max((numbers[1] for numbers in map(names.parse_commit, found) if numbers), default=0)


def _verified(fs: FileSystem, path: str) -> float | None:
    """When it was last read back and found good; a remark, so that whatever keeps it from being read is no error."""
    try:
        mark = fs.get_attribute(path, names.VERIFIED)
        return None if mark is None else float(mark)
    except (OSError, ValueError):
        return None
