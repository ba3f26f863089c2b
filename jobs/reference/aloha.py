"""Recorded episodes as ALOHA and its successors keep them: `episode_<n>.hdf5`, `observations/qpos`, `observations/images/top`, `action`.

What `segue convert` takes, so that the reference trainer's episodes go the way of a robot's. Each file appears whole, by a rename.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import BadInput, SegueError

if TYPE_CHECKING:
    from jobs.reference.episodes import Episodes

CAMERA = "top"


def write(episodes: Episodes, directory: Path, task: str) -> None:
    """One file an episode into ``directory``, which must be empty or absent. Raises BadInput when it is not, SegueError when the disk refuses."""
    import numpy as np

    try:
        import h5py
    except ImportError as error:
        raise SegueError("HDF5 is written with h5py, which is not installed: pip install 'segue[convert]'") from error
    assert episodes.images is not None
    if directory.is_dir() and any(directory.iterdir()):
        raise BadInput(f"--out {directory}: is not empty; give a directory of its own")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for number in np.unique(episodes.episode).tolist():
            rows = episodes.episode == number
            target = directory / f"episode_{number:06d}.hdf5"
            temporary = target.with_suffix(f".{os.getpid()}.tmp")
            with h5py.File(temporary, "w") as file:
                file.attrs["task"] = task
                file["observations/qpos"] = episodes.state[rows]
                file[f"observations/images/{CAMERA}"] = episodes.images[rows]
                file["action"] = episodes.actions[rows]
            temporary.replace(target)
    except OSError as error:
        raise SegueError(
            f"{directory}: cannot be written ({error.strerror or error}); check the directory and its room"
        ) from error
