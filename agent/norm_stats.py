"""Normalisation statistics that node `norm_stats` has computed: part of the run, in `<staging>/segue/<run>/norm_stats/`.

They lie there as OpenPI writes them below its assets directory (`<config>/<asset id>/norm_stats.json`), and each attempt copies them into
its own `assets/`, where the recipe points the trainer. Beside them stands what they were made from: a run whose dataset, code or config was changed
on purpose must not go on with numbers of the one before, which nothing would show.
"""

from __future__ import annotations

import json
from pathlib import Path

from agent.config import JobConfig

DIRECTORY = "norm_stats"
"""In the run's directory in staging."""
ASSETS = "assets"
"""In the scratch directory."""
FILE = "norm_stats.json"
MADE_FROM = "made-from.json"
"""Beside the statistics: ``made_from`` of the job that computed them."""


def made_from(job: JobConfig) -> dict[str, object]:
    """All that the statistics depend on. Base weights and the tokenizer are nothing of it where the run names its dataset."""
    data = [one for one in job.inputs if one.name == "dataset"] or job.inputs
    return {
        "data": {one.name: one.sha256 for one in data},
        "code": job.code.sha256 if job.code is not None else job.fingerprint.get("image", ""),
        "options": {name: job.options.get(name) for name in ("config", "norm_stats_frames", "asset_id", "app")},
    }


def fits(job: JobConfig, directory: Path) -> bool:
    """Whether the statistics in ``directory`` were made from what this job trains with; where nobody knows, they were not."""
    try:
        return bool(json.loads((directory / MADE_FROM).read_text(encoding="utf-8")) == made_from(job))
    except (FileNotFoundError, ValueError):
        return False


def bring(job: JobConfig, scratch: Path) -> list[str]:
    """Copy the run's statistics into scratch, if they fit; returns what was placed. Those that came as an input stay as they are."""
    source = job.store_root / DIRECTORY
    if not job.recipe.startswith("openpi") or not fits(job, source):
        return []
    placed = []
    for path in sorted(source.rglob(FILE)):
        target = scratch / ASSETS / path.relative_to(source)
        if target.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".tmp")
        temporary.write_bytes(path.read_bytes())
        temporary.replace(target)
        placed.append(str(target.relative_to(scratch)))
    return placed
