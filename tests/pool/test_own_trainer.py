"""A user's own program under the `command` recipe, from run.toml to the consolidated archive, through the command line on a real HTCondor."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dagman.pool import EmbeddedPool

pytestmark = pytest.mark.pool
PATIENCE_S = 180.0
STEPS = 600

TRAINER = """
import os, pathlib, pickle, time

root = pathlib.Path(os.environ["SEGUE_CHECKPOINT_DIR"])
root.mkdir(parents=True, exist_ok=True)
start = int(os.environ.get("SEGUE_RESUME_STEP") or 0)
last = int(os.environ["SEGUE_LAST_STEP"])
every = int(os.environ.get("SEGUE_SAVE_INTERVAL") or 50)
state = pickle.loads((root / f"ckpt-{start}" / "state.pkl").read_bytes()) if start else 1
for step in range(start + 1, last + 1):
    state = (state * 6364136223846793005 + step) % 2**64
    time.sleep(0.02)  # the work of a step
    print(f"step {step} loss {1 / step:.4f}", flush=True)
    if step % every == 0 or step == last:
        half = root / f"half-{step}"
        half.mkdir()
        (half / "state.pkl").write_bytes(pickle.dumps(state))
        half.rename(root / f"ckpt-{step}")
"""

RUN = """
name = "mine"
site = "local"
steps = {steps}
code = "src"

[trainer]
recipe = "command"
args = ["train.py"]

[trainer.options]
pattern = "ckpt-{{step}}"

[segments]
class = "blink"
save_interval = 50
reserve = 6

[pace]
step_s = 0.025
startup_s = 1
restore_s = 0.2
save_s = 0.1
publish_s = 0.3
"""


def _segue(pool: EmbeddedPool, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = pool.run([sys.executable, "-m", "cli.main", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def _until(pool: EmbeddedPool, run: Path, reached: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        status: dict[str, Any] = json.loads(_segue(pool, "status", str(run), "--json").stdout)
        if reached(status):
            return status
        assert status["state"] not in ("failed", "removed", "complete"), status["reason"]
        assert time.monotonic() < deadline, status
        time.sleep(0.3)


def _expected() -> int:
    state = 1
    for step in range(1, STEPS + 1):
        state = (state * 6364136223846793005 + step) % 2**64
    return state


def test_own_trainer_without_any_input_survives_an_eviction(pool: EmbeddedPool, workdir: Path) -> None:
    # given: a run.toml with code and no data, in a directory that has no staging yet
    (workdir / "src").mkdir()
    (workdir / "src" / "train.py").write_text(TRAINER)
    run = workdir / "run.toml"
    run.write_text(RUN.format(steps=STEPS))

    # when: it is submitted, and evicted once while it trains
    _segue(pool, "submit", str(run))
    status = _until(pool, run, lambda now: now["last_commit_step"])
    job = next(a["job"] for s in status["segments"] for a in s["attempts"] if a["outcome"] == "running")
    assert pool.run(["condor_vacate_job", job], capture_output=True).returncode == 0
    status = _until(pool, run, lambda now: now["state"] == "complete")

    # then: every step was made once, and the result is what an uninterrupted run gives
    assert status["evictions"] == 1
    assert status["step"] == STEPS
    archive = workdir / "staging" / "segue" / "mine" / "final" / f"mine-{STEPS:09d}.tar"
    with tarfile.open(archive) as tar:
        data = tar.extractfile(f"ckpt-{STEPS}/state.pkl")
        assert data is not None
        import pickle

        assert pickle.loads(data.read()) == _expected()
    assert _segue(pool, "verify", str(run)).stdout.strip()
    assert "published step" in _segue(pool, "logs", str(run)).stdout
