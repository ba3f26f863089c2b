"""When a trainer that makes no step counts as hanging: the limits, by a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.config import JobConfig, Pace
from agent.hang import Hang
from agent.recipes.base import Progress, Recipe, Start
from agent.recipes.command import Command
from agent.recipes.lerobot import LeRobot
from agent.recipes.openpi import OpenPI
from agent.training import Files, Training

PACE = Pace(step_s=1.0, save_s=5.0, startup_s=600.0)


class Talking(Command):
    """Is known to report each step in a line."""

    def reports_every(self, start: Start) -> int | None:
        return 1

    def progress(self, line: str) -> Progress | None:
        word, _, number = line.partition(" ")
        return Progress(int(number)) if word == "step" else None


class Silent(Talking):
    """The same lines, but nobody can rely on them."""

    def reports_every(self, start: Start) -> int | None:
        return None


class Watched:
    """A training without a process; ``passes`` lets time go by and looks, as the agent does."""

    pid = writer = 0

    def __init__(self, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
        self.now = self.used = 1e6
        self.busy = True
        self.log = self
        monkeypatch.setattr("agent.training.Keeper", lambda *_, **__: self)
        monkeypatch.setattr("agent.training.Output", lambda *_, **__: self)
        monkeypatch.setattr("agent.training.steady", lambda: self.now)
        monkeypatch.setattr("agent.hang.family", lambda pid: [])
        monkeypatch.setattr("agent.hang.cpu_seconds", lambda pids: self.used)
        monkeypatch.setattr("agent.hang.kernel_stacks", lambda pids: [])
        job = JobConfig("r", "/staging", 10**6, "command", python="/bin/true", **fields)
        start = Start(job, tmp_path, 0, None, 10**6, None, 0.0, 1)
        me: Any = self
        self.loop = me
        self.training = Training(me, me, recipe, start, Files(tmp_path / ".segue"), {}, lambda step, loss: None)
        self.hang = Hang(job, PACE, 0)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def awake(self) -> float:
        return self.now

    def passes(self, seconds: float, line: str = "") -> bool:
        """Whether it hangs when ``seconds`` have gone by; then it says ``line``."""
        until = self.now + seconds
        while self.now < until and not self.hang.hung:
            self.now = min(self.now + 10, until)
            self.used += 10 * self.busy
            me: Any = self
            self.hang.look(self.training, me)
        if line:
            self.training._line(line)
        return self.hang.hung


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watched]:
    return lambda recipe=None, **fields: Watched(tmp_path, recipe or Talking(), monkeypatch, **fields)


Made = Callable[..., Watched]


def test_reports_that_are_far_apart_are_no_hang(watched: Made) -> None:
    """Each 500 steps at 1 s: longer than twenty steps and than hang_min_s."""
    one = watched()
    for number in range(1, 6):
        assert not one.passes(700, f"step {500 * number}")
    assert not one.passes(2000)
    assert one.passes(500)


def test_before_the_second_report_the_time_to_the_first_is_what_is_known(watched: Made) -> None:
    one = watched()
    one.passes(60, "step 1")
    assert not one.passes(1000, "step 501")
    assert not one.passes(1000, "step 1001")


def test_a_trainer_that_reports_each_step_hangs_by_factor_and_minimum(watched: Made) -> None:
    one = watched()
    for number in range(1, 10):
        one.passes(10, f"step {number}")
    assert not one.passes(290)
    assert one.passes(20)
    other = watched(hang_min_s=5000.0)
    for number in range(1, 10):
        other.passes(10, f"step {number}")
    assert not other.passes(4900)
    assert other.passes(200)


def test_an_evaluation_that_prints_is_no_hang_but_a_loop_that_prints_for_ever_is(watched: Made) -> None:
    one = watched()
    for number in range(1, 10):
        one.passes(10, f"step {number}")
    for episode in range(25):
        assert not one.passes(120, f"evaluating episode {episode}"), episode
    assert any(one.passes(120, "still waiting for rank 1") for _ in range(25))


def test_a_start_that_spins_and_prints_nothing_is_found_within_half_an_hour(watched: Made) -> None:
    one = watched()
    assert not one.passes(1790)
    assert one.passes(30)


def test_a_start_that_spins_and_prints_is_compiling_or_loading(watched: Made) -> None:
    one = watched()
    for number in range(40):
        assert not one.passes(1000, f"shard {number}")


def test_a_trainer_whose_reports_nobody_knows_is_left_alone_while_it_computes(watched: Made) -> None:
    one = watched(Silent())
    assert not one.passes(40_000)


@pytest.mark.parametrize("recipe", [Talking(), Silent()])
def test_an_idle_start_is_found_without_waiting_for_twenty_starts(watched: Made, recipe: Recipe) -> None:
    one = watched(recipe)
    one.busy = False
    assert not one.passes(1700)
    assert one.passes(1200)


def test_an_idle_start_that_prints_gets_twenty_starts(watched: Made) -> None:
    one = watched()
    one.busy = False
    for number in range(11):
        assert not one.passes(1000, f"downloaded {number} %")
    assert any(one.passes(1000, "retrying") for number in range(10))


def test_the_minimum_of_run_toml_holds_for_a_start_too(watched: Made) -> None:
    one = watched(hang_min_s=7200.0)
    assert not one.passes(7000)
    assert one.passes(300)


def test_trainers_whose_lines_report_steps_say_how_often(tmp_path: Path) -> None:
    job = JobConfig("r", "/staging", 100, "lerobot", args=("--log_freq=1000",))
    start = Start(job, tmp_path, 0, None, 100, None, 0.0, 1)
    assert LeRobot().reports_every(start) == 1000
    assert OpenPI().reports_every(start) == 100
    assert Command().reports_every(start) is None
