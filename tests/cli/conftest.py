"""The command line in this process, and a run.toml to try it on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.main import main
from dagman.pool import namespace

RUN = """
name = "run"
site = "local"
steps = 100
staging = "staging"
[trainer]
recipe = "command"
args = ["train.py"]
"""


@dataclass
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """The one line on stderr."""
        assert self.out == "" and "Traceback" not in self.err
        assert self.err.startswith("segue: error: ") and self.err.count("\n") == 1, self.err
        return self.err.removeprefix("segue: error: ").rstrip("\n")


Segue = Callable[..., Said]


@pytest.fixture
def segue(capfd: pytest.CaptureFixture[str]) -> Segue:
    """The command line, in this process."""

    def run(*words: str | Path) -> Said:
        code = main([str(word) for word in words])
        return Said(code, *capfd.readouterr())

    return run


@pytest.fixture
def run_toml(workdir: Path) -> Path:
    (workdir / "staging").mkdir()
    (workdir / "run.toml").write_text(RUN)
    return workdir / "run.toml"


def as_ordinary_user(words: list[str], directory: Path) -> Said:
    """In a process of its own, which modes of files hold for."""
    done = subprocess.run(
        namespace.wrap([sys.executable, "-m", "cli.main", *words]), cwd=directory, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)
