"""Deadlines as HTCondor counts them, and how many steps fit before one."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.ads import parse
from agent.config import ClassLimit, JobConfig, Pace
from agent.deadline import find_deadline
from agent.errors import BadInput
from agent.pacing import (
    Experience,
    StepClock,
    cautious,
    from_carried,
    hopeful,
    landing_interval,
    last_step,
    save_interval,
    stop_time,
    tail_s,
)
from agent.place import Place, look_around

NOW = 1_700_000_000.0


def place(job_ad: str = "", machine_ad: str = "", began: float = NOW, in_condor: bool = True) -> Place:
    return Place(Path("/scratch"), parse(job_ad), parse(machine_ad), "m", "slot1", "1.0", 0, began, in_condor)


def job(limit: float, margin: float = 300.0) -> JobConfig:
    return JobConfig("r", "/staging", 1000, "command", classes={"short": ClassLimit(limit)}, margin_s=margin)


def test_the_class_limit_counts_from_the_shadows_start() -> None:
    found = find_deadline(job(1000), "short", place(f"JobCurrentStartDate = {int(NOW) - 40}"))
    assert (found.at, found.usable, found.cause) == (NOW + 960, NOW + 660, "class short")


def test_allowed_job_duration_as_an_expression_is_a_deadline() -> None:
    found = find_deadline(
        job(5000), "short", place(f"JobCurrentStartDate = {int(NOW) - 40}\nAllowedJobDuration = 10 * 60")
    )
    assert (found.at, found.cause) == (NOW + 560, "AllowedJobDuration")


def test_allowed_execute_duration_counts_from_the_execution() -> None:
    ad = f"JobCurrentStartDate = {int(NOW) - 400}\nAllowedExecuteDuration = 300"
    assert find_deadline(job(5000), "short", place(ad)).at == NOW + 300


def test_a_start_date_of_long_ago_is_not_believed() -> None:
    assert find_deadline(job(1000), "short", place("JobCurrentStartDate = 5")).at == NOW + 1000


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(BadInput, match="no class 'long'"):
        find_deadline(job(1), "long", place())


def test_vacate_time_is_the_smaller_of_job_and_machine() -> None:
    assert place("JobMaxVacateTime = 20", "MachineMaxVacateTime = 10 * 60").vacate_s == 20
    assert place("", "MachineMaxVacateTime = 10 * 60").vacate_s == 600
    assert place("JobMaxVacateTime = 900", "MachineMaxVacateTime = 5").vacate_s == 5


def test_queue_time_is_known_from_the_job_ad() -> None:
    assert place(f"JobCurrentStartDate = {int(NOW)}\nQDate = {int(NOW) - 50}\nNumJobStarts = 1").queued_s == 50


def test_without_htcondor_the_current_directory_is_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = look_around({})
    assert found.scratch == tmp_path
    assert not found.in_condor
    assert time.time() - 3600 * 24 < found.began <= time.time()


def test_after_exit_85_only_the_time_since_the_last_execution_was_transfer(tmp_path: Path) -> None:
    # Given an execution in this sandbox that ended with exit 85 just now; the job ad still has the first one's start
    (tmp_path / ".job.ad").write_text(f"JobCurrentStartDate = {int(time.time()) - 5000}\nQDate = 1\nNumJobStarts = 1\n")
    environment = {"_CONDOR_SCRATCH_DIR": str(tmp_path)}
    assert look_around(environment).restarted is None
    look_around(environment).note_restart()
    # When the next one begins
    again = look_around(environment)
    # Then only the time in between was HTCondor's, and a later first start (an eviction) does not see the mark
    assert again.transfer_s < 60 and again.queued_s == 0
    assert 4000 < again.began - again.started < 6000
    assert look_around(environment).restarted is None


def test_where_htcondor_moves_the_store_its_time_is_kept_free() -> None:
    moved = replace(place(f"JobCurrentStartDate = {int(NOW) - 40}"), restarted=NOW - 25.0)
    assert find_deadline(job(1000), "short", moved).usable == NOW + 660
    assert find_deadline(replace(job(1000), checkpoint_exit=True), "short", moved).usable == NOW + 635


PACE = Pace(step_s=1.0, save_s=2.0, publish_s=4.0, restore_s=1.0, startup_s=10.0)


def test_the_last_step_leaves_time_to_save_and_publish() -> None:
    experience = Experience(PACE, measured=True)
    reached = last_step(experience, 100, 10_000, NOW, NOW + 600)
    assert reached > 100
    end_of_training = PACE.startup_s + (reached - 100) * PACE.step_s
    assert 0 <= 600 - end_of_training - tail_s(PACE) < 0.05 * 600


def test_no_step_fits_into_a_class_shorter_than_start_up_and_publish() -> None:
    assert last_step(Experience(PACE, measured=True), 7, 100, NOW, NOW + 15) == 7


def test_the_last_step_is_at_most_the_runs_last() -> None:
    assert last_step(Experience(PACE, measured=True), 90, 100, NOW, NOW + 10_000) == 100


def test_an_estimate_is_trusted_less_than_a_measurement() -> None:
    assert last_step(Experience(PACE), 0, 10_000, NOW, NOW + 600) < last_step(
        Experience(PACE, True), 0, 10_000, NOW, NOW + 600
    )


def test_an_estimate_knows_nothing_of_the_saves_on_the_way() -> None:
    room = 600 - PACE.startup_s - tail_s(PACE)
    reached = last_step(Experience(PACE), 0, 10_000, NOW, NOW + 600, interval=10)
    assert reached * (1.15 * PACE.step_s + PACE.save_s / 10) == pytest.approx(room, abs=2)
    assert last_step(Experience(PACE, True), 0, 10_000, NOW, NOW + 600, 10) == last_step(
        Experience(PACE, True), 0, 10_000, NOW, NOW + 600
    ), "a measurement does"


def test_where_the_trainer_ends_without_a_save_the_interval_lands_just_before_the_end() -> None:
    for interval, last in ((700, 2900), (298, 893), (50, 49), (1, 7), (300, 1300)):
        landed = landing_interval(interval, last)
        assert last - landed < last // landed * landed <= last
        assert landed <= 2 * interval and last % landed < max(1, last // landed)


def test_a_save_makes_the_steps_beside_it_no_slower() -> None:
    # Given a trainer that says each step, 0.1 s apart, and stands still for 30 s after step 50
    clock = StepClock()
    for step in range(1, 51):
        clock.report(NOW + 0.1 * step, step)
    assert clock.saved(NOW + 34, 50) == pytest.approx(29)
    assert clock.stall_s == pytest.approx(29), "as long as no step came since"
    for step in range(51, 90):
        clock.report(NOW + 30 + 0.1 * step, step)
    assert clock.step_s() == pytest.approx(0.1)
    assert clock.stall_s == pytest.approx(30)
    # and the next one, whose checkpoint is found when steps go on already
    for step in range(90, 101):
        clock.report(NOW + 30 + 0.1 * step, step)
    for step in range(101, 110):
        clock.report(NOW + 40 + 0.1 * step, step)
    assert clock.saved(NOW + 51, 100) == pytest.approx(11)
    assert clock.step_s() == pytest.approx(0.1)
    assert clock.stall_s == pytest.approx(20)


def test_where_every_report_is_beside_a_save_the_saves_are_part_of_the_pace() -> None:
    clock = StepClock()
    for number in range(1, 10):
        clock.report(NOW + 20 * number, 100 * number)
        clock.saved(NOW + 20 * number, 100 * number)
    assert clock.step_s() == pytest.approx(0.2)
    assert clock.stall_s == pytest.approx(0)


def test_checkpoints_alone_tell_the_pace() -> None:
    # Given a trainer of which no line says a step, but one that says what is none
    clock = StepClock()
    assert clock.report(NOW + 60, 25, certain=True)
    clock.saved(NOW + 60, 25)
    assert not clock.settled and clock.step_s() is None
    assert clock.report(NOW + 80, 50, certain=True)
    clock.saved(NOW + 80, 50)
    assert clock.settled and clock.step_s() == pytest.approx(0.8)
    assert not clock.report(NOW + 81, 5000), "far ahead of all that is certain"


def test_a_suspended_job_has_no_slow_steps() -> None:
    clock = StepClock()
    for step in range(1, 11):
        clock.report(NOW + step, step)
    for step in range(11, 20):
        clock.report(NOW + 3600 + step, step, paused=step == 11)
    assert clock.step_s() == pytest.approx(1.0)
    assert clock.stall_s == 0


def test_the_stop_is_asked_one_step_before_the_tail() -> None:
    assert stop_time(PACE, NOW) == NOW - tail_s(PACE) - PACE.step_s


def test_more_evictions_mean_shorter_intervals() -> None:
    calm = save_interval(Experience(PACE, True, observed_s=100_000, interruptions=0), 0, 40_000, 43_200)
    rough = save_interval(Experience(PACE, True, observed_s=100_000, interruptions=20), 0, 40_000, 43_200)
    assert rough < calm


def test_the_interval_is_youngs_and_dalys() -> None:
    pace = Pace(step_s=0.5, save_s=10.0, publish_s=0.0)
    seen = Experience(pace, True, observed_s=86_400.0 - 43_200.0, interruptions=1)
    young = (2 * 10.0 * 43_200.0) ** 0.5
    assert save_interval(seen, 0, 1_000_000, 43_200) * 0.5 == pytest.approx(young, rel=0.05)


def test_intervals_divide_the_segment_evenly() -> None:
    interval = save_interval(Experience(PACE, True), 0, 1000, 2000)
    assert 0 < 1000 % interval + interval <= 2 * interval
    assert save_interval(Experience(PACE, True), 0, 3, 43_200) == 3


def test_publishes_never_queue_up() -> None:
    slow = Pace(step_s=1.0, save_s=0.1, publish_s=600.0)
    assert save_interval(Experience(slow, True), 0, 100_000, 43_200) >= 900


def test_measurements_travel_in_the_manifest() -> None:
    seen = Experience(PACE, True, observed_s=12.0, interruptions=3)
    assert from_carried(Pace(), seen.carried()) == seen
    assert from_carried(PACE, {}) == Experience(PACE)
    assert from_carried(PACE, {"step_s": float("nan")}) == Experience(PACE)


def test_one_slow_publish_or_start_does_not_condemn_the_run_for_good() -> None:
    slow = Experience(Pace(step_s=2.0, save_s=2.0, publish_s=500.0, restore_s=1.0, startup_s=600.0), True)
    assert last_step(slow, 0, 100, NOW, NOW + 300) == 0
    assert hopeful(slow, PACE).pace == Pace(step_s=2.0, save_s=2.0, publish_s=4.0, restore_s=1.0, startup_s=10.0)
    assert last_step(hopeful(slow, PACE), 0, 100, NOW, NOW + 300) > 0


def test_durations_go_up_at_once_and_down_slowly() -> None:
    assert cautious(1.0, 5.0) == 5.0
    assert cautious(5.0, 1.0) == 3.0


def test_the_step_clock_measures_recent_steps() -> None:
    clock = StepClock()
    assert clock.step_s() is None
    for number in range(10):
        assert clock.report(NOW + 2.0 * number, 5 * (number + 1))
    assert not clock.report(NOW + 100, 50)
    assert clock.step_s() == pytest.approx(0.4)
    assert clock.settled
