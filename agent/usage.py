"""What the trainer's processes use: processor time, memory and I/O from /proc, from psutil where there is none; GPUs from nvidia-smi."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.loop import Loop
from agent.processes import family

_QUERY = (
    ("utilization.gpu", "percent"),
    ("memory.used", "memory_mb"),
    ("memory.total", "memory_total_mb"),
    ("temperature.gpu", "temperature_c"),
    ("ecc.errors.uncorrected.volatile.total", "ecc_uncorrected"),
)
_GPU_LIMIT_S = 10.0
_GPU_MOST_BYTES = 1 << 16
_GPU_MOST_FAILURES = 3


@dataclass(frozen=True)
class Usage:
    """Of a process and all below it: processes, processor seconds so far, resident bytes, bytes read and written on disks so far."""

    processes: int
    cpu_s: float
    resident: int
    read: int
    written: int


def usage_below(root: int) -> Usage:
    """What the processes below ``root`` use now."""
    if not os.path.isdir("/proc/self"):  # noqa: PTH112
        return _by_psutil(root)
    pids = family(root)
    ticks = pages = read = written = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
                fields = file.read().rpartition(b")")[2].split()
            ticks += sum(int(value) for value in fields[11:15])
            pages += int(fields[21])
            with open(f"/proc/{pid}/io", "rb") as file:  # noqa: PTH123
                counts = dict(line.split(b": ") for line in file.read().splitlines())
            read += int(counts[b"read_bytes"])
            written += int(counts[b"write_bytes"])
        except (OSError, ValueError, IndexError, KeyError):
            continue
    return Usage(len(pids), ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"), read, written)


def _by_psutil(root: int) -> Usage:
    try:
        import psutil

        below = psutil.Process(root).children(recursive=True)
        cpu = sum(sum(process.cpu_times()[:2]) for process in below)
        return Usage(len(below), cpu, sum(process.memory_info().rss for process in below), 0, 0)
    except Exception:  # psutil is absent, or a process went meanwhile: no telemetry is no failure
        return Usage(0, 0.0, 0, 0, 0)


def parse_gpus(text: str) -> list[dict[str, float]]:
    """nvidia-smi's CSV lines as numbers; what a card does not know is left out."""
    gpus = []
    for line in text.splitlines():
        values = [part.strip() for part in line.split(",")]
        if len(values) != len(_QUERY):
            continue
        found = {}
        for (_, name), value in zip(_QUERY, values, strict=True):
            try:
                found[name] = float(value)
            except ValueError:
                continue
        gpus.append(found)
    return gpus


def _on_path(name: str) -> str | None:
    for directory in os.environ.get("PATH", "").split(os.pathsep):
        path = f"{directory}/{name}"
        if directory and os.access(path, os.X_OK):
            return path
    return None


class GpuQuery:
    """nvidia-smi, asked without waiting; ``ask`` does nothing where there is none or one is still answering.

    One that hangs (a driver that is broken) or does not stop talking is killed; after three in a row it is asked no more.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._program = _on_path("nvidia-smi")
        self._failures = 0
        self.busy = False

    @property
    def available(self) -> bool:
        return self._program is not None

    def ask(self, answer: Callable[[list[dict[str, float]]], None]) -> None:
        """Call ``answer`` with one dictionary a GPU, later."""
        if self._program is None or self.busy:
            return
        reader, writer = os.pipe()
        nothing = os.open(os.devnull, os.O_RDWR)
        argv = [self._program, "--format=csv,noheader,nounits", f"--query-gpu={','.join(name for name, _ in _QUERY)}"]
        actions: list[Any] = [
            (os.POSIX_SPAWN_DUP2, writer, 1),
            (os.POSIX_SPAWN_DUP2, nothing, 0),
            (os.POSIX_SPAWN_DUP2, nothing, 2),
        ]
        try:
            pid = os.posix_spawn(self._program, argv, os.environ, file_actions=actions, setpgroup=0)
        except OSError:
            os.close(reader)
            self._program = None
            return
        finally:
            os.close(writer)
            os.close(nothing)
        self.busy = True
        said: list[bytes] = []

        def over() -> None:
            if self.busy:
                self.busy = False
                timer.cancel()
                self._loop.forget(reader)
                os.close(reader)

        def readable() -> None:
            data = os.read(reader, 1 << 16)
            said.append(data)
            if sum(map(len, said)) > _GPU_MOST_BYTES:
                give_up()
            if data:
                return
            self._failures = 0
            over()
            answer(parse_gpus(b"".join(said).decode(errors="replace")))

        def give_up() -> None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, 9)
            self._failures += 1
            if self._failures == _GPU_MOST_FAILURES:
                self._program = None
            over()

        self._loop.watch(reader, readable)
        timer = self._loop.after(_GPU_LIMIT_S, give_up)
