"""A DAG on a pool, seen through the files that DAGMan, its jobs and the agent leave: what the kinds of chain in these tests share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

LOOK_S = 0.1


def shadow_of(pool: Path, processes: Iterable[int]) -> int:
    """The shadow among these process ids that belongs to the pool in that directory: others may run beside it, and end meanwhile."""
    for pid in processes:
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name == "condor_shadow" and str(pool).encode() in Path(f"/proc/{pid}/environ").read_bytes():
                return pid
        except OSError:
            continue
    raise AssertionError("the running job has no shadow")


class Watched(ABC):
    """``dag``: the .dag file; ``store``: the run's store in staging; ``patience_s``: how long an event may take."""

    def __init__(self, dag: Path, store: Path, patience_s: float) -> None:
        self.dag = dag
        self.store = store
        self.patience_s = patience_s

    @abstractmethod
    def logs(self) -> Sequence[Path]:
        """What to show of a test that failed."""

    def ended(self) -> str:
        """DAGMan's exit status once it is over, empty before."""
        path = self.dag.with_name(f"{self.dag.name}.dagman.out")
        text = path.read_text(errors="replace") if path.exists() else ""
        place = text.rfind("EXITING WITH STATUS")
        return text[place:].split()[3] if place >= 0 else ""

    def wait(self, what: str, reached: Callable[[], object]) -> None:
        """Wait for an event; the DAG must not end before."""
        until = time.monotonic() + self.patience_s
        while not reached():
            assert time.monotonic() < until and not self.ended(), f"{what} did not happen\n{self.said()}"
            time.sleep(LOOK_S)

    def wait_for_end(self, patience_s: float | None = None) -> str:
        """DAGMan's exit status."""
        until = time.monotonic() + (patience_s or self.patience_s)
        while not self.ended():
            assert time.monotonic() < until, f"{self.dag.name} did not end\n{self.said()}"
            time.sleep(LOOK_S)
        return self.ended()

    def said(self) -> str:
        """For a failed test: the ends of its logs."""
        there = [path for path in self.logs() if path.exists()]
        return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}" for path in there)

    def epoch(self) -> int:
        """The newest attempt's."""
        return max((int(path.stem) for path in (self.store / "epochs").glob("[0-9]*")), default=0)

    def commits(self) -> list[tuple[int, int]]:
        """(epoch, step) of each commit in staging, the newest last."""
        found = []
        for path in (self.store / "checkpoints").glob("[0-9]*.e*.tar"):
            step, _, epoch = path.name[: -len(".tar")].partition(".e")
            found.append((int(epoch), int(step)))
        return sorted(found)

    def newest(self) -> tuple[int, int]:
        """(epoch, step) of the newest commit; zeros before the first."""
        return max(self.commits(), default=(0, 0))

    def newest_path(self) -> Path:
        """Its archive."""
        epoch, step = self.newest()
        return self.store / "checkpoints" / f"{step:09d}.e{epoch:06d}.tar"

    def running(self) -> None:
        """Wait until the newest attempt has published something of its own."""
        self.wait("a commit of the newest attempt", lambda: self.epoch() > 0 and self.newest()[0] == self.epoch())
