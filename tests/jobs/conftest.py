"""Recorded episodes and one uninterrupted training, made once for all tests of this room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Programs:
    """Runs `python -m jobs.reference.…` as the agent would: with HOME in a directory of its own, warnings as errors."""

    home: Path
    data: Path

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SEGUE_", "XLA_", "JAX_", "NPROC"))
        }
        return {**kept, "HOME": str(self.home), "PYTHONPATH": str(ROOT), **more}

    def command(self, program: str, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-W", "error", "-m", f"jobs.reference.{program}", *map(str, arguments)]

    def run(self, program: str, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(program, *arguments), env=self.environment(more), capture_output=True, text=True, timeout=120
        )

    def train(self, root: Path, *arguments: str, expect: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        told = {"SEGUE_CHECKPOINT_DIR": str(root), "SEGUE_STEPS": "60", **more}
        done = self.run("train", "--data", self.data, "--hidden", "32", *arguments, **told)
        assert done.returncode == expect, done.stderr
        return done


def steps(root: Path) -> list[int]:
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """With twenty recorded episodes."""
    here = tmp_path_factory.mktemp("reference")
    (here / "home").mkdir()
    found = Programs(here / "home", here / "reacher.npz")
    done = found.run("record", "--out", found.data, "--episodes", "20", "--seed", "0")
    assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="session")
def straight(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of 60 uninterrupted steps: 20, 40, 60."""
    root = tmp_path_factory.mktemp("straight") / "checkpoints"
    programs.train(root, "--keep", "3", SEGUE_SAVE_INTERVAL="20")
    return root


def identical(first: Path, second: Path) -> bool:
    from jobs.reference.compare import contents, differences

    return not differences(contents(first), contents(second))
