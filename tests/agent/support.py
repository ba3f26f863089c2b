"""A run for tests: job.json, staging, scratch directories, and attempts as processes of their own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import ClassLimit, JobConfig, Pace, dump
from agent.processes import descendants, parents

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0


VERSIONS = ("3.10", "3.11", "3.12", "3.13")
"""Pythons that the agent must run on."""


def interpreter(version: str) -> str:
    """This version's Python on this machine (this one, PATH, pyenv, uv); the test is skipped where there is none."""
    homes = [Path.home() / ".pyenv" / "versions", Path.home() / ".local" / "share" / "uv" / "python"]
    elsewhere = [path for home in homes for path in sorted(home.glob(f"*{version}.*/bin/python{version}"))]
    for candidate in (sys.executable, shutil.which(f"python{version}"), *elsewhere):
        if candidate is None:
            continue
        code = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return str(candidate)
    pytest.skip(f"there is no Python {version} on this machine")


def state_after(steps: int) -> str:
    """The plain trainer's state after an uninterrupted training."""
    state = ""
    for step in range(1, steps + 1):
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
    return state


def wait_for(done: Callable[[], object], what: str) -> None:
    """Wait for an event, with a generous limit."""
    until = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < until, f"{what} did not happen"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass
class Attempt:
    """One agent process and its scratch directory."""

    process: subprocess.Popen[bytes]
    scratch: Path

    def handover(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.scratch / "handover.json").read_text(encoding="utf-8"))
        return found

    def end(self) -> int:
        """Wait for its end; the exit code."""
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the agent did not end; its log:\n{self.log()}") from None

    def log(self) -> str:
        try:
            return "".join(path.read_text(encoding="utf-8") for path in sorted((self.scratch / "logs").glob("*")))
        except FileNotFoundError:  # it gets its final name just now
            return ""

    def saw(self, text: str) -> None:
        """Wait until the log contains ``text``."""
        wait_for(lambda: text in self.log(), f"{text!r} in the log")

    def family(self) -> tuple[int, int, int]:
        """Process ids of the keeper, the trainer and its first worker."""
        known = parents()
        below = descendants(self.process.pid)
        worker = next(pid for pid in reversed(below) if known.get(known.get(known[pid], 0)) == self.process.pid)
        return known[known[worker]], known[worker], worker

    def keeper_and_trainer(self) -> tuple[int, int]:
        """Process ids of the keeper and of its child, the trainer."""
        known = parents()
        trainer = next(pid for pid in descendants(self.process.pid) if known.get(known[pid]) == self.process.pid)
        return known[trainer], trainer

    def step(self) -> int:
        """The newest step that the trainer reported."""
        try:
            return int(json.loads((self.scratch / ".segue" / "progress.jsonl").read_text().splitlines()[-1])["step"])
        except (OSError, IndexError, ValueError):
            return 0

    def reached(self, step: int) -> None:
        wait_for(lambda: self.step() >= step, f"step {step}")


class Run:
    """A run in ``directory``; ``job`` may be replaced field by field."""

    def __init__(self, directory: Path, **fields: Any) -> None:
        self.directory = directory
        self.staging = directory / "staging"
        self.staging.mkdir()
        limit = fields.pop("limit_s", 60.0)
        pace = Pace(step_s=0.01, save_s=0.05, publish_s=0.1, restore_s=0.1, startup_s=0.2)
        base = JobConfig(
            "plain",
            str(self.staging),
            100,
            "plain",
            margin_s=0.5,
            kill_grace_s=1.0,
            classes={"short": ClassLimit(limit)},
            pace=pace,
            fingerprint={"recipe": "plain"},
        )
        self.job = replace(base, **fields)
        self._number = 0

    @property
    def store(self) -> Path:
        return self.staging / "segue" / self.job.run

    def commits(self) -> list[str]:
        return sorted(path.name for path in (self.store / "checkpoints").iterdir())

    def start(
        self,
        segment: int = 0,
        scratch: Path | None = None,
        environment: dict[str, str] | None = None,
        python: Sequence[str] = (sys.executable,),
    ) -> Attempt:
        """Begin an attempt in a fresh scratch directory (or in ``scratch``)."""
        if scratch is None:
            scratch = self.directory / f"scratch-{self._number}"
            scratch.mkdir()
        self._number += 1
        (scratch / "job.json").write_text(dump(self.job), encoding="utf-8")
        command = [
            *python,
            "-m",
            "tests.agent.plain_recipes",
            "run",
            "--config",
            "job.json",
            "--segment",
            str(segment),
            "--class",
            "short",
        ]
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env={**os.environ, "PYTHONPATH": f"{ROOT}", **(environment or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return Attempt(process, scratch)

    @contextmanager
    def attempt(self, segment: int = 0, **options: Any) -> Iterator[Attempt]:
        """The same, killed at the end of the block if it still runs."""
        made = self.start(segment, **options)
        try:
            yield made
        finally:
            if made.process.poll() is None:
                made.process.kill()
            made.process.wait()

    def final_state(self) -> str:
        """The state in the newest commit, read from its archive."""
        import tarfile

        newest = max(
            (path for path in (self.store / "checkpoints").glob("0*.tar")), key=lambda path: path.name.split(".")[0]
        )
        with tarfile.open(newest) as tar:
            member = next(name for name in tar.getnames() if name.endswith("state.json"))
            file = tar.extractfile(member)
            assert file is not None
            return str(json.load(file)["state"])
