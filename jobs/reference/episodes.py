"""Recorded episodes as arrays, in one .npz file: what `record` writes and `train` reads.

The file is written under a temporary name and renamed, so a name that exists is a whole file.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import BadInput, SegueError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Episodes:
    """N frames of all episodes in order: ``state`` (N, S) float32, ``actions`` (N, A) float32, ``episode`` (N,) the episode's number
    of each frame, ``images`` (N, H, W, 3) uint8 or None.
    """

    state: Floats
    actions: Floats
    episode: NDArray[np.int32]
    images: NDArray[np.uint8] | None = None

    @property
    def frames(self) -> int:
        return int(self.state.shape[0])


def save(episodes: Episodes, path: Path) -> None:
    """Write to ``path`` (suffix .npz) through a temporary name beside it. Raises SegueError when the disk refuses."""
    import numpy as np

    arrays: dict[str, Any] = {"state": episodes.state, "actions": episodes.actions, "episode": episodes.episode}
    if episodes.images is not None:
        arrays["images"] = episodes.images
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SegueError(
            f"{path}: cannot be written ({error.strerror or error}); check the directory and its room"
        ) from error


def load(path: Path) -> Episodes:
    """Read one .npz file. Raises BadInput when it is not one that `record` writes."""
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            missing = [name for name in ("state", "actions", "episode") if name not in found.files]
            if missing:
                raise BadInput(f"{path}: has no array {missing[0]!r}; record it with `python -m jobs.reference.record`")
            images = found["images"] if "images" in found.files else None
            episodes = Episodes(
                np.asarray(found["state"], np.float32),
                np.asarray(found["actions"], np.float32),
                np.asarray(found["episode"], np.int32),
                images,
            )
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: cannot be read as recorded episodes ({error}); record it again") from error
    _check(path, episodes)
    return episodes


def _check(path: Path, episodes: Episodes) -> None:
    import numpy as np

    count = episodes.frames
    shapes = {"actions": episodes.actions.shape, "episode": episodes.episode.shape}
    if episodes.images is not None:
        shapes["images"] = episodes.images.shape
    for name, shape in shapes.items():
        if shape[:1] != (count,):
            raise BadInput(f"{path}: {name!r} has shape {shape} where 'state' has {count} frames; record it again")
    if count == 0 or episodes.state.ndim != 2 or episodes.actions.ndim != 2:
        raise BadInput(f"{path}: holds no frames of (state, actions); record it again")
    for name, values in (("state", episodes.state), ("actions", episodes.actions)):
        if not np.isfinite(values).all():
            raise BadInput(f"{path}: {name!r} holds a value that is not finite; record it again")


def join(parts: list[Episodes]) -> Episodes:
    """All episodes one after the other. Raises BadInput when only some have images or shapes differ."""
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    try:
        with_images = {part.images is not None for part in parts}
        if len(with_images) > 1:
            raise ValueError("some have images and some have none")
        numbers, first = [], 0
        for part in parts:
            numbers.append(part.episode + first)
            first += int(part.episode.max()) + 1
        return Episodes(
            np.concatenate([part.state for part in parts]),
            np.concatenate([part.actions for part in parts]),
            np.concatenate(numbers),
            np.concatenate([part.images for part in parts if part.images is not None]) if True in with_images else None,
        )
    except ValueError as error:
        raise BadInput(f"the recorded files do not fit together ({error}); record them in one way") from error


def find(data: Path) -> Episodes:
    """Episodes of a .npz file, of all .npz files of a directory (by name), or of a LeRobot dataset (v2.1)."""
    if data.is_file():
        return load(data)
    if not data.is_dir():
        raise BadInput(
            f"{data}: no such file or directory; --data takes a .npz file, a directory of them, or a LeRobot dataset"
        )
    root = lerobot_root(data)
    if root is not None:
        from jobs.reference.lerobot_dataset import read

        return read(root)
    files = sorted(data.glob("*.npz"))
    if not files:
        raise BadInput(
            f"{data}: holds neither .npz files nor a LeRobot dataset (meta/info.json); record episodes into it"
        )
    return join([load(path) for path in files])


def lerobot_root(data: Path) -> Path | None:
    """The LeRobot dataset in ``data``: the directory itself or the only one at most two levels below it."""
    for pattern in ("meta/info.json", "*/meta/info.json", "*/*/meta/info.json"):
        found = sorted(data.glob(pattern))
        if len(found) > 1:
            raise BadInput(f"{data}: holds {len(found)} LeRobot datasets; give --data one of them")
        if found:
            return found[0].parents[1]
    return None
