"""A machine's clock may be set while an attempt runs: the limit and all that is measured follow one that only goes forward."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.agent.support import ROOT, Run


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_clock_that_is_set_changes_no_time_of_the_attempt(tmp_path: Path, step_s: float) -> None:
    # Given a machine whose clock jumps an hour while a trainer runs that ends when its time is used
    (tmp_path / "sitecustomize.py").write_text(
        f"import time\nreal, begun = time.time, time.monotonic()\n"
        f"time.time = lambda: real() + {step_s} * (time.monotonic() > begun + 1.0)\n"
    )
    run = Run(tmp_path, steps=100_000, save_interval=20, limit_s=5.0, margin_s=1.5, args=("step_s=0.01",))
    began = time.monotonic()
    with run.attempt(environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as attempt:
        assert attempt.end() == 0
    # Then it ends when its limit comes, not an hour earlier or later, and knows how long a step takes
    assert 2.0 < time.monotonic() - began < 15
    handover = attempt.handover()
    assert (handover["state"], handover["redone_steps"]) == ("time-used", 0)
    assert 0.005 < handover["pace"]["step_s"] < 1.0
