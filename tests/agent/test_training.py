"""What a trainer reports, in lines and in its progress file, and what of it is believed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import JobConfig
from agent.pacing import StepClock
from agent.recipes.base import Start
from agent.recipes.command import Command
from agent.training import Files, Training


class Still:
    """In place of keeper, output, loop and log: nothing runs."""

    pid = 0
    writer = 0

    def __init__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def awake(self) -> float:
        return time.monotonic()


Started = Callable[..., Training]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    """A training without a process; ``resume``: from that step."""
    monkeypatch.setattr("agent.training.Keeper", Still)
    monkeypatch.setattr("agent.training.Output", Still)

    def start(resume: int = 0) -> Training:
        job = JobConfig("r", "/staging", 100_000, "command", python="/bin/true")
        told = Start(job, tmp_path, resume, None, 100_000, None, 0.0, 1)
        still: Any = Still()
        return Training(still, still, Command(), told, Files(tmp_path / ".segue"), {}, lambda step, loss: None)

    yield start


def fed(clock: StepClock, reports: list[tuple[float, int]]) -> list[int]:
    """The step that stands after each report."""
    steps = []
    for now, step in reports:
        clock.report(now, step)
        steps.append(clock.last[1] if clock.last is not None else 0)
    return steps


def test_a_first_report_that_the_next_ones_contradict_is_taken_back() -> None:
    clock = StepClock()
    reports = [(0.0, 5000), *((10.0 + number, number) for number in range(1, 6))]
    assert fed(clock, reports) == [5000, 5000, 2, 3, 4, 5]
    assert clock.first == (11.0, 1)
    assert clock.step_s() == pytest.approx(1.0)


def test_a_list_of_steps_before_the_training_is_taken_back() -> None:
    clock = StepClock()
    listed = [(0.001 * number, 1000 * number) for number in range(1, 11)]
    assert fed(clock, [*listed, *((10.0 + number, 10 * number) for number in range(1, 6))])[-1] == 50
    assert clock.step_s() == pytest.approx(0.1)


def test_a_leap_counts_only_once_others_follow_it() -> None:
    # Given a training at an even pace
    clock = StepClock()
    fed(clock, [(float(number), number) for number in range(1, 51)])
    # When a line names a step far ahead, and another one, and the training goes on
    assert fed(clock, [(50.1, 50_000), (51.0, 51), (51.1, 60_000), (52.0, 52)]) == [50, 51, 51, 52]
    assert clock.step_s() == pytest.approx(1.0)
    # Then it changed nothing; but one that does go on there is believed
    assert fed(clock, [(53.0, 1000), (54.0, 1100), (55.0, 1200), (56.0, 1300)]) == [52, 52, 1200, 1300]


def test_steps_that_come_late_are_no_leap() -> None:
    clock = StepClock()
    fed(clock, [(float(number), number) for number in range(1, 11)])
    assert fed(clock, [(110.0, 109), (111.0, 110)]) == [109, 110]


def test_steps_of_an_evaluation_do_not_lead_back() -> None:
    clock = StepClock()
    fed(clock, [(float(number), 100 * number) for number in range(1, 11)])
    assert fed(clock, [(11.0, 1), (11.1, 2), (11.2, 3), (12.0, 1100)]) == [1000, 1000, 1000, 1100]


def test_a_resumed_trainer_leads_back_to_no_step_before_its_own() -> None:
    clock = StepClock(3000)
    assert fed(clock, [(0.0, 2000), (1.0, 5000), (2.0, 10), (3.0, 20), (4.0, 3001), (5.0, 3002)]) == [
        0,
        5000,
        5000,
        5000,
        5000,
        3002,
    ]


def test_any_new_report_is_a_sign_of_life(started: Started) -> None:
    training = started()
    for step in (5000, 1):
        training.last_sign = 0.0
        training._line(f"step {step} loss 0.5")
        assert training.last_sign > 0
    training.last_sign = 0.0
    training._line("step 1 loss 0.5")
    assert training.last_sign == 0


def test_a_step_beyond_the_run_is_none(started: Started) -> None:
    training = started()
    training._line("the schedule would go on until step 200000")
    assert (training.step, training.clock.first) == (0, None)
    training._line("step 100000")
    training._line("step 100001")
    assert training.step == 100_001


def test_a_trainer_that_began_anew_is_known_by_its_first_reports(started: Started) -> None:
    training = started(resume=30)
    training._line("step 1")
    assert (training.behind, training.step) == (1, 30)


def write(path: Path, text: str, seconds: float) -> None:
    """As written at that moment, so that no clock's grain matters."""
    path.write_text(text, encoding="ascii")
    os.utime(path, (seconds, seconds))


def test_what_is_no_number_of_a_step_is_passed_over(started: Started) -> None:
    training = started()
    progress = training._files.progress
    bad = ('{"step": Infinity}', '{"step": NaN}', '{"step": 6, "loss": 1' + 400 * "0" + "}", "[" * 100_000, "[]", "{")
    write(progress, "\n".join(('{"step": 5}', *bad)) + "\n", 1.0)
    training.look()
    assert training.step == 5


def test_a_progress_file_that_is_rewritten_is_read_anew(started: Started) -> None:
    training = started()
    progress = training._files.progress
    seen = []
    for second, step in enumerate((8, 9, 10, 11, 12)):
        write(progress, f'{{"step": {step}}}\n', float(second))
        training.look()
        seen.append(training.step)
    assert seen[:2] == [8, 9] and seen[3:] == [11, 12]
    # and by a new file in its place, of whatever size, with or without an end of line
    other = progress.with_suffix(".new")
    write(other, '{"step": 13, "loss": 0.25, "more": "than before"}', 9.0)
    other.replace(progress)
    training.look()
    assert (training.step, training.loss) == (13, 0.25)
    write(progress, '{"step": 14}', 10.0)
    training.look()
    assert training.step == 14


def test_a_progress_file_that_grows_is_read_once(started: Started) -> None:
    training = started()
    progress = training._files.progress
    write(progress, '{"step": 1}\n{"st', 1.0)
    training.look()
    write(progress, '{"step": 1}\n{"step": 2}\n', 2.0)
    training.look()
    assert (training.step, training._progress_place) == (2, 24)
