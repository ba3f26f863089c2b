"""A compact ledger of the attempt, one JSON line every few seconds, and the same in short as Chirp attributes of the job.

The ledger lies in scratch and is kept beside the attempt's log in the store; its last line says how far the attempt came, so the next
one knows which steps it redoes.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from agent.attempt import Attempt
from agent.chirp import Chirp
from agent.training import Training
from agent.usage import GpuQuery, Usage, usage_below


class Telemetry:
    """``sample`` is called every ``telemetry_s`` seconds; ``note`` writes what happened in between."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.path: Path = attempt.own / "telemetry.jsonl"
        self._chirp = Chirp(attempt.loop, attempt.place.chirp)
        self._gpus = GpuQuery(attempt.loop)
        self._gpu_facts: list[dict[str, float]] = []
        self._before: tuple[float, Usage] | None = None

    def note(self, event: str, **facts: Any) -> None:
        """One line; a full disk costs the line only."""
        line = json.dumps({"at": round(time.time(), 3), "event": event, **facts}, separators=(",", ":"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:
            return

    def sample(self, training: Training) -> None:
        """What the trainer does and uses now."""
        if training.over:
            return
        attempt = self._attempt
        used = usage_below(training.keeper.pid)
        now = time.monotonic()
        cpu = 0.0
        if self._before is not None and now > self._before[0]:
            cpu = max(0.0, 100.0 * (used.cpu_s - self._before[1].cpu_s) / (now - self._before[0]))
        self._before = (now, used)
        step_s = training.clock.step_s()
        rate = 1.0 / step_s if step_s else 0.0
        loss = training.loss
        if loss is not None and not math.isfinite(loss):
            attempt.warn(
                f"the trainer's loss is {loss} at step {training.step}: look into `segue logs`, what it makes from here on may be of no use",
                key="loss",
            )
            loss = None  # JSON has no such number
        elif loss is not None:
            attempt.settled("loss")
        self.note(
            "sample",
            step=training.step,
            steps_per_s=round(rate, 4),
            loss=loss,
            cpu_percent=round(cpu, 1),
            resident=used.resident,
            read=used.read,
            written=used.written,
            processes=used.processes,
            gpus=self._gpu_facts,
        )
        self._gpus.ask(self._gpus_answered)
        left = attempt.job.steps - training.step
        self._chirp.send(
            {
                "ChirpStep": training.step,
                "ChirpSteps": attempt.job.steps,
                "ChirpStepsPerSecond": rate,
                "ChirpLoss": loss,
                "ChirpLastCommit": attempt.handover.commit or "",
                "ChirpEta": int(time.time() + left / rate) if rate else None,
            }
        )

    def _gpus_answered(self, facts: list[dict[str, float]]) -> None:
        self._gpu_facts = facts
        broken = [number for number, gpu in enumerate(facts) if gpu.get("ecc_uncorrected", 0) > 0]
        if broken:
            self._attempt.warn(
                f"GPU {broken[0]} of {self._attempt.place.machine} reports uncorrected memory errors (ECC)", key="ecc"
            )
