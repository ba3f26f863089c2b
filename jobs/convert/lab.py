"""The lab's own layout: `ep<NNNNNN>/episode.h5`, one JPEG a frame and camera, poses and grippers.

state = measured pose [x, y, z, qx, qy, qz, qw] in metres and the gripper (8); actions = desired pose and commanded gripper (8).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

LAYOUT = "lab"
PACKAGES = ("h5py", "numpy")
ROBOT_TYPE: str | None = "xarm6"

_FILE = "episode.h5"
_POSE = 7
_VECTORS = {
    "state": ("robot_current_pose", "gripper_actual_position"),
    "actions": ("robot_desired_pose", "gripper_commanded_position"),
}
_CAMERAS = {"mount_image": "mount_image_rgb_compressed", "gripper_image": "gripper_image_rgb_compressed"}
_LABELS = "state"


def recognises(source: Path) -> bool:
    """A directory with ep*/episode.h5 in it."""
    return source.is_dir() and next(source.glob(f"ep*/{_FILE}"), None) is not None


def episodes(source: Path) -> list[EpisodeRef]:
    """All ep*/, by name; a directory without its file is listed too, so that it is named as bad."""
    found = sorted(path for path in source.glob("ep*") if path.is_dir()) if source.is_dir() else []
    if not found:
        raise no_episodes(source, f"ep*/{_FILE}")
    return [EpisodeRef(path.name, path / _FILE) for path in found]


@contextmanager
def open_episode(ref: EpisodeRef) -> Iterator[Episode]:
    """The file stays open while its images are asked for."""
    import h5py
    import numpy as np

    if not ref.path.is_file():
        raise BadEpisode(f"has no file {_FILE}")
    with as_bad_episode(ref.path, "HDF5"), h5py.File(ref.path, "r") as file:
        needed = ["timestamps", *(name for pair in _VECTORS.values() for name in pair), *_CAMERAS.values()]
        missing = [name for name in needed if name not in file]
        if missing:
            raise BadEpisode(
                f"lacks the data set {missing[0]!r} of the lab's layout (has: {', '.join(sorted(file)) or 'nothing'})"
            )
        vectors, lengths = {}, {}
        for feature, (pose_name, gripper_name) in _VECTORS.items():
            pose, gripper = matrix(file[pose_name][()], pose_name), matrix(file[gripper_name][()], gripper_name)
            if pose.shape[1] != _POSE or gripper.shape[1] != 1:
                raise BadEpisode(
                    f"{pose_name!r} has shape {pose.shape} and {gripper_name!r} {gripper.shape}, where (N, 7) and (N,) are needed"
                )
            lengths[pose_name], lengths[gripper_name] = len(pose), len(gripper)
            rows = min(len(pose), len(gripper))
            vectors[feature] = np.concatenate([pose[:rows], gripper[:rows]], axis=1)
        if _LABELS in file:
            lengths[_LABELS] = len(file[_LABELS])
        cameras = {feature: _camera(file[name]) for feature, name in _CAMERAS.items()}
        task = text(file.attrs.get("task"))
        yield Episode(vectors, cameras, seconds(file["timestamps"][()], "timestamps"), task, lengths)


def _camera(stored: Any) -> Camera:
    def frame(index: int) -> bytes:
        found: bytes = stored[index].tobytes()
        return found

    return Camera(len(stored), frame)
