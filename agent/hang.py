"""A trainer that makes no step any more: noticed, its stacks written down, then ended like a crash.

Many trainers report only each hundredth step, and say nothing of steps while they save, evaluate or compile: so what counts as long is
learned from their own reports, and one that says anything at all gets more time.

The stacks come from two sides: what the kernel knows of every process below (state, where it waits), and Python's faulthandler, which
is switched on by PYTHONFAULTHANDLER=1 and writes all threads' stacks on SIGABRT.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agent.config import JobConfig, Pace
from agent.processes import family

if TYPE_CHECKING:
    from agent.attempt import Attempt
    from agent.training import Training

_DUMP_GRACE_S = 5.0
_IDLE_SHARE = 0.02
_GAPS = 3.0
"""So many times the longest time between two reports is no pause any more."""
_TALKING = 12.0
"""So much longer a trainer may make no step that still prints lines, an evaluation's for example."""
_START_S = 1800.0
"""A start that takes longer, prints nothing and makes no step hangs, whatever its processors do: a deadlock of NCCL or XLA spins."""


def memory_kills() -> int:
    """How often the kernel killed something in our control group for lack of memory; 0 where that cannot be read."""
    for path in _memory_files():
        try:
            for line in path.read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        except (OSError, ValueError):
            continue
    return 0


def _memory_files() -> list[Path]:
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            found.append(Path("/sys/fs/cgroup", group.lstrip("/"), "memory.events"))
        elif "memory" in controllers.split(","):
            found.append(Path("/sys/fs/cgroup/memory", group.lstrip("/"), "memory.oom_control"))
    return found


def cpu_seconds(pids: list[int]) -> float:
    """Processor time used so far by these processes and their ended children."""
    import os

    ticks = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
                fields = file.read().rpartition(b")")[2].split()
            ticks += sum(int(value) for value in fields[11:15])
        except (OSError, ValueError, IndexError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def kernel_stacks(pids: list[int]) -> list[str]:
    """One line a process: name, state, system call and where in the kernel it waits, as far as we may read it."""
    lines = []
    for pid in pids:
        base = Path("/proc", str(pid))
        facts = []
        for name in ("comm", "wchan", "syscall", "stack"):
            try:
                text = " ".join((base / name).read_text(encoding="utf-8", errors="replace").split())
            except OSError:
                continue
            facts.append(f"{name} {text[:300]}")
        try:
            state = (base / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        lines.append(f"process {pid}: state {state}; {'; '.join(facts)}")
    return lines


class Hang:
    """Watches one start. ``hung`` is set once the trainer was found hanging; it is then being ended."""

    def __init__(self, job: JobConfig, pace: Pace, memory_kills_before: int) -> None:
        self._job = job
        self._pace = pace
        self.memory_kills = memory_kills_before
        self.hung = False
        self._cpu_at = (0.0, 0.0)

    def limit_s(self, training: Training) -> float:
        """How long no sign of progress is normal."""
        if training.clock.first is None:
            return min(self._usual_start_s(), self._longest_start_s(training))
        usual = (training.clock.step_s() or self._pace.step_s) + self._pace.save_s
        if training.reports > 1:
            pauses = _GAPS * training.gap_s
        else:  # how far apart its reports are is not known yet
            pauses = min(self._job.hang_factor * training.gap_s, max(_START_S, _GAPS * training.gap_s))
        return max(self._job.hang_min_s, self._job.hang_factor * usual, pauses)

    def _usual_start_s(self) -> float:
        return max(self._job.hang_min_s, self._job.hang_factor * self._pace.startup_s)

    def _longest_start_s(self, training: Training) -> float:
        """For a start in which nothing is printed."""
        first = self._pace.startup_s + (training.reports_every or 0) * self._pace.step_s
        return max(self._job.hang_min_s, _START_S, _GAPS * first)

    def look(self, training: Training, attempt: Attempt) -> None:
        """End the trainer when it makes no step any more, or none at all."""
        now = attempt.loop.awake()
        silent = now - training.last_sign
        limit = self.limit_s(training)
        if self.hung or training.stopped_by_agent or silent < limit:
            return
        processes = family(training.keeper.pid)
        quiet = now - training.last_line
        if training.clock.first is None:
            idle = self._idle(now, processes, limit)
            if not (self._quiet_start(training, silent, quiet, idle) or (idle and silent >= self._usual_start_s())):
                return
        elif quiet < limit and silent < _TALKING * limit:
            return
        self.hung = True
        attempt.warn(
            f"no step for {silent:.0f} s after step {training.step} (usual: less than {limit:.0f} s): the trainer hangs, its stacks follow; "
            "if it was at work, raise agent.hang_min_s in run.toml"
        )
        attempt.log.stacks_follow()
        for line in kernel_stacks(processes):
            attempt.say(line)
            attempt.log.last.append(line)
        training.stopped_by_agent = True
        training.keeper.abort()
        training.loop_after(_DUMP_GRACE_S, training.keeper.kill)

    def _quiet_start(self, training: Training, silent: float, quiet: float, idle: bool) -> bool:
        """Whether nothing came for too long from a trainer that is idle, or is known to report its steps in lines."""
        return min(silent, quiet) >= self._longest_start_s(training) and (idle or training.reports_every is not None)

    def _idle(self, now: float, processes: list[int], limit: float) -> bool:
        """Whether the trainer used next to no processor time for ``limit`` seconds; a trainer that compiles does not hang."""
        used = cpu_seconds(processes)
        since, before = self._cpu_at
        if used - before > _IDLE_SHARE * (now - since) or before == 0.0:
            self._cpu_at = (now, used or 1e-9)
            return False
        return now - since >= limit / 2
