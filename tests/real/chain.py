"""A chain of segments with a real trainer on the embedded pool: from run.toml through `segue dag` and condor_submit_dag to the final archive.

Slow and with environments of their own, so not part of the suite: `make test-openpi`, `make test-lerobot` (docs/recipes.md).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.processes import parents
from dagman.pool import EmbeddedPool
from tests.watched import Watched

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SEGUE = [sys.executable, "-m", "cli.main"]
PATIENCE_S = 1500.0
LIMIT_S = 180.0

SITE = """
title = "embedded pool with a class for real trainers"
default_class = "short"
retries = 2
avoid_failed_machine = false
scan_interval_s = 1
python = "{{this}}"
[staging]
path = "{{directory}}/staging"
[classes.short]
limit_s = {limit_s}
[margin]
fraction = 0.01
least_s = 5.0
kill_grace_s = 3.0
[defaults]
step_s = 2.5
startup_s = 60.0
restore_s = 2.0
save_s = 5.0
publish_s = 3.0
queue_s = 2.0
[resources]
memory_mb = 6000
disk_mb = 4000
helper_memory_mb = 3000
helper_disk_mb = 2000
"""


def given(variable: str, what: str) -> Path:
    """A path from the environment; the test is skipped, with the reason, where there is none."""
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: {what} (docs/recipes.md)")
    path = Path(value).absolute()
    if not path.exists():
        pytest.skip(f"{variable}={value}: is not there: {what} (docs/recipes.md)")
    return path


@dataclass(frozen=True)
class Told:
    """One start of the trainer as its diary tells: what was restored, saved and fed, in order."""

    restored: Mapping[str, Any] | None
    saved: Sequence[Mapping[str, Any]]
    batches: Sequence[str]


class RealChain(Watched):
    """A run directory; ``tables`` are run.toml's, as TOML text below the common ones."""

    def __init__(self, pool: EmbeddedPool, directory: Path, name: str, steps: int, text: str) -> None:
        self.pool, self.directory, self.name = pool, directory, name
        self.diary = directory / "diary"
        self.diary.touch()
        (directory / "site.toml").write_text(SITE.format(limit_s=LIMIT_S), encoding="utf-8")
        head = f'name = "{name}"\nsite = "site.toml"\nsteps = {steps}\n'
        tail = '\n[segments]\nclass = "short"\nsave_interval = 10\nreserve = 6\n'
        (directory / "run.toml").write_text(head + text + tail, encoding="utf-8")
        self.workflow = directory / name
        super().__init__(self.workflow / f"{name}.dag", directory / "staging/segue" / name, PATIENCE_S)

    def segue(self, *words: str) -> str:
        """A command of segue, which must succeed; its output."""
        done = self.pool.run([*SEGUE, *words], cwd=self.directory, capture_output=True, text=True)
        assert done.returncode == 0, f"segue {words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return str(done.stdout)

    def tool(self, *words: str) -> str:
        """One of HTCondor's commands, which must succeed; its output."""
        done = self.pool.run(list(words), cwd=self.directory, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return str(done.stdout)

    def submit(self) -> None:
        """Generate and submit."""
        dag = self.segue("dag", "run.toml").strip()
        self.tool("condor_submit_dag", dag)

    def logs(self) -> list[Path]:
        logs = self.workflow / "logs"
        return [*sorted(logs.glob("*.err")), *sorted(logs.glob("*.out"))]

    # --- disturbances ---------------------------------------------------------------------------------------------

    def segment_publishes(self, number: int) -> None:
        """Wait until that segment's newest attempt has published something of its own."""
        before = self.workflow / f"handovers/segment-{number - 1:03d}.json"
        epochs: list[int] = [] if number else [0]

        def ended() -> bool:
            told = json.loads(before.read_text()) if before.exists() else {}
            if told.get("state") in ("time-used", "complete"):
                epochs.append(int(told["epoch"]))
            return bool(epochs)

        self.wait(f"the end of segment {number - 1}", ended)
        epoch = epochs[-1]
        self.wait(f"a commit of segment {number}", lambda: self.epoch() > epoch and self.newest()[0] == self.epoch())

    def next_attempt_publishes(self) -> None:
        """Wait until a newer attempt than the newest one has published."""
        epoch = self.epoch()
        self.wait(f"a commit after epoch {epoch}", lambda: self.newest()[0] > epoch)

    def vacate(self) -> None:
        """Evict the running segment, as a machine's owner would."""
        running = f'JobStatus == 2 && Cmd == "{self.workflow / "agent.pyz"}"'
        job = self.tool("condor_q", "-allusers", "-constraint", running, "-af:j", "Cmd").split()[0]
        self.tool("condor_vacate_job", job)

    def agents(self) -> list[int]:
        """Process ids of running agents of this run's pool."""
        found = []
        for pid in parents():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                here = str(Path(f"/proc/{pid}/cwd").readlink())
            except OSError:
                continue
            if b"--handover" in words and b"run" in words and here.startswith(str(self.pool.directory)):
                found.append(pid)
        return sorted(found)

    def kill_agent(self) -> None:
        """SIGKILL to the agent itself, as the kernel does when memory is short."""
        self.wait("an agent", self.agents)
        os.kill(self.agents()[0], signal.SIGKILL)

    # --- what is known afterwards -----------------------------------------------------------------------------------

    def starts(self) -> list[Told]:
        """The trainer's starts in order."""
        starts: list[tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]] = []
        for line in self.diary.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["event"] == "start":
                if entry["script"] in ("train.py", "train_pytorch.py", "lerobot-train"):
                    starts.append(([], [], []))
            elif entry["event"] == "restore":
                starts[-1][0].append(entry)
            elif entry["event"] == "save":
                starts[-1][1].append(entry)
            elif entry["event"] == "batch":
                starts[-1][2].append(entry["hash"])
        return [Told(restored[0] if restored else None, saved, batches) for restored, saved, batches in starts]

    def written_for_wandb(self) -> list[tuple[str, bytes]]:
        """Directory and transaction log of each run that W&B's client wrote offline, oldest first."""
        found = []
        for archive in sorted((self.store / "wandb").glob("*.tar")):
            with tarfile.open(archive) as tar:
                for member in tar:
                    if member.name.endswith(".wandb"):
                        file = tar.extractfile(member)
                        assert file is not None
                        found.append((Path(member.name).parent.name, file.read()))
        return found

    def handovers(self) -> list[dict[str, Any]]:
        """Of all segments that ran."""
        found = [json.loads(path.read_text()) for path in sorted((self.workflow / "handovers").glob("segment-*.json"))]
        return [one for one in found if one["state"] != "pending"]


def check_resumes(starts: Sequence[Told], keys: Sequence[str]) -> int:
    """Every restored state is one that was saved under the same step; returns how many were restored."""
    saved: dict[str, Mapping[str, Any]] = {}
    resumed = 0
    for start in starts:
        if start.restored is not None:
            resumed += 1
            assert start.restored["step"] in saved, f"{start.restored['step']} was never saved"
            before = saved[start.restored["step"]]
            for key in keys:
                assert start.restored[key] == before[key], f"{key} of step {start.restored['step']} differs"
        saved.update({one["step"]: one for one in start.saved})
    return resumed


def run(words: Sequence[str | Path], **more: Any) -> str:
    """A command that must succeed; its output."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout
