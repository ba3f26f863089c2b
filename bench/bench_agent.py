"""What the agent costs beside the trainer: time added to its start, processor time when idle, memory.

Start-up: the trainer's first instruction after `python trainer` against the same after `agent.pyz run …`, interleaved, medians. Idle:
processor time of the agent, its keeper and its errands while a trainer sleeps. Resident: the sum of those processes' proportional sets.
The last line on stdout is JSON: {"startup_added_s", "idle_cpu_percent", "resident_mb"}.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agent.config import ClassLimit, JobConfig, Pace, dump  # noqa: E402
from agent.processes import descendants, kill_below  # noqa: E402

BEGIN = "import os, sys, time\nopen(os.environ['MARK'], 'w').write(repr(time.time()))\n"
RUNNER = BEGIN + "sys.exit(127)\n"  # which no agent tries again: a second start would be the one that is measured
SLEEPER = (
    BEGIN
    + """
for step in range(1, 10**6):
    with open(os.environ['SEGUE_PROGRESS_FILE'], 'a') as file:
        file.write('{"step": %d}\\n' % step)
    time.sleep(1)
"""
)
TICKS = os.sysconf("SC_CLK_TCK")


def bundle(target: Path) -> None:
    """agent.pyz as the jobs get it."""
    from agent.bundle import build_agent

    build_agent(target)


def job(directory: Path, code: str) -> Path:
    """A job.json whose trainer is the program ``trainer`` in ``directory``; the recipe's own arguments do not matter to it."""
    (directory / "staging").mkdir(parents=True, exist_ok=True)
    trainer = directory / "trainer"
    trainer.write_text(f"#!{sys.executable}\n{code}", encoding="utf-8")
    trainer.chmod(0o755)
    config = JobConfig(
        run="bench",
        staging=str(directory / "staging"),
        steps=10**6,
        recipe="reference",
        python=str(trainer),
        args=("--data=.",),
        classes={"short": ClassLimit(3600.0)},
        margin_s=10.0,
        pace=Pace(step_s=0.001, save_s=0.1, publish_s=0.1, restore_s=0.1, startup_s=1.0),
    )
    path = directory / "job.json"
    path.write_text(dump(config), encoding="utf-8")
    return path


def command(agent: Path, config: Path) -> list[str]:
    """The agent's command line."""
    return [sys.executable, str(agent), "run", "--config", str(config), "--segment", "0", "--class", "short"]


def first_in_line() -> None:
    """Where we may (root), ask for a real-time priority, so that what else the machine does is not measured; the start-up alone."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))


def as_usual() -> None:
    """The ordinary scheduler again."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def added_start(directory: Path, agent: Path, rounds: int) -> float:
    """Seconds from the launch to the trainer's first instruction, with the agent less without, medians of ``rounds``."""
    alone, within = [], []
    for number in range(rounds):
        place = directory / f"start-{number}"
        mark = place / "mark"
        config = job(place, RUNNER)
        environment = {**os.environ, "MARK": str(mark)}
        began = time.time()
        subprocess.run([str(place / "trainer")], cwd=place, env=environment, check=False)
        alone.append(float(mark.read_text()) - began)
        mark.unlink()
        began = time.time()
        quiet = subprocess.DEVNULL
        subprocess.run(command(agent, config), cwd=place, env=environment, check=False, stdout=quiet, stderr=quiet)
        within.append(float(mark.read_text()) - began)
    return statistics.median(within) - statistics.median(alone)


def cpu_s(pid: int) -> float:
    """Processor time of a process and of its ended, waited-for children."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(int(value) for value in fields[11:15]) / TICKS


def proportional_mb(pid: int) -> float:
    """A process's proportional set: memory shared with others counts by its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def beside_a_sleeping_trainer(directory: Path, agent: Path, seconds: float) -> tuple[float, float]:
    """(processor time in per cent of a core, memory in MB) of agent and keeper while the trainer sleeps."""
    place = directory / "idle"
    mark = place / "mark"
    config = job(place, SLEEPER)
    environment = {**os.environ, "MARK": str(mark)}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command(agent, config), cwd=place, env=environment, stdout=quiet, stderr=quiet)
    try:
        until = time.monotonic() + 30
        while not mark.exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(3.0)
        keeper = descendants(process.pid)[0]
        before, began = cpu_s(process.pid) + cpu_s(keeper), time.monotonic()
        time.sleep(seconds)
        share = 100.0 * (cpu_s(process.pid) + cpu_s(keeper) - before) / (time.monotonic() - began)
        memory = proportional_mb(process.pid) + proportional_mb(keeper)
    finally:
        process.kill()
        process.wait()
        kill_below(os.getpid())
    return share, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=65.0, help="how long to watch the idle agent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        agent = directory / "agent.pyz"
        bundle(agent)
        first_in_line()
        added = added_start(directory, agent, options.rounds)
        as_usual()
        print(f"start-up added: {added:.3f} s (at most 0.15)", file=sys.stderr)
        share, memory = beside_a_sleeping_trainer(directory, agent, options.seconds)
        print(f"idle: {share:.3f} % of a core (at most 0.2), {memory:.1f} MB (at most 30)", file=sys.stderr)
    print(
        json.dumps(
            {"startup_added_s": round(added, 4), "idle_cpu_percent": round(share, 4), "resident_mb": round(memory, 2)}
        )
    )


if __name__ == "__main__":
    main()
