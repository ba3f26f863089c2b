"""Frames of a LeRobot dataset in format v2.1 (what lerobot 0.3.3 writes), read without the lerobot package.

`meta/info.json` says where things lie: one parquet file an episode, and each camera's frames either inside it (PNG bytes) or in one video an
episode. Needs pyarrow, pillow, and av where there are videos.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import BadInput, SegueError
from jobs.reference.episodes import Episodes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Frames = NDArray[np.uint8]

_STATE = ("observation.state", "state")
_ACTIONS = ("action", "actions")


def read(root: Path) -> Episodes:
    """All episodes of the dataset at ``root``; the images of its one camera, or None where it has none.

    Raises BadInput when it is of another version or lacks state or actions, SegueError when a package or a file is missing.
    """
    import numpy as np

    info = _info(root)
    features = info["features"]
    state, actions = _one_of(root, features, _STATE), _one_of(root, features, _ACTIONS)
    cameras = [name for name, feature in features.items() if feature.get("dtype") in ("image", "video")]
    if len(cameras) > 1:
        raise BadInput(f"{root}: has {len(cameras)} cameras ({', '.join(cameras)}); the reference trainer takes one")
    camera = cameras[0] if cameras else None
    states, acts, frames, numbers = [], [], [], []
    for number in range(int(info["total_episodes"])):
        path = root / _path(info, "data_path", number)
        as_video = camera is not None and features[camera]["dtype"] == "video"
        table = _table(path, [state, actions, *([camera] if camera is not None and not as_video else [])])
        states.append(_matrix(table, state))
        acts.append(_matrix(table, actions))
        numbers.append(np.full(len(states[-1]), number, np.int32))
        if camera is not None:
            where = root / _path(info, "video_path", number, camera) if as_video else path
            seen = list(_decoded(where) if as_video else _stored(path, root, table, camera))
            if len(seen) != len(states[-1]):
                raise BadInput(
                    f"{where}: {len(seen)} frames of {camera} for {len(states[-1])} rows; convert the episodes again"
                )
            frames.append(np.stack(seen))
    if not states:
        raise BadInput(f"{root}: the dataset has no episodes")
    try:
        images = np.concatenate(frames) if frames else None
        return Episodes(np.concatenate(states), np.concatenate(acts), np.concatenate(numbers), images)
    except ValueError as error:
        raise BadInput(f"{root}: its episodes differ in shape ({error}); convert them in one way") from error


def _info(root: Path) -> dict[str, Any]:
    path = root / "meta" / "info.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        needed = [info["features"], info["total_episodes"], info["data_path"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path}: is not the description of a LeRobot dataset ({error!r}); convert the episodes again"
        ) from error
    if not version.startswith("v2.") or not needed:
        raise BadInput(
            f"{path}: is of version {version}, the reference trainer reads v2.1: segue convert --format v2.1"
        )
    return info


def _one_of(root: Path, features: dict[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        if name in features:
            return name
    raise BadInput(f"{root}: has no feature {' or '.join(map(repr, names))} (there: {', '.join(features)})")


def _path(info: dict[str, Any], key: str, number: int, camera: str = "") -> str:
    chunk = number // int(info.get("chunks_size") or 1000)
    return str(info[key]).format(episode_chunk=chunk, episode_index=number, video_key=camera)


def _table(path: Path, columns: list[str]) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SegueError(
            "a LeRobot dataset is read with pyarrow, which is not installed: pip install pyarrow"
        ) from error
    try:
        return pyarrow.parquet.read_table(path, columns=columns)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as an episode ({error}); convert the episodes again") from error


def _matrix(table: Any, column: str) -> Any:
    import numpy as np

    rows = np.asarray(table[column].to_pylist(), np.float32)
    return rows.reshape(len(rows), -1)


def _stored(path: Path, root: Path, table: Any, camera: str) -> Iterator[Frames]:
    try:
        import numpy as np
        from PIL import Image
    except ImportError as error:
        raise SegueError("images are read with pillow, which is not installed: pip install pillow") from error
    for cell in table[camera].to_pylist():
        data = cell.get("bytes")
        if data is None and not (root / str(cell.get("path"))).is_file():
            raise BadInput(f"{path}: its images are not there ({cell.get('path')}); convert the episodes again")
        with Image.open(io.BytesIO(data) if data is not None else root / cell["path"]) as image:
            yield np.asarray(image.convert("RGB"), np.uint8)


def _decoded(path: Path) -> Iterator[Frames]:
    try:
        import av
        import numpy as np
    except ImportError as error:
        raise SegueError("videos are read with av, which is not installed: pip install av") from error
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be decoded ({error}); convert the episodes again") from error
