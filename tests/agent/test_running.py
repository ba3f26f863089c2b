"""The frame around an attempt: whatever goes wrong at its edges, it ends with the code that its end has, and says why."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import handover as record
from agent.companions import Companions
from agent.errand import running
from agent.handover import Handover
from agent.loop import Loop
from tests.agent.support import ROOT, Run


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


def test_what_fails_after_the_handover_changes_no_end(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=20)
    breaking = "def no(self, until):\n    raise RuntimeError('no thread')\nimport agent.companions\nagent.companions.Companions.last = no\n"
    (tmp_path / "sitecustomize.py").write_text(breaking)
    with run.attempt(environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as attempt:
        assert attempt.end() == 0
    assert attempt.handover()["state"] == "complete"
    assert "closing the attempt failed (RuntimeError: no thread)" in attempt.log()


def test_a_python_without_ctypes_is_named(tmp_path: Path) -> None:
    """One that was compiled where libffi was not there."""
    run = Run(tmp_path, steps=20)
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ctypes'] = None\n")
    with run.attempt(environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as attempt:
        assert attempt.end() == 78
    assert f"{sys.executable}: this Python has no ctypes" in attempt.handover()["reason"]


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_an_agent_whose_standard_descriptors_are_closed_trains_all_the_same(tmp_path: Path, closed: str) -> None:
    run = Run(tmp_path, steps=20)
    with run.attempt(python=("sh", "-c", f'exec "$@" {closed}', "sh", sys.executable)) as attempt:
        assert attempt.end() == 0, attempt.log()
    assert attempt.handover()["state"] == "complete"
    assert "done at 20" in attempt.log()


@pytest.mark.forks
def test_a_sigterm_while_the_log_is_kept_shortens_the_wait(tmp_path: Path) -> None:
    """Staging that hangs at the end would otherwise hold the job beyond the grace that it was given."""
    loop = Loop()
    said: list[str] = []
    attempt: Any = SimpleNamespace(
        loop=loop, epoch=1, superseded="", leave_now=False, leaving_until=None, own=tmp_path, warn=said.append
    )
    attempt.log = SimpleNamespace(path=tmp_path / "log")
    staging: Any = SimpleNamespace(keep=lambda *about: time.sleep(1000))
    (tmp_path / "log").touch()

    def told() -> None:
        attempt.leaving_until = time.time() + 1.0

    try:
        companions = Companions(attempt, staging)
        loop.after(0.01, told)
        began = time.monotonic()
        companions.last(time.time() + 1000.0)
        assert time.monotonic() - began < 10.0
        assert not running
    finally:
        loop.close()


@pytest.mark.parametrize(("fault", "code"), [(OSError(5, "Input/output error"), 75), (None, 78)])
def test_a_job_file_that_this_machine_cannot_read_may_be_read_by_another(
    fault: OSError | None,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from agent.__main__ import main

    path = tmp_path / "job.json"
    path.write_text("{")

    def refused(*_: object, **__: object) -> str:
        raise fault  # type: ignore[misc]

    if fault is not None:
        monkeypatch.setattr(Path, "read_text", refused)
    assert main(["run", "--config", str(path), "--segment", "0", "--class", "short"]) == code
    assert str(path) in capsys.readouterr().err
