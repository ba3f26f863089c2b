"""The frame around an attempt: whatever goes wrong at its edges, it ends with the code that its end has, and says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent import handover as record
from agent.handover import Handover
from tests.agent.support import Run


def test_a_name_that_no_text_can_hold_does_not_lose_the_handover(tmp_path: Path) -> None:
    path = tmp_path / "handover.json"
    record.write(Handover("r", 0, "short", 10, reason="there are: bad\udcff-10"), path)
    assert json.loads(path.read_text(encoding="utf-8"))["reason"] == "there are: bad?-10"


def test_a_handover_that_cannot_be_written_leaves_nothing_half_done(tmp_path: Path) -> None:
    path = tmp_path / "handover.json"
    path.mkdir()
    with pytest.raises(OSError):
        record.write(Handover("r", 0, "short", 10), path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_scratch_directory_that_cannot_be_used_is_temporary_and_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "logs").touch()
    with run.attempt(scratch=scratch) as attempt:
        assert attempt.end() == 75
    handover = attempt.handover()
    assert (handover["state"], handover["exit_code"], handover["machine"] != "") == ("temporary", 75, True)
    assert f"the scratch directory {scratch} cannot be used" in handover["reason"]
