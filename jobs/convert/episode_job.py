"""What a worker is asked to do: inspect one episode, convert one, join all, read the result's description back."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import BadInput, SegueError
from jobs.convert import inspection, joining_v21, joining_v30
from jobs.convert.inspection import Inspection
from jobs.convert.options import ConvertOptions
from jobs.convert.part import quiet, write_part, writing
from jobs.convert.reader import BadEpisode, EpisodeRef


@dataclass(frozen=True)
class Place:
    """Where an episode goes: its number, the row of its first frame, the number of its task."""

    found: Inspection
    index: int
    first_row: int
    task_index: int

    def same_as(self, marker: dict[str, Any]) -> bool:
        """Whether the marker is of this episode in this place."""
        return bool(
            marker["name"] == self.found.ref.name
            and marker["signature"] == signature(self.found.ref)
            and [marker["first_row"], marker["task_index"], marker["length"]]
            == [self.first_row, self.task_index, self.found.frames]
        )


def signature(ref: EpisodeRef) -> list[Any]:
    """What changes when the source of an episode changes."""
    try:
        status = ref.path.stat()
    except OSError:
        return [str(ref.path)]
    return [str(ref.path), status.st_size, status.st_mtime_ns, list(ref.span or ()), ref.state]


def inspect_one(ref: EpisodeRef, layout: str, options: ConvertOptions) -> Inspection:
    """See inspection.inspect."""
    return inspection.inspect(ref, layout, options)


def marker_path(partial: Path, index: int) -> Path:
    """The file whose presence says that episode ``index`` is whole."""
    return partial / "done" / f"{index:06d}.json"


def convert_one(place: Place, layout: str, options: ConvertOptions, form: str) -> dict[str, Any]:
    """Write the episode into the growing dataset and, last, its marker; returns the marker's content."""
    name = place.found.ref.name
    before = signature(place.found.ref)
    work = options.partial / "work" / f"{place.index:06d}-{os.getpid()}"
    try:
        write_part(place.found, layout, options, form, work)
        record = writing(work, _adopted, work, place, options, form)
    except BadEpisode as error:
        raise BadInput(f"{name}: {error}; it has changed since it was checked, run the same command again") from error
    except SegueError as error:
        raise SegueError(f"{name}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    marker = {
        "name": name,
        "signature": before,
        "first_row": place.first_row,
        "task_index": place.task_index,
        "length": place.found.frames,
        "inspection": [place.found.vectors, place.found.cameras, place.found.task],
        "record": record,
    }
    writing(options.partial, _marked, marker_path(options.partial, place.index), marker)
    return marker


def _adopted(work: Path, place: Place, options: ConvertOptions, form: str) -> dict[str, Any] | None:
    if form == "v2.1":
        return joining_v21.adopt(work, options.partial / "dataset", place.index, place.first_row, place.task_index)
    joining_v30.adopt(work, part_path(options.partial, place.index))
    return None


def part_path(partial: Path, index: int) -> Path:
    """The one-episode dataset of v3.0 until all are joined."""
    return partial / "parts" / f"{index:06d}"


def _marked(path: Path, marker: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(marker, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def join(options: ConvertOptions, form: str, markers: list[dict[str, Any]], tasks: list[str]) -> None:
    """Make the dataset whole from its episodes, and let lerobot read its description. Raises SegueError."""
    dataset = options.partial / "dataset"
    quiet()
    if form == "v2.1":
        writing(dataset, joining_v21.finish, dataset, [marker["record"] for marker in markers], tasks)
    else:
        parts = [part_path(options.partial, index) for index in range(len(markers))]
        writing(dataset, joining_v30.finish, dataset, parts, options.repo_id)
    episodes, frames = writing(dataset, _read_back, options.repo_id, dataset)
    wanted = (len(markers), sum(marker["length"] for marker in markers))
    if (episodes, frames) != wanted:
        raise SegueError(
            f"{dataset}: lerobot reads {episodes} episodes of {frames} frames where {wanted[0]} of {wanted[1]} were written; "
            f"remove {options.partial} and start again"
        )


def _read_back(repo_id: str, dataset: Path) -> tuple[int, int]:
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata(repo_id, root=dataset)
    return int(meta.total_episodes), int(meta.total_frames)
