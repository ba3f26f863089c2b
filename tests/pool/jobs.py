"""What the tests of the pool share: submitting a job and waiting for an event in its log."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from dagman.pool import EmbeddedPool

PATIENCE_S = 60.0


def submit(pool: EmbeddedPool, directory: Path, executable: str, arguments: str = "", **more: str) -> str:
    """Submit one job whose files lie in `directory`; its cluster number."""
    lines = {
        "universe": "vanilla",
        "executable": executable,
        "arguments": arguments,
        "initialdir": str(directory),
        "log": "events.log",
        "output": "out",
        "error": "err",
        "request_cpus": "1",
        "request_memory": "64",
        "request_disk": "1024",
        **more,
    }
    text = "".join(f"{key} = {value}\n" for key, value in lines.items() if value)
    (directory / "job.sub").write_text(text + "queue\n")
    done = pool.run(["condor_submit", "-terse", str(directory / "job.sub")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).split(".")[0]


def wait_until(what: str, reached: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Fail the test unless the condition comes true in time."""
    deadline = time.monotonic() + patience_s
    while not reached():
        assert time.monotonic() < deadline, f"{what} did not happen within {patience_s:.0f} s"
        time.sleep(0.05)


def events(directory: Path) -> list[str]:
    """Event numbers in the job's log, in order: 001 executes, 004 evicted, 005 terminated, 012 held."""
    log = directory / "events.log"
    return re.findall(r"^(\d{3}) \(", log.read_text(), re.MULTILINE) if log.exists() else []


def wait_for_event(directory: Path, number: str, count: int = 1) -> None:
    """Wait until the log has the event that often; a held job (012) ends the wait with its reason."""

    def seen() -> bool:
        found = events(directory)
        held = "012" in found and number != "012"
        assert not held, (directory / "events.log").read_text()[-800:]
        return found.count(number) >= count

    wait_until(f"event {number}, {count} times", seen)
