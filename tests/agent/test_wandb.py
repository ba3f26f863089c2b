"""W&B in whole attempts: one run id with the real client, and a key that nobody else ever sees."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import Wandb
from agent.exit_codes import PERMANENT
from tests.agent.support import Attempt, Run

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


def with_key(run: Run) -> Path:
    """A scratch directory that HTCondor brought the key to."""
    scratch = run.directory / f"with-key-{len(list(run.directory.glob('with-key-*')))}"
    scratch.mkdir()
    (scratch / "wandb.key").write_text(KEY + "\n")
    return scratch


def modes(attempt: Attempt) -> list[str]:
    """W&B's mode as each start was told."""
    return [json.loads(line)["WANDB_MODE"] for line in attempt.log().splitlines() if line.startswith('{"WANDB_RUN_ID"')]


def test_what_began_offline_stays_offline_until_it_is_sent(tmp_path: Path) -> None:
    # Given a first attempt that had no key, and kept what W&B's client wrote
    run = Run(tmp_path, steps=100_000, args=("step_s=0.01", "print_env=1"), wandb=replace(WANDB, mode="online"))
    with run.attempt() as attempt:
        attempt.saw("published step")
        offline = attempt.scratch / "wandb-files/wandb/offline-run-20260101_000000-plain-0a1b"
        offline.mkdir(parents=True)
        (offline / "run-plain-0a1b.wandb").write_bytes(b"data")
        attempt.process.terminate()
        attempt.end()
    assert modes(attempt) == ["offline"]
    (kept,) = (run.store / "wandb").glob("*.tar")
    # When the next one has a key
    with run.attempt(scratch=with_key(run)) as attempt:
        attempt.saw("training from")
        attempt.process.terminate()
        attempt.end()
    # Then it goes on offline, because the server does not know the run that its trainer must resume
    assert modes(attempt) == ["offline"]
    (warning,) = [text for text in attempt.handover()["warnings"] if "is not sent yet" in text]
    assert "segue wandb sync" in warning
    # and one after `segue wandb sync` goes online
    kept.unlink()
    with run.attempt(scratch=with_key(run)) as attempt:
        attempt.saw("training from")
        attempt.process.terminate()
        attempt.end()
    assert modes(attempt) == ["online"]


def test_a_start_that_wandb_ends_is_made_again_offline(tmp_path: Path) -> None:
    online = replace(WANDB, mode="online")
    run = Run(tmp_path, steps=20, args=("print_env=1", "wandb_fails=1"), wandb=online)
    with run.attempt(scratch=with_key(run)) as attempt:
        assert attempt.end() == 0, attempt.log()
    handover = attempt.handover()
    assert (handover["starts"], handover["failure"]["class"], modes(attempt)) == (2, "wandb", ["online", "offline"])
    (warning,) = handover["warnings"]
    assert "W&B's client ended the trainer" in warning and "segue wandb sync" in warning


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
