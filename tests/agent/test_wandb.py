"""W&B in whole attempts: one run id with the real client, and a key that nobody else ever sees."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from pathlib import Path

import pytest

from agent.config import Wandb
from agent.exit_codes import PERMANENT
from tests.agent.support import Run

WANDB = Wandb("arm", "plain-0a1b", group="plain", name="plain", tags=("a",), mode="offline", key_file="wandb.key")
KEY = "not-a-key-" + "k" * 30


def everything_below(root: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def command_lines() -> bytes:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    return b"\n".join(lines)


def test_the_key_reaches_the_trainers_process_and_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=100_000, args=("step_s=0.01", "print_env=1"), wandb=WANDB)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    key = scratch / "wandb.key"
    key.touch(mode=0o600)
    key.write_text(KEY + "\n")
    with run.attempt(scratch=scratch) as attempt:
        attempt.saw("published step")
        assert not key.exists()
        assert KEY.encode() not in command_lines()
        keeper, trainer = attempt.keeper_and_trainer()
        assert KEY.encode() in Path(f"/proc/{trainer}/environ").read_bytes()
        assert KEY.encode() not in Path(f"/proc/{keeper}/environ").read_bytes()
        assert KEY.encode() not in Path(f"/proc/{attempt.process.pid}/environ").read_bytes()
        attempt.process.terminate()
        attempt.end()
    told = json.loads(next(line for line in attempt.log().splitlines() if line.startswith('{"WANDB_RUN_ID"')))
    assert told == {
        "WANDB_RUN_ID": "plain-0a1b",
        "WANDB_RESUME": "allow",
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": "WANDB_API_KEY",
    }
    assert KEY.encode() not in everything_below(tmp_path)


def test_a_trainer_that_prints_its_environment_shows_the_key_to_nobody(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=20, args=("print_env=all", "crash_at=15"), wandb=WANDB)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "wandb.key").write_text(KEY + "\n")
    with run.attempt(scratch=scratch) as attempt:
        assert attempt.end() == PERMANENT
    assert "'WANDB_API_KEY': '***'" in attempt.log()
    assert any("'WANDB_API_KEY': '***'" in line for line in attempt.handover()["last_lines"])
    kept = b"".join(gzip.decompress(path.read_bytes()) for path in (run.store / "logs").glob("*.gz"))
    assert b"'WANDB_API_KEY': '***'" in kept
    assert KEY.encode() not in kept + everything_below(tmp_path)


def test_without_a_key_it_writes_offline_and_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=20, args=("print_env=1",), wandb=Wandb("arm", "x", mode="auto", key_file="wandb.key"))
    with run.attempt() as attempt:
        assert attempt.end() == 0
    assert '"WANDB_MODE": "offline"' in attempt.log()
    assert any("there is no W&B key" in line for line in attempt.handover()["warnings"])


@pytest.mark.slow
def test_the_real_client_keeps_one_run_id_over_segments_and_evictions(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = Run(tmp_path, steps=100_000, args=("step_s=0.01", "wandb=1"), wandb=WANDB, save_interval=20)
    for segment in (0, 0, 1):
        with run.attempt(segment, environment={"WANDB_SILENT": "true", "HOME": str(tmp_path)}) as attempt:
            attempt.saw("published step")
            attempt.process.terminate()
            assert attempt.end() == 75, attempt.log()
    found = []
    for archive in sorted((run.store / "wandb").glob("*.tar")):
        with tarfile.open(archive) as tar:
            found += [name for name in tar.getnames() if name.endswith(".wandb")]
    assert len(found) == 3
    assert {os.path.basename(name) for name in found} == {"run-plain-0a1b.wandb"}  # noqa: PTH119
