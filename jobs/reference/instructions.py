"""What the trainer is told by the agent through SEGUE_* (docs/architecture.md), with the command line's values where there is no agent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agent.errors import BadInput

_STEPS = 400
_SAVE_INTERVAL = 100


@dataclass(frozen=True)
class Instructions:
    """``steps`` of the whole run; ``last_step``: save and end there; ``resume_step`` 0: begin afresh. Steps are updates done."""

    checkpoints: Path
    resume_step: int
    last_step: int
    steps: int
    save_interval: int
    stop_file: Path | None
    progress_file: Path | None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if not text:
        return None
    if not text.isdecimal():
        raise BadInput(f"{name}={text!r}: a whole number of steps is needed")
    return int(text)


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    return Path(environment[name]) if environment.get(name) else None


def read(
    environment: Mapping[str, str], checkpoints: Path, steps: int | None, save_interval: int | None, latest: int
) -> Instructions:
    """The environment decides, then the command line. Where no SEGUE_RESUME_STEP is given at all, ``latest`` (a checkpoint found) is resumed.

    Raises BadInput for a value that is no number.
    """
    resume = _number(environment, "SEGUE_RESUME_STEP")
    total = _number(environment, "SEGUE_STEPS") or steps or _STEPS
    interval = _number(environment, "SEGUE_SAVE_INTERVAL") or save_interval or _SAVE_INTERVAL
    return Instructions(
        checkpoints=checkpoints,
        resume_step=latest if resume is None else resume,
        last_step=min(_number(environment, "SEGUE_LAST_STEP") or total, total),
        steps=total,
        save_interval=interval,
        stop_file=_path(environment, "SEGUE_STOP_FILE"),
        progress_file=_path(environment, "SEGUE_PROGRESS_FILE"),
    )


def checkpoint_root(environment: Mapping[str, str], given: Path) -> Path:
    """SEGUE_CHECKPOINT_DIR, else the command line's."""
    return _path(environment, "SEGUE_CHECKPOINT_DIR") or given


def stop_wanted(stop_file: Path | None, step: int) -> bool:
    """Whether to save and end after ``step``. One system call where nobody asked."""
    if stop_file is None:
        return False
    try:
        with stop_file.open("rb") as file:
            text = file.read(32).strip()
    except OSError:
        return False
    return not text.isdigit() or step >= int(text)


class Progress:
    """One JSON line a step into the agent's file, whole lines only; a line on stdout at most twice a second."""

    def __init__(self, path: Path | None, every_s: float = 0.5) -> None:
        self._fd = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._every_s = every_s
        self._next = 0.0

    def tell(self, step: int, loss: float, now: float, last: bool, out: IO[str]) -> None:
        """``now`` in seconds of any clock; ``last``: say it on stdout in any case."""
        if self._fd is not None:
            os.write(self._fd, json.dumps({"step": step, "loss": loss}).encode() + b"\n")
        if now >= self._next or last:
            self._next = now + self._every_s
            print(f"step {step} loss {loss:.6g}", file=out, flush=True)
