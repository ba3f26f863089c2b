"""The main job end to end: a chain of segments on a real HTCondor, disturbed twice, equal to the last bit to a run left alone.

Records expert episodes, starts the embedded pool, submits the example through condor_submit_dag, evicts one attempt
(condor_vacate_job), kills one agent (SIGKILL), trains once more without any of it, compares, evaluates, stops the pool.
Progress goes to stderr; the last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dagman.pool import EmbeddedPool

HERE = Path(__file__).resolve().parent
SEGUE = [sys.executable, "-m", "cli.main"]
POLL_S = 0.25
PATIENCE_S = 240.0


class DemoFailed(Exception):
    """A step of the demonstration did not happen; the message says which."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


STARTED = time.monotonic()


def working_directory(name: str = "demo") -> Path:
    """A fresh directory outside the system's /tmp, where DAGMan refuses to keep its logs."""
    here = HERE.parents[1] / ".work" / name
    if here.is_relative_to("/tmp") or here.is_relative_to("/var/tmp"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        here = cache / "segue" / "work" / name
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    return here


class Chain:
    """The submitted workflow as `segue status --json` shows it."""

    def __init__(self, pool: EmbeddedPool, workflow: Path) -> None:
        self.pool = pool
        self.workflow = workflow
        self.told: set[str] = set()

    def status(self) -> dict[str, Any]:
        """The timeline, read from the event log, the handovers and staging."""
        done = self.pool.run([*SEGUE, "status", str(self.workflow), "--json"], capture_output=True, text=True)
        if done.returncode != 0:
            raise DemoFailed(f"segue status: {done.stderr.strip()}")
        status: dict[str, Any] = json.loads(done.stdout)
        self._tell(status)
        return status

    def _tell(self, status: dict[str, Any]) -> None:
        for segment in status["segments"]:
            for attempt in segment["attempts"]:
                note = f"segment {segment['number']}: attempt {attempt['number']}, {attempt['outcome']}"
                if note not in self.told:
                    self.told.add(note)
                    say(note)
        note = f"step {status['step']} of {status['steps']}, newest commit {status['last_commit'] or 'none'}"
        if note not in self.told:
            self.told.add(note)
            say(note)

    def until(self, what: str, reached: Callable[[dict[str, Any]], Any]) -> Any:
        """The first true answer of `reached`; DemoFailed when the chain ends or PATIENCE_S pass without one."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            status = self.status()
            answer = reached(status)
            if answer:
                return answer
            if status["state"] in ("complete", "failed", "removed"):
                raise DemoFailed(f"the chain ended ({status['state']}) before {what}")
            time.sleep(POLL_S)
        raise DemoFailed(f"{what} did not happen within {PATIENCE_S:.0f} s")


def running_attempt(status: dict[str, Any], segment: int, beyond_step: int) -> dict[str, Any] | None:
    """The attempt of the segment that runs now, once the run has a commit past the step."""
    if status["step"] <= beyond_step:
        return None
    for attempt in status["segments"][segment]["attempts"]:
        if attempt["outcome"] == "running":
            found: dict[str, Any] = attempt
            return found
    return None


def agent_process(workflow: Path, segment: int) -> int:
    """Process id of the agent that runs the segment: the oldest process with its command line in a job of this run."""
    wanted = ["agent.pyz", "run", "--segment", str(segment)]
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            handed = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        names = [Path(argument).name for argument in arguments]
        if all(word in names for word in wanted) and str(workflow) in handed:
            found.append(int(entry.name))
    if not found:
        raise DemoFailed(f"no agent of segment {segment} is running")
    return min(found)
