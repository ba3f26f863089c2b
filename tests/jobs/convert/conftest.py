"""The real lerobot beside the suite: an interpreter that has it, `segue convert` through it, and its own loader to read results back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.convert import lerobot_env

LIMIT_S = 240.0

_READ = """
import json, sys
import av
import numpy as np
import torch
import lerobot.datasets.lerobot_dataset as lerobot

def decoded(path, timestamps, tolerance_s, backend=None):
    # This torchvision has no VideoReader any more; everything around the decoding stays lerobot's.
    with av.open(str(path)) as file:
        frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
    nearest = [min(frames, key=lambda found: abs(found[0] - wanted)) for wanted in timestamps]
    assert all(abs(found[0] - wanted) < tolerance_s for found, wanted in zip(nearest, timestamps))
    return torch.from_numpy(np.stack([found[1] for found in nearest])).permute(0, 3, 1, 2) / 255

lerobot.decode_video_frames = decoded
for line in sys.stdin:
    asked = json.loads(line)
    dataset = lerobot.LeRobotDataset(asked["repo_id"], root=asked["root"], video_backend="pyav", delta_timestamps=asked.get("delta_timestamps"))
    columns = {}
    for i in range(len(dataset)):
        for name, value in dataset[i].items():
            columns.setdefault(name, []).append(np.asarray(value))
    meta = dataset.meta
    stats = {name: {key: np.asarray(value).tolist() for key, value in each.items()} for name, each in meta.stats.items()}
    tasks = list(meta.tasks.values()) if isinstance(meta.tasks, dict) else list(meta.tasks.index)
    facts = {"fps": dataset.fps, "robot_type": meta.robot_type, "version": str(meta._version), "tasks": tasks}
    facts |= {"episodes": dataset.num_episodes, "stats": stats}
    np.savez(asked["into"], _facts=np.array(json.dumps(facts)), **{name: np.stack(values) for name, values in columns.items()})
"""


@pytest.fixture(scope="session")
def lerobot_python() -> Path:
    """Interpreter with lerobot 0.3.3; the test is skipped, with the reason, where it cannot be had."""
    try:
        return lerobot_env.interpreter()
    except lerobot_env.NoEnvironment as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def newer_python() -> Path:
    """Interpreter with lerobot 0.4.4, or the test is skipped with the reason."""
    try:
        return lerobot_env.newer_interpreter()
    except lerobot_env.NoEnvironment as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def convert(lerobot_python: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`segue convert` with the given words, as a user runs it."""

    def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(lerobot_python, *words),
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )

    return run


def command(python: Path, *words: object) -> list[str]:
    """The command line of `segue convert` through ``python``."""
    return [sys.executable, "-m", "cli.main", "convert", "--python", str(python), *map(str, words)]


@pytest.fixture(scope="session")
def read_back(
    lerobot_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Each dataset (root, or root and delta_timestamps) as lerobot's own loader has it: facts, and columns of all frames."""

    def read(*roots: Path, python: Path = lerobot_python, **more: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        home = tmp_path_factory.mktemp("read")
        into = [home / f"{number}.npz" for number in range(len(roots))]
        asked = [
            json.dumps({"repo_id": "local/any", "root": str(root), "into": str(file), **more})
            for root, file in zip(roots, into, strict=True)
        ]
        ended = subprocess.run(
            [str(python), "-c", _READ],
            input="\n".join(asked),
            env={**os.environ, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        assert ended.returncode == 0, ended.stderr
        found = []
        for file in into:
            with np.load(file) as columns:
                arrays = dict(columns.items())
            found.append((json.loads(str(arrays.pop("_facts"))), arrays))
        return found

    return read
