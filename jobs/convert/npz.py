"""A directory of `.npz` files, one episode each, or files that hold several, told apart by an array `episode` (what the reference
trainer's `record` writes).

Arrays (N,) or (N, D) of numbers become features of the same name, (N, H, W, 3) uint8 cameras; `timestamps` (N,) in seconds and `task`
are optional.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from agent.errors import BadInput
from jobs.convert.reader import (
    BadEpisode,
    Camera,
    Episode,
    EpisodeRef,
    as_bad_episode,
    matrix,
    no_episodes,
    seconds,
    text,
)

LAYOUT = "npz"
PACKAGES = ("numpy",)
ROBOT_TYPE: str | None = None

_NUMBER = "episode"
_ACTIONS = ("actions", "action")
_TIMES = ("timestamps", "timestamp")
_TASK = "task"


def recognises(source: Path) -> bool:
    """A directory with *.npz, or one such file."""
    return bool(_files(source))


def episodes(source: Path) -> list[EpisodeRef]:
    """All files by name, and within a file by its array `episode`, whose numbers must lie together."""
    found = _files(source)
    if not found:
        raise no_episodes(source, "*.npz")
    return [ref for path in found for ref in _within(path)]


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".npz" else []
    return sorted(path for path in source.glob("*.npz") if path.is_file())


def _within(path: Path) -> list[EpisodeRef]:
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            numbers = np.asarray(arrays[_NUMBER]) if _NUMBER in arrays.files else None
    except Exception:  # a damaged file is one bad episode, which the inspection names
        return [EpisodeRef(path.stem, path)]
    if numbers is None or numbers.ndim != 1 or len(numbers) == 0:
        return [EpisodeRef(path.stem, path)]
    starts = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)]
    if len(set(numbers[starts[:-1]].tolist())) != len(starts) - 1:
        raise BadInput(f"{path}: the rows of one number in 'episode' do not lie together; sort the file by episode")
    return [EpisodeRef(f"{path.stem}[{numbers[start]}]", path, (start, stop)) for start, stop in pairwise(starts)]


@contextmanager
def open_episode(ref: EpisodeRef) -> Iterator[Episode]:
    """All arrays of the episode are in memory, as .npz has it."""
    import numpy as np

    with as_bad_episode(ref.path, ".npz"), ref.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        vectors, cameras, lengths, times, task = {}, {}, {}, None, None
        for name in arrays.files:
            if name == _NUMBER:
                continue
            values: Any = arrays[name]
            if name == _TASK and values.size == 1:
                task = text(values)
                continue
            if ref.span is not None and values.ndim:
                _check_rows(name, values, arrays[_NUMBER])
                values = values[ref.span[0] : ref.span[1]]
            if name == _TASK:
                task, lengths[name] = _instruction(values), len(values)
                continue
            if name in _TIMES:
                times = seconds(values, name)
            elif values.ndim == 4 and values.shape[3] == 3 and values.dtype == np.uint8:
                cameras[name] = Camera(len(values), values.__getitem__)
            else:
                vectors[name] = matrix(values, name)
        if not any(name in vectors for name in _ACTIONS):
            raise BadEpisode(f"has no array 'actions' or 'action' (has: {', '.join(arrays.files) or 'nothing'})")
        yield Episode(vectors, cameras, times, task, lengths)


def _check_rows(name: str, values: Any, numbers: Any) -> None:
    """In a file of several episodes; rows are told apart by ``numbers`` alone, so a shorter array would be cut at the wrong places."""
    if len(values) != len(numbers):
        raise BadEpisode(f"{name!r} has {len(values)} rows where {_NUMBER!r} has {len(numbers)}")


def _instruction(values: Any) -> str | None:
    """Of one string a row, which must be the same in the whole episode."""
    found = {text(value) for value in values.ravel()}
    if len(found) > 1:
        raise BadEpisode(f"{_TASK!r} changes within the episode, and an episode has one instruction: split it")
    return next(iter(found), None)
