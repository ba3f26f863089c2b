"""nvidia-smi, on machines where it is as broken as the driver."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import usage
from agent.loop import Loop
from agent.processes import become_subreaper, descendants, kill_below, reap
from agent.usage import GpuQuery
from tests.agent.support import DEADLINE_S

pytestmark = pytest.mark.forks


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], tuple[GpuQuery, Loop]]]:
    """A GPU query whose nvidia-smi is this shell script."""
    become_subreaper()
    loop = Loop()

    def made(script: str) -> tuple[GpuQuery, Loop]:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return GpuQuery(loop), loop

    yield made
    loop.close()
    kill_below(os.getpid())


def test_an_nvidia_smi_without_end_is_cut_short(smi: Callable[[str], tuple[GpuQuery, Loop]]) -> None:
    query, loop = smi("while :; do echo 1, 2, 3, 4, 5; done")
    answers: list[list[dict[str, float]]] = []
    query.ask(answers.append)
    assert loop.run_until(lambda: not query.busy, time.monotonic() + DEADLINE_S)
    assert answers == []
    assert loop.run_until(lambda: not reap_and_look(), time.monotonic() + DEADLINE_S)


def reap_and_look() -> list[int]:
    """What of our children still runs."""
    reap()
    return descendants(os.getpid())


def test_an_nvidia_smi_that_hangs_goes_with_its_children_and_is_not_asked_for_ever(
    smi: Callable[[str], tuple[GpuQuery, Loop]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_GPU_LIMIT_S", 0.1)
    query, loop = smi("sleep 1000")
    for _ in range(5):
        query.ask(lambda facts: None)
        assert loop.run_until(lambda: not query.busy, time.monotonic() + DEADLINE_S)
        assert loop.run_until(lambda: not reap_and_look(), time.monotonic() + DEADLINE_S), "a child of it goes on"
    assert not query.available


def test_one_answer_in_between_and_it_is_asked_again(
    smi: Callable[[str], tuple[GpuQuery, Loop]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, loop = smi(f"test -e {tmp_path}/well || exec sleep 1000")
    for seconds in (0.1, 0.1, DEADLINE_S, 0.1, 0.1):
        monkeypatch.setattr(usage, "_GPU_LIMIT_S", seconds)
        (tmp_path / "well").touch() if seconds == DEADLINE_S else (tmp_path / "well").unlink(missing_ok=True)
        query.ask(lambda facts: None)
        assert loop.run_until(lambda: not query.busy, time.monotonic() + DEADLINE_S)
    assert query.available
