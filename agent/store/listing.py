"""The commits of a run, from one directory listing: names tell step and epoch, so no commit is opened."""

from __future__ import annotations

from pathlib import Path

from agent.store import names
from agent.store.fs import FileSystem
from agent.store.names import Commit


def list_commits(fs: FileSystem, root: str, *, marks: bool = True) -> list[Commit]:
    """All commits in readers' order. ``marks``: also read when each was last verified (an extended attribute each).

    Raises OSError; a run that does not exist yet has none.
    """
    directory = f"{root}/{names.CHECKPOINTS}"
    try:
        found = fs.names(directory)
    except FileNotFoundError:
        return []
    place = Path(directory)
    commits = []
    for name in found:
        numbers = names.parse_commit(name)
        if numbers is None:
            continue
        path = f"{directory}/{name}"
        try:
            stat = fs.stat(path)
            mark = fs.get_attribute(path, names.VERIFIED) if marks else None
        except FileNotFoundError:  # pruned by its owner meanwhile
            continue
        if stat.kind == "file":
            commits.append(Commit(place / name, *numbers, stat.size, stat.modified, _time(mark)))
    return names.best_first(commits)


def best_commit(fs: FileSystem, root: str) -> Commit | None:
    """The commit that a reader tries first: one listing and one stat, however many there are."""
    directory = f"{root}/{names.CHECKPOINTS}"
    try:
        found = fs.names(directory)
    except (FileNotFoundError, NotADirectoryError):
        return None
    numbered = [(names.readers_order(*numbers), name) for name in found if (numbers := names.parse_commit(name))]
    for (epoch, step), name in sorted(numbered, reverse=True):
        try:
            stat = fs.stat(f"{directory}/{name}")
        except FileNotFoundError:
            continue
        if stat.kind == "file":
            return Commit(Path(directory) / name, step, epoch, stat.size, stat.modified)
    return None


def highest_committed_epoch(fs: FileSystem, root: str) -> int:
    """The highest epoch that any name in ``checkpoints/`` carries, 0 when there is none."""
    try:
        found = fs.names(f"{root}/{names.CHECKPOINTS}")
    except FileNotFoundError:
        return 0
    return max((numbers[1] for numbers in map(names.parse_commit, found) if numbers), default=0)


def _time(mark: bytes | None) -> float | None:
    if mark is None:
        return None
    try:
        return float(mark)
    except ValueError:
        return None
