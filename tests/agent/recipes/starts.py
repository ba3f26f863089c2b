"""Starts of a trainer for tests of recipes: a job, a scratch directory, and checkpoints as each trainer writes them."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.config import ClassLimit, InputArchive, JobConfig
from agent.recipes.base import Finished, Start

DATASET = InputArchive("dataset", "dataset-1.tar", "1" * 64, 10, ".cache/huggingface/lerobot/local/lab")
CODE = InputArchive("code", "code-1.tar", "2" * 64, 10, "code")


def python_at(path: Path) -> str:
    """A file that can be run in the place of a Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def start_of(scratch: Path, recipe: str, options: dict[str, Any] | None = None, **fields: Any) -> Start:
    """The first start of a run of 100 steps; ``fields`` of the job by name, those of the start as well."""
    own = {name: fields.pop(name) for name in list(fields) if name in Start.__dataclass_fields__}
    job = JobConfig(
        "arm",
        str(scratch.parent / "staging"),
        100,
        recipe,
        python=fields.pop("python", None) or python_at(scratch / "bin/python"),
        options=options or {},
        classes={"short": ClassLimit(60.0)},
        **fields,
    )
    given: dict[str, Any] = {"resume_step": 0, "resume_label": None, "last_step": 40, "save_interval": 10, "epoch": 1}
    return Start(job=job, scratch=scratch, deadline=1e9, **{**given, **own})


def with_job(start: Start, **fields: Any) -> Start:
    """The same start with another job."""
    return replace(start, job=replace(start.job, **fields))


def checkout(directory: Path) -> Path:
    """What a recipe looks at in OpenPI's checkout."""
    for name in ("scripts/train.py", "scripts/train_pytorch.py", "scripts/compute_norm_stats.py"):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (directory / "src/openpi").mkdir(parents=True)
    return directory


def dataset_at(path: Path) -> Path:
    """The top of a LeRobot dataset."""
    (path / "meta").mkdir(parents=True)
    (path / "meta/info.json").write_text("{}", encoding="utf-8")
    return path


def saved(root: Path, label: str, entries: Iterable[str]) -> Path:
    """A checkpoint's directory: names that end in / are directories, others files."""
    for entry in entries:
        path = root / label / entry
        if entry.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x", encoding="utf-8")
    return root / label


def steps(found: list[Finished]) -> list[tuple[int, str]]:
    """Step and label of each."""
    return [(one.step, one.label) for one in found]


def value(words: list[str], flag: str) -> str | None:
    """What a command line gives to a flag, None where it does not."""
    for word in words:
        name, equals, rest = word.partition("=")
        if name == flag:
            return rest if equals else ""
    return None


def unreadable(path: Path) -> None:
    """Take every right to a directory away."""
    path.chmod(path.stat().st_mode & ~(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO))
