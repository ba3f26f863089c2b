"""What a segment would show only at its end is a warning while it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.agent.support import Run


def test_saves_that_are_not_found_are_a_warning_before_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=100, save_interval=10, args=("step_s=0.03", "prefix=model-"))
    with run.attempt() as attempt:
        assert attempt.end() == 78
    (warning,) = [text for text in attempt.handover()["warnings"] if "one checkpoint is due every 10" in text]
    assert "none was found in" in warning and "model-10" in warning


def test_a_trainer_that_began_anew_is_told_from_one_that_resumed(tmp_path: Path) -> None:
    # given: an attempt that published something
    run = Run(tmp_path, steps=100, save_interval=10, args=("step_s=0.03", "crash_at=35"))
    with run.attempt() as attempt:
        assert attempt.end() == 78
    assert not [text for text in attempt.handover()["warnings"] if "began anew" in text]
    # when the next one's trainer does not look where to resume
    run.job = replace(run.job, args=("step_s=0.1", "forgetful=1"), steps=35)
    with run.attempt() as attempt:
        attempt.end()
    # then that is said
    (warning,) = [text for text in attempt.handover()["warnings"] if "began anew" in text]
    assert "though it was to resume from step 30" in warning
    assert "though it was to resume from step 30" in attempt.handover()["reason"]
