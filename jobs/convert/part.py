"""One episode through lerobot's own API into a dataset of one episode: create, add_frame, save_episode.

Each episode is a small dataset of its own first, so that episodes can be written side by side and lerobot's objects never hold more than one.
What joins them is in joining_v21.py and joining_v30.py. Frames are written to disk by a writer of ours that raises: lerobot's own prints the
error of a full disk and goes on.
"""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import SegueError
from jobs.convert.inspection import Inspection, renamed
from jobs.convert.options import ConvertOptions
from jobs.convert.pictures import Size, pixels
from jobs.convert.reader import Episode, as_bad_episode, reader_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def features(found: Inspection, options: ConvertOptions) -> dict[str, dict[str, Any]]:
    """lerobot's description of the dataset's features."""
    made: dict[str, dict[str, Any]] = {
        name: {"dtype": "float32", "shape": (width,), "names": None} for name, width in found.vectors
    }
    for name, size in found.cameras:
        height, width = options.image_size or size
        made[name] = {
            "dtype": "video" if options.video else "image",
            "shape": (height, width, 3),
            "names": ["height", "width", "channel"],
        }
    return made


class RaisingImageWriter:
    """What a LeRobotDataset takes as its image writer; writes at once and lets errors through."""

    def save_image(self, image: Any, fpath: Path, compress_level: int | None = None) -> None:
        """PNG at ``fpath``; the level is lerobot's own (0.3.3: Pillow's default, 0.4: 1)."""
        from PIL import Image

        chosen: dict[str, Any] = {} if compress_level is None else {"compress_level": compress_level}
        Image.fromarray(image).save(fpath, **chosen)

    def wait_until_done(self) -> None:
        """Nothing is ever pending."""

    def stop(self) -> None:
        """Nothing to stop."""


def write_part(found: Inspection, layout: str, options: ConvertOptions, form: str, root: Path) -> None:
    """A LeRobot dataset with this one episode at ``root``, which must not exist. Raises BadEpisode, or SegueError when writing fails."""
    quiet()
    with reader_of(layout).open_episode(found.ref) as episode:
        dataset = writing(root, _created, found, options, root)
        for frame in _frames(found, episode, options):
            writing(root, _add, dataset, frame, found.task, form)
        writing(root, _saved, dataset, root)


def writing(root: Path, call: Any, *arguments: Any) -> Any:
    """``call(*arguments)``, in which every error is one of writing, told as a SegueError."""
    try:
        return call(*arguments)
    except SegueError:
        raise
    except MemoryError as error:
        raise SegueError("not enough memory for one episode; use fewer --workers") from error
    except Exception as error:  # lerobot, datasets and av raise of every kind
        raise told(root, error) from error


def told(root: Path, error: BaseException) -> SegueError:
    """The sentence for an error of writing below ``root``: a full disk is the cause wherever it appears."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None and seen.errno in _FULL:
            return SegueError(
                f"{root}: the disk is full or the quota used up; make room and run the same command again, it goes on where it stopped"
            )
        if isinstance(seen, OSError) and seen.errno in _REFUSED:
            return SegueError(f"{root}: cannot be written ({seen.strerror}); name a directory of yours with --out")
        seen = seen.__cause__ or seen.__context__
    return SegueError(
        f"{root}: lerobot could not write the episode ({type(error).__name__}: {' '.join(str(error).split())})"
    )


_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def quiet() -> None:
    """No progress bars and no advice of the libraries below; every worker is one of several."""
    logging.getLogger().setLevel(logging.ERROR)
    import av
    import datasets
    import torch

    av.logging.set_level(av.logging.ERROR)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)


def _created(found: Inspection, options: ConvertOptions, root: Path) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset.create(
        repo_id=options.repo_id,
        fps=options.fps,
        features=features(found, options),
        root=root,
        robot_type=options.robot_type,
        use_videos=options.video,
    )
    dataset.image_writer = RaisingImageWriter()
    return dataset


def _frames(found: Inspection, episode: Episode, options: ConvertOptions) -> Iterator[dict[str, Any]]:
    names = renamed([*episode.vectors, *episode.cameras], options)
    rows = next(len(values) for values in episode.vectors.values())
    sizes: dict[str, Size] = dict(found.cameras)
    for index in range(0, rows, options.downsample):
        frame: dict[str, Any] = {names[name]: values[index] for name, values in episode.vectors.items()}
        for name, camera in episode.cameras.items():
            with as_bad_episode(found.ref.path, f"frame {index} of camera {name!r}"):
                frame[names[name]] = pixels(camera.frame(index), options.image_size or sizes[names[name]])
        yield frame


def _add(dataset: Any, frame: dict[str, Any], task: str, form: str) -> None:
    if form == "v2.1":
        dataset.add_frame(frame, task=task)
    else:
        dataset.add_frame({**frame, "task": task})


def _saved(dataset: Any, root: Path) -> None:
    for name, feature in dataset.features.items():
        frames = dataset.episode_buffer[name]
        if tuple(feature["shape"]) == (1,) and isinstance(frames, list):
            # lerobot stores one number as a scalar, which numpy 2.4 no longer makes of an array of one.
            dataset.episode_buffer[name] = [value[0] if getattr(value, "ndim", 0) else value for value in frames]
    dataset.save_episode()
    if hasattr(dataset, "finalize"):
        dataset.finalize()
    # Frames of cameras kept as images are in the parquet file by now.
    shutil.rmtree(root / "images", ignore_errors=True)
