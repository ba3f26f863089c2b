"""Small recorded episodes in every layout, the same from the same seed; and the lab's values as its converter would have them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CAMERAS = ("mount_image", "gripper_image")


def picture(seed: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Smooth colours, so that JPEG and video keep them nearly."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def jpeg(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One encoded frame."""
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "JPEG", quality=90)
    return np.frombuffer(made.getvalue(), np.uint8)


def lab_arrays(number: int, frames: int, rate: float = 20.0) -> dict[str, Any]:
    """Arrays of one episode of the lab's layout, images encoded."""
    random = np.random.default_rng(number)
    return {
        "timestamps": 100.0 * number + np.arange(frames) / rate + random.uniform(0, 0.0005, frames),
        "robot_current_pose": random.normal(size=(frames, 7)).astype(np.float32),
        "robot_desired_pose": random.normal(size=(frames, 7)).astype(np.float32),
        "gripper_actual_position": random.uniform(size=frames).astype(np.float32),
        "gripper_commanded_position": random.uniform(size=frames).astype(np.float32),
        "mount_image_rgb_compressed": [jpeg(picture(1000 * number + frame)) for frame in range(frames)],
        "gripper_image_rgb_compressed": [jpeg(picture(9000 + 1000 * number + frame)) for frame in range(frames)],
        "state": ["moving"] * frames,
    }


def write_lab(directory: Path, number: int, arrays: dict[str, Any]) -> Path:
    """`ep<NNNNNN>/episode.h5` below ``directory``."""
    import h5py

    path = directory / f"ep{number:06d}" / "episode.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if name.endswith("_compressed"):
                stored = file.create_dataset(name, (len(values),), h5py.vlen_dtype(np.uint8))
                for index, value in enumerate(values):
                    stored[index] = value
            elif name == "state":
                file.create_dataset(name, data=values, dtype=h5py.string_dtype())
            else:
                file.create_dataset(name, data=values)
    return path


def lab(directory: Path, episodes: int = 3, frames: int = 9) -> Path:
    """A source of the lab's layout; episode i has ``frames`` + i frames."""
    for number in range(episodes):
        write_lab(directory, number, lab_arrays(number, frames + number))
    return directory


def aloha(directory: Path, episodes: int = 2, frames: int = 6, compressed: bool = False) -> Path:
    """A source of the ALOHA layout, pixels or padded JPEGs, 14 joints, two cameras."""
    import h5py

    directory.mkdir(parents=True, exist_ok=True)
    for number in range(episodes):
        random = np.random.default_rng(number)
        with h5py.File(directory / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = False
            file["observations/qpos"] = random.normal(size=(frames, 14))
            file["observations/qvel"] = random.normal(size=(frames, 14))
            file["action"] = random.normal(size=(frames, 14))
            for camera, offset in (("cam_high", 0), ("cam_low", 500)):
                pixels = [picture(1000 * number + offset + frame) for frame in range(frames)]
                if compressed:
                    encoded = [jpeg(each) for each in pixels]
                    longest = max(map(len, encoded)) + 7
                    padded = np.zeros((frames, longest), np.uint8)
                    for row, each in zip(padded, encoded, strict=True):
                        row[: len(each)] = each
                    file[f"observations/images/{camera}"] = padded
                else:
                    file[f"observations/images/{camera}"] = np.stack(pixels)
    return directory


def npz(directory: Path, episodes: int = 2, frames: int = 6) -> Path:
    """One .npz an episode, each with a task of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(episodes):
        random = np.random.default_rng(number)
        np.savez(
            directory / f"run{number:02d}.npz",
            state=random.normal(size=(frames, 4)).astype(np.float32),
            actions=random.normal(size=(frames, 2)).astype(np.float32),
            image=np.stack([picture(1000 * number + frame) for frame in range(frames)]),
            task=np.array(f"reach target {number}"),
        )
    return directory


def zarr_buffer(directory: Path, lengths: tuple[int, ...] = (5, 7)) -> Path:
    """A replay buffer: images as floats of 0 to 255, one number a frame beside state and action."""
    import zarr

    rows = sum(lengths)
    random = np.random.default_rng(0)
    newer = int(zarr.__version__.split(".")[0]) >= 3  # which the oldest Python has not got
    root = zarr.open_group(str(directory), mode="w", **({"zarr_format": 2} if newer else {}))
    arrays = {
        "data/img": np.stack([picture(frame) for frame in range(rows)]).astype(np.float32),
        "data/state": random.normal(size=(rows, 5)).astype(np.float32),
        "data/action": random.normal(size=(rows, 2)).astype(np.float32),
        "data/n_contacts": random.integers(0, 3, rows).astype(np.float32),
        "meta/episode_ends": np.cumsum(lengths),
    }
    for name, values in arrays.items():
        group, _, leaf = name.partition("/")
        below = root.require_group(group)
        (below.create_array if newer else below.create_dataset)(leaf, data=values, chunks=(4, *values.shape[1:]))
    return directory
