"""How long large data may take in silence, and what becomes of offline W&B files when there is little room."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import agent.staging
from agent.config import BudgetRule, Wandb
from agent.errand import Errand, Outcome, Report, patience_s
from agent.loop import Loop
from agent.recipes.base import Finished
from agent.staging import Staging
from agent.store import Claimant, snapshot
from agent.store.errors import CheckpointChanged
from tests.agent.recipes.starts import saved, start_of
from tests.agent.test_companions import place


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    """A run that writes W&B files offline; its store is there, empty."""
    for name in ("scratch", "staging"):
        (tmp_path / name).mkdir()
    made = start_of(tmp_path / "scratch", "command", fingerprint={"recipe": "command"}, wandb=Wandb("arms", "arm-1"))
    found = Staging(made.job, made.job.store_root, 0, place(made.scratch))
    found.store().claim(Claimant("m", "1.0", 0), made.job.fingerprint)
    return found


def bounded(staging: Staging, items: int) -> Staging:
    """The same run with an item budget."""
    return replace(staging, job=replace(staging.job, budget=BudgetRule(None, items)))


def attempt(staging: Staging, epoch: int) -> list[str]:
    """An attempt keeps its offline files; the warnings."""
    run = staging.place.scratch / "wandb-files" / "wandb" / "offline-run-1"
    saved(run.parent, run.name, ("run.wandb",))
    said: list[dict[str, Any]] = []
    staging.keep(epoch, {}, (), "", said.append)
    return [one["warning"] for one in said if "warning" in one]


def kept(staging: Staging) -> list[str]:
    return sorted(path.name for path in (staging.root / "wandb").iterdir())


def test_fifty_gigabytes_may_be_synced_for_longer_than_a_log() -> None:
    assert patience_s(0, 300.0) == 300.0
    assert patience_s(50e9, 300.0) == 2500.0


def test_an_errand_that_moves_much_may_be_silent_for_long() -> None:
    """A silence that would be a hang of a small errand is none of one that said how much it moves."""
    loop, outcomes = Loop(), list[Outcome]()

    def work(report: Report) -> dict[str, Any]:
        report({"size": 50e9})
        time.sleep(1000)
        return {}

    errand = Errand(loop, work, outcomes.append, silent_s=0.2, low_priority=False)
    loop.run_until(lambda: bool(outcomes), time.monotonic() + 1.0)
    assert not outcomes
    errand.cancel()
    loop.close()


def test_publish_and_restore_say_how_much_they_move(staging: Staging, tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    claim = staging.store().claim(Claimant("m", "1.1", 0), staging.job.fingerprint)
    taken = tmp_path / "snapshot"
    saved(taken, "10", ("weights",))
    (taken / "10/weights").write_bytes(b"x" * 5000)
    staging.publish(vars(claim), Finished(10, "10", taken, ("10",)), taken, {}, None, {}, said.append)
    assert {"size": 5000} in said
    said.clear()
    staging.restore_afresh(tmp_path / "again", said.append)
    assert said[0]["size"] > 5000


def test_a_publish_compares_the_checkpoint_with_its_snapshot(staging: Staging, tmp_path: Path) -> None:
    claim = staging.store().claim(Claimant("m", "1.1", 0), staging.job.fingerprint)
    saved(tmp_path / "root", "10", ("weights",))
    seen = snapshot(tmp_path / "root", ["10"], tmp_path / "snapshot")
    finished = Finished(10, "10", tmp_path / "root", ("10",), seen)
    (tmp_path / "root/10/weights").write_bytes(b"of the next save")
    with pytest.raises(CheckpointChanged):
        staging.publish(vars(claim), finished, tmp_path / "snapshot", {}, None, {}, lambda said: None)
    assert staging.store().commits() == []


def test_a_publish_keeps_to_the_rate_of_the_run(
    staging: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three pieces of 1 MiB at 1 MB/s: nobody sleeps, the clock is moved by what would have been slept."""
    slept: list[float] = []
    monkeypatch.setattr("agent.store.copying.time.monotonic", lambda: sum(slept))
    monkeypatch.setattr("agent.store.copying.time.sleep", slept.append)
    limited = replace(staging, job=replace(staging.job, publish_bytes_per_s=1e6))
    claim = limited.store().claim(Claimant("m", "1.1", 0), staging.job.fingerprint)
    taken = tmp_path / "snapshot"
    saved(taken, "10", ("weights",))
    (taken / "10/weights").write_bytes(b"x" * (3 << 20))
    limited.publish(vars(claim), Finished(10, "10", taken, ("10",)), taken, {}, None, {}, lambda said: None)
    assert 3.0 < sum(slept) < 3.5


def test_offline_wandb_files_of_all_attempts_stay_while_there_is_room(staging: Staging) -> None:
    roomy = bounded(staging, 200)  # five attempts' logs
    assert [attempt(roomy, epoch) for epoch in range(1, 10)] == [[]] * 9
    assert len(kept(roomy)) == 9


def test_before_the_room_is_gone_a_person_is_told_to_send_them_and_then_the_oldest_go(staging: Staging) -> None:
    narrow = bounded(staging, 40)  # three attempts' logs, spare: 2
    warnings = [attempt(narrow, epoch) for epoch in range(1, 40)]
    first = next(number for number, one in enumerate(warnings) if one)
    assert "dropped soon: `segue wandb sync` with the run.toml of arm now" in warnings[first][0]
    later = [one[0] for one in warnings[first:] if one and "are dropped," in one[0]]
    assert later and "`segue wandb sync` with the run.toml of arm now" in later[0]
    assert kept(narrow)[-1] == "000039.tar"
    assert "000001.tar" not in kept(narrow)


def test_wandb_files_that_are_too_large_are_not_skipped_in_silence(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.staging, "_MOST_WANDB_BYTES", 0)
    (warning,) = attempt(staging, 1)
    assert "larger than" in warning and "`segue wandb sync` with the run.toml of arm" in warning
