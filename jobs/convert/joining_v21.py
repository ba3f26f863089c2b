"""Format v2.1: an episode written as the only one becomes number i of a dataset, and the parts become one dataset.

v2.1 keeps one parquet file and one video a camera for each episode, and three lists in meta/. So a part's files are moved to their final
names, its columns of numbers (episode_index, index, task_index) set, and its lines of the lists kept until all are there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.errors import SegueError


def adopt(part: Path, dataset: Path, index: int, first_row: int, task_index: int) -> dict[str, Any]:
    """Move the one-episode dataset ``part`` into ``dataset`` as episode ``index`` whose first frame is row ``first_row``; returns its record."""
    info = json.loads((part / "meta" / "info.json").read_text(encoding="utf-8"))
    if info["codebase_version"] != "v2.1":
        raise SegueError(
            f"lerobot wrote a dataset of {info['codebase_version']} where v2.1 was expected; install lerobot==0.3.3"
        )
    chunk = index // int(info["chunks_size"])
    _numbered(
        part / info["data_path"].format(episode_chunk=0, episode_index=0),
        dataset / info["data_path"].format(episode_chunk=chunk, episode_index=index),
        {"episode_index": (index, 0), "index": (first_row, 1), "task_index": (task_index, 0)},
    )
    for key, feature in info["features"].items():
        if feature["dtype"] == "video":
            before = part / info["video_path"].format(episode_chunk=0, video_key=key, episode_index=0)
            after = dataset / info["video_path"].format(episode_chunk=chunk, video_key=key, episode_index=index)
            after.parent.mkdir(parents=True, exist_ok=True)
            durable(before)
            before.replace(after)
    episode = _only_line(part / "meta" / "episodes.jsonl")
    stats = _only_line(part / "meta" / "episodes_stats.jsonl")["stats"]
    length = int(episode["length"])
    for name, first, last in (
        ("episode_index", index, index),
        ("index", first_row, first_row + length - 1),
        ("task_index", task_index, task_index),
    ):
        stats[name] = _shifted(stats[name], first, last)
    return {"length": length, "tasks": episode["tasks"], "stats": stats, "info": info}


def _numbered(before: Path, after: Path, columns: dict[str, tuple[int, int]]) -> None:
    """Write the parquet file again with ``columns`` name → (first value, increment) replaced; everything else stays."""
    import numpy as np
    import pyarrow.parquet as pq

    file = pq.ParquetFile(before)
    after.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with pq.ParquetWriter(after, file.schema_arrow) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            for name, (first, increment) in columns.items():
                where = table.schema.get_field_index(name)
                values = first + increment * np.arange(written, written + table.num_rows, dtype=np.int64)
                table = table.set_column(where, table.schema.field(where), [values])
            written += table.num_rows
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    file.close()
    durable(after)


def durable(path: Path) -> None:
    """On the disk before the marker that says so."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _shifted(stats: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """Statistics of consecutive or equal whole numbers: the spread stays, the place changes."""
    return {**stats, "min": [first], "max": [last], "mean": [(first + last) / 2]}


def _only_line(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def finish(dataset: Path, records: Sequence[dict[str, Any]], tasks: Sequence[str]) -> None:
    """Write meta/ for all episodes, in their order."""
    info = dict(records[0]["info"])
    videos = sum(feature["dtype"] == "video" for feature in info["features"].values())
    info["total_episodes"] = len(records)
    info["total_frames"] = sum(record["length"] for record in records)
    info["total_tasks"] = len(tasks)
    info["total_videos"] = videos * len(records)
    info["total_chunks"] = -(-len(records) // int(info["chunks_size"]))
    info["splits"] = {"train": f"0:{len(records)}"}
    meta = dataset / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    _lines(meta / "tasks.jsonl", [{"task_index": number, "task": task} for number, task in enumerate(tasks)])
    _lines(
        meta / "episodes.jsonl",
        [
            {"episode_index": number, "tasks": record["tasks"], "length": record["length"]}
            for number, record in enumerate(records)
        ],
    )
    _lines(
        meta / "episodes_stats.jsonl",
        [{"episode_index": number, "stats": record["stats"]} for number, record in enumerate(records)],
    )
    _write(meta / "info.json", json.dumps(info, indent=4, ensure_ascii=False))


def _lines(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    _write(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


def _write(path: Path, content: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
