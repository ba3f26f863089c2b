"""Format v3.0: many episodes share a file, so the parts stay whole datasets until lerobot's own aggregation joins them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from agent.errors import SegueError
from jobs.convert.joining_v21 import durable


def adopt(part: Path, kept: Path) -> None:
    """Keep the one-episode dataset under its final name among the parts."""
    for path in part.rglob("*"):
        if path.is_file():
            durable(path)
    kept.parent.mkdir(parents=True, exist_ok=True)
    if kept.exists():
        shutil.rmtree(kept)
    part.replace(kept)


def finish(dataset: Path, parts: Sequence[Path], repo_id: str) -> None:
    """Join ``parts`` in their order into ``dataset``, which is made anew. Runs in a worker: it imports lerobot."""
    from lerobot.datasets.aggregate import aggregate_datasets

    missing = [part for part in parts if not part.is_dir()]
    if missing:
        raise SegueError(f"{missing[0]}: a converted episode has disappeared; remove {dataset.parent} and start again")
    if dataset.exists():
        shutil.rmtree(dataset)
    aggregate_datasets(
        repo_ids=[repo_id] * len(parts),
        aggr_repo_id=repo_id,
        roots=list(parts),
        aggr_root=dataset,
    )
