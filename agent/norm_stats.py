"""Normalisation statistics that node `norm_stats` has computed: part of the run, in `<staging>/segue/<run>/norm_stats/`.

They lie there as OpenPI writes them below its assets directory (`<config>/<asset id>/norm_stats.json`), and each attempt copies them into
its own `assets/`, where the recipe points the trainer.
"""

from __future__ import annotations

from pathlib import Path

from agent.config import JobConfig

DIRECTORY = "norm_stats"
"""In the run's directory in staging."""
ASSETS = "assets"
"""In the scratch directory."""
FILE = "norm_stats.json"


def bring(job: JobConfig, scratch: Path) -> list[str]:
    """Copy the run's statistics into scratch; returns what was placed. Those that came as an input stay as they are."""
    source = job.store_root / DIRECTORY
    if not job.recipe.startswith("openpi") or not source.is_dir():
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
