"""A scratch disk without room, where the agent itself must write: the trainer is told to stop all the same, or ended in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import JobConfig
from agent.errand import Outcome
from agent.handover import Handover, reserve, write
from agent.loop import Loop
from agent.output import Log
from agent.publishing import Publisher
from agent.recipes.base import Start
from agent.recipes.command import Command
from agent.training import Files, Training
from tests.agent.plain_recipes import Plain
from tests.agent.recipes.starts import saved, start_of
from tests.agent.support import DEADLINE_S, Run


class Still:
    """In place of keeper, output and loop: nothing runs."""

    writer = 0

    def __init__(self, *_: object) -> None:
        pass

    def awake(self) -> float:
        return 0.0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Training, Files, Log]:
    monkeypatch.setattr("agent.training.Keeper", Still)
    monkeypatch.setattr("agent.training.Output", Still)
    job = JobConfig("r", "/staging", 1000, "command", python="/bin/true")
    start = Start(job, tmp_path, 0, None, 1000, None, 0.0, 1)
    still: Any = Still()
    log, files = Log(tmp_path / "log"), Files(tmp_path / ".segue")
    return Training(still, log, Command(), start, files, {}, lambda step, loss: None), files, log


def test_the_stop_file_needs_no_room_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, files, _ = training(tmp_path, monkeypatch)
    assert not files.stop.exists()
    reserved = files.asking.stat()
    assert reserved.st_size > len("1000000000\n")
    asked.ask_to_stop(17)
    assert files.stop.read_text(encoding="ascii") == "17\n"
    assert files.stop.stat().st_ino == reserved.st_ino
    assert not files.asking.exists()


def test_a_stop_file_that_was_taken_away_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, files, _ = training(tmp_path, monkeypatch)
    files.asking.unlink()
    asked.ask_to_stop(17)
    assert files.stop.read_text(encoding="ascii") == "17\n"


def test_a_trainer_that_cannot_be_asked_is_no_failure_of_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, files, log = training(tmp_path, monkeypatch)
    files.asking.unlink()
    files.asking.symlink_to("/dev/full")
    asked.ask_to_stop(17)
    assert not files.stop.exists()
    assert asked.stop_asked == 17  # from here on it counts as deaf, and is ended when its time is over
    assert "No space left on device" in log.path.read_text(encoding="utf-8")


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_no_room_for_a_snapshot_is_a_trouble_like_any_other(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "own").touch()
    troubles: list[Outcome] = []
    publisher = Publisher(
        loop, tmp_path / "own" / "snapshots", lambda *_: {}, None, lambda commit: None, troubles.append, 60.0
    )
    saved(tmp_path / "checkpoints", "10", ("weights",))
    publisher.watch(Plain(), start_of(tmp_path, "plain"), 0)
    publisher.look(thoroughly=True)
    assert loop.run_until(lambda: publisher.idle, time.monotonic() + DEADLINE_S)
    assert [one.error for one in troubles] == ["OSError"]


def test_the_handovers_room_is_kept_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "handover.json"
    long = Handover("r", 0, "short", 10, last_lines=["\ufffd" * 2000] * 50)
    reserve(path)
    (room,) = tmp_path.iterdir()
    kept = room.stat().st_size
    write(long, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_size < kept


def test_an_attempt_leaves_nothing_of_that_room(tmp_path: Path) -> None:
    with Run(tmp_path, steps=20).attempt() as attempt:
        assert attempt.end() == 0
    assert not list(attempt.scratch.glob(".handover*"))
