"""The ledger is JSON whatever the trainer reports."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.telemetry import Telemetry


def no_such_number(text: str) -> None:
    pytest.fail(f"{text} is no JSON")


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_a_warning_and_the_ledger_stays_json(tmp_path: Path, loss: float) -> None:
    warned: list[str] = []
    place = SimpleNamespace(chirp=None, machine="m")
    job, handover = SimpleNamespace(steps=100), SimpleNamespace(commit=None)
    attempt: Any = SimpleNamespace(own=tmp_path, loop=None, place=place, job=job, handover=handover)
    attempt.warn = lambda text, key=None: warned.append(text)
    attempt.settled = lambda key: warned.clear()
    telemetry = Telemetry(attempt)
    sent: list[dict[str, Any]] = []
    vars(telemetry).update(_gpus=SimpleNamespace(ask=lambda answer: None), _chirp=SimpleNamespace(send=sent.append))
    training: Any = SimpleNamespace(over=False, keeper=SimpleNamespace(pid=os.getpid()), step=7, loss=loss)
    training.clock = SimpleNamespace(step_s=lambda: 0.5)
    telemetry.sample(training)
    (line,) = telemetry.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line, parse_constant=no_such_number)["loss"] is None
    assert sent[0]["ChirpLoss"] is None and f"loss is {loss} at step 7" in warned[0]
    training.loss = 0.5
    telemetry.sample(training)
    assert (json.loads(telemetry.path.read_text(encoding="utf-8").splitlines()[-1])["loss"], warned) == (0.5, [])
