"""Both halves of the suite end in their own time, whatever ends the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import halves

REPOSITORY = Path(__file__).resolve().parents[1]
# A half that takes down for a second what it started.
_HALF = """
import pathlib, sys, time
place = pathlib.Path(sys.argv[1])
try:
    place.with_suffix(".begun").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    place.with_suffix(".ended").touch()
"""
_BOTH = """
import signal, sys
from tests import halves
signal.signal(signal.SIGINT, signal.default_int_handler)
halves._POOL, halves._OTHERS = ((sys.executable, "-c", sys.argv[1], sys.argv[2] + name) for name in ("/pool", "/others"))
sys.exit(halves.main([]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_both_halves_take_down_what_they_started(tmp_path: Path, number: signal.Signals, code: int) -> None:
    words = [sys.executable, "-c", _BOTH, _HALF, str(tmp_path)]
    with subprocess.Popen(words, cwd=REPOSITORY, start_new_session=True) as both:
        until = time.monotonic() + 30
        while len(list(tmp_path.glob("*.begun"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(both.pid, number)  # as a terminal does
        else:
            both.send_signal(number)
        assert both.wait(30) == code
    assert sorted(path.name for path in tmp_path.glob("*.ended")) == ["others.ended", "pool.ended"]


@pytest.mark.parametrize(("pool", "others", "code"), [(0, 0, 0), (1, 0, 1), (0, 1, 1), (5, 0, 0), (5, 2, 2), (5, 5, 5)])
def test_one_half_that_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch, pool: int, others: int, code: int) -> None:
    monkeypatch.setattr(halves, "_POOL", (sys.executable, "-c", f"raise SystemExit({pool})"))
    monkeypatch.setattr(halves, "_OTHERS", (sys.executable, "-c", f"raise SystemExit({others})"))
    assert halves.main([]) == code
