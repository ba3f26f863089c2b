"""HDF5 as ALOHA and its successors record it: `*.hdf5`, one file an episode, `/observations/qpos`, `/observations/images/<camera>`, `/action`.

Images are pixels (N, H, W, 3), or JPEGs padded with zeros to one length (N, L). There are no time stamps: the rate is what --fps says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.convert.reader import BadEpisode, Camera, Episode, EpisodeRef, as_bad_episode, matrix, no_episodes, text

LAYOUT = "aloha"
PACKAGES = ("h5py", "numpy")
ROBOT_TYPE: str | None = "aloha"

_VECTORS = {
    "observation.state": "observations/qpos",
    "observation.velocity": "observations/qvel",
    "observation.effort": "observations/effort",
    "action": "action",
}
_NEEDED = ("observations/qpos", "action", "observations/images")
_SUFFIXES = (".hdf5", ".h5")


def recognises(source: Path) -> bool:
    """A directory with *.hdf5, or one such file."""
    return bool(_files(source))


def episodes(source: Path) -> list[EpisodeRef]:
    """All files, by their numbers where the names have them: episode_2 before episode_10."""
    found = _files(source)
    if not found:
        raise no_episodes(source, "*.hdf5")
    return [EpisodeRef(path.stem, path) for path in sorted(found, key=_by_number)]


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix in _SUFFIXES else []
    return [path for path in source.iterdir() if path.suffix in _SUFFIXES and path.is_file()]


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]


@contextmanager
def open_episode(ref: EpisodeRef) -> Iterator[Episode]:
    """The file stays open while its images are asked for."""
    import h5py

    with as_bad_episode(ref.path, "HDF5"), h5py.File(ref.path, "r") as file:
        missing = [name for name in _NEEDED if name not in file]
        if missing:
            raise BadEpisode(f"lacks {missing[0]!r} of the ALOHA layout (has: {', '.join(sorted(file)) or 'nothing'})")
        vectors = {feature: matrix(file[name][()], name) for feature, name in _VECTORS.items() if name in file}
        images = file["observations/images"]
        cameras = {f"observation.images.{name}": _camera(name, images[name]) for name in sorted(images)}
        task = next((text(file.attrs[key]) for key in ("task", "language_instruction") if key in file.attrs), None)
        yield Episode(vectors, cameras, None, task)


def _camera(name: str, stored: Any) -> Camera:
    if stored.ndim == 4 and stored.shape[3] == 3 and stored.dtype == "uint8":
        return Camera(len(stored), lambda index: stored[index])
    if stored.ndim <= 2 and (stored.dtype == "uint8" or stored.dtype.kind == "O"):
        return Camera(len(stored), lambda index: bytes(stored[index].tobytes()))
    raise BadEpisode(
        f"camera {name!r} has shape {stored.shape} of {stored.dtype}, where pixels (N, H, W, 3) uint8 or padded JPEGs (N, L) uint8 are needed"
    )
