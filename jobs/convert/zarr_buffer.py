"""Replay buffers in Zarr, as diffusion-policy codebases keep them: `data/<name>` all episodes one after the other, `meta/episode_ends`.

`data/action` → action, `data/state` → observation.state, images (N, H, W, 3) → observation.images.<name>, other numbers →
observation.<name>. A directory or a .zip of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.errors import BadInput
from jobs.convert.reader import BadEpisode, Camera, Episode, EpisodeRef, as_bad_episode, matrix, no_episodes, seconds

LAYOUT = "zarr"
PACKAGES = ("zarr", "numpy")
ROBOT_TYPE: str | None = None

_ENDS = "meta/episode_ends"
_TIMES = ("timestamps", "timestamp")


def recognises(source: Path) -> bool:
    """A directory with data/ and meta/episode_ends, or a file *.zarr.zip."""
    return (source / _ENDS).is_dir() or source.name.endswith(".zarr.zip")


def episodes(source: Path) -> list[EpisodeRef]:
    """One for each entry of episode_ends, which must increase up to the length of the buffer."""
    import numpy as np

    try:
        with _buffer(source) as root:
            ends = np.asarray(root[_ENDS][:]).astype(np.int64)
    except Exception as error:
        raise BadInput(
            f"{source}: {_ENDS} cannot be read as Zarr ({' '.join(str(error).split())}); name the buffer's own directory"
        ) from error
    if ends.ndim != 1 or len(ends) == 0:
        raise no_episodes(source, _ENDS)
    starts = [0, *ends[:-1].tolist()]
    if (np.diff(np.concatenate([[0], ends])) <= 0).any():
        raise BadInput(
            f"{source}: {_ENDS} does not increase from episode to episode; the buffer is damaged, write it again"
        )
    state = _state(source) if source.is_dir() else ""
    return [
        EpisodeRef(f"{source.name}[{number}]", source, (int(start), int(end)), state)
        for number, (start, end) in enumerate(zip(starts, ends.tolist(), strict=True))
    ]


def _state(source: Path) -> str:
    """A digest of names, sizes and times of all its files."""
    found = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        if path.is_file():
            status = path.stat()
            found.update(
                f"{path.relative_to(source)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "replace")
            )
    return found.hexdigest()


@contextmanager
def _buffer(source: Path) -> Iterator[Any]:
    import zarr

    if source.is_dir():
        yield zarr.open_group(str(source), mode="r")
        return
    store = zarr.storage.ZipStore(str(source), mode="r")
    try:
        yield zarr.open_group(store, mode="r")
    finally:
        store.close()


@contextmanager
def open_episode(ref: EpisodeRef) -> Iterator[Episode]:
    """Reads the rows of this episode; images are read one by one."""
    assert ref.span is not None
    start, stop = ref.span
    with as_bad_episode(ref.path, "Zarr"), _buffer(ref.path) as root:
        vectors, cameras, times = {}, {}, None
        for name, array in sorted(root["data"].arrays()):
            if array.shape[0] < stop:
                raise BadEpisode(f"ends at row {stop}, but data/{name} has {array.shape[0]} rows")
            if name in _TIMES:
                times = seconds(array[start:stop], name)
            elif array.ndim == 4:
                cameras[f"observation.images.{name}"] = _camera(name, array, start, stop)
            else:
                vectors[_feature(name)] = matrix(array[start:stop], name)
        if "action" not in vectors:
            raise BadEpisode("has no data/action")
        yield Episode(vectors, cameras, times)


def _feature(name: str) -> str:
    return "action" if name in ("action", "actions") else f"observation.{name}"


def _up_to_one(pixels: Any) -> bool:
    return bool(((pixels > 0) & (pixels < 1)).any() and pixels.max() <= 1)


def _camera(name: str, array: Any, start: int, stop: int) -> Camera:
    import numpy as np

    if array.shape[3] != 3:
        raise BadEpisode(f"camera data/{name} has shape {array.shape}, where (N, H, W, 3) is needed")
    # One frame may be that dark; three are of a buffer that counts from 0 to 1, and would all become black.
    if array.dtype.kind == "f" and all(_up_to_one(array[row]) for row in (start, (start + stop) // 2, stop - 1)):
        raise BadEpisode(
            f"camera data/{name} holds values of 0 to 1, where 0 to 255 are needed: write it again as uint8"
        )

    def frame(index: int) -> Any:
        pixels = np.asarray(array[start + index])
        if pixels.dtype != np.uint8:
            # Buffers of floats hold 0 to 255.
            if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 255:
                raise BadEpisode(f"camera data/{name}, frame {index}: values are not between 0 and 255")
            pixels = pixels.astype(np.uint8)
        return pixels

    return Camera(stop - start, frame)
