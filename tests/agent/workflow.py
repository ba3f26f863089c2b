"""A generated workflow on a real pool: run.toml → `segue dag` → condor_submit_dag, and who is who among the running attempt's processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent.processes import descendants, parents
from dagman.pool import EmbeddedPool
from tests.watched import Watched, shadow_of

PATIENCE_S = 240.0
SEGUE = (sys.executable, "-m", "cli.main")
ROOT = Path(__file__).parents[2]


def record(directory: Path, episodes: int = 20) -> Path:
    """Expert episodes for the reference trainer in `directory`/data."""
    target = directory / "data"
    target.mkdir()
    run_module("jobs.reference.record", "--out", target / "reacher.npz", "--episodes", episodes, "--seed", 0)
    return target


def run_module(module: str, *arguments: object, **environment: str) -> str:
    """A program of this project, which must succeed; its stdout."""
    words = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})
    assert done.returncode == 0, f"{module}: {done.stderr[-2000:]}"
    return done.stdout


def train_alone(directory: Path, steps: int, *arguments: object) -> Path:
    """The uninterrupted run, without pool and agent; its last checkpoint."""
    told = {"SEGUE_CHECKPOINT_DIR": str(directory / "alone"), "SEGUE_STEPS": str(steps), "HOME": str(directory)}
    data = directory / "data"
    run_module("jobs.reference.train", "--data", data, "--save-interval", steps, *arguments, **told)
    return directory / "alone" / str(steps)


def same(first: Path, second: Path) -> dict[str, Any]:
    """What jobs.reference.compare says of two checkpoints, which must be the same to the last bit."""
    found: dict[str, Any] = json.loads(run_module("jobs.reference.compare", first, second))
    assert found["identical"], found
    return found


class Workflow(Watched):
    """One run in `directory`, named `run`; ``toml`` is its run.toml without name and site."""

    def __init__(self, pool: EmbeddedPool, directory: Path, toml: str, name: str = "run", site: str = "local") -> None:
        self.pool = pool
        self.toml = directory / f"{name}.toml"
        self.toml.write_text(f'name = "{name}"\nsite = "{site}"\n{toml}', encoding="utf-8")
        self.directory = directory / name
        self.name = name
        super().__init__(self.directory / f"{name}.dag", directory / "staging" / "segue" / name, PATIENCE_S)

    def submit(self) -> None:
        """`segue dag`, then HTCondor's own condor_submit_dag."""
        self.tool(*SEGUE, "dag", str(self.toml))
        self.tool("condor_submit_dag", str(self.dag))

    def tool(self, *command: str, **environment: str) -> str:
        """A command against the pool, which must succeed; its stdout."""
        own = {"env": {**os.environ, **environment}} if environment else {}
        done = self.pool.run(list(command), cwd=ROOT, capture_output=True, text=True, **own)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return str(done.stdout)

    def status(self) -> dict[str, Any]:
        """`segue status --json`."""
        found: dict[str, Any] = json.loads(self.tool(*SEGUE, "status", str(self.directory), "--json"))
        return found

    def handovers(self) -> list[dict[str, Any]]:
        """Of all segments that ended, in order."""
        paths = sorted((self.directory / "handovers").glob("segment-*.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def logs(self) -> list[Path]:
        return [self.directory / "events.log", *sorted((self.directory / "logs").glob("*.err"))]

    def job_id(self) -> str:
        """Of the job that is in the queue now."""
        return self.tool("condor_q", "-constraint", "JobUniverse == 5", "-af:j", "JobStatus").split()[0]

    def processes(self) -> list[int]:
        """All that runs in the pool's execute directory, HTCondor's own programs left out."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                where = os.readlink(path / "cwd")  # noqa: PTH115  (may end in " (deleted)")
            except OSError:
                continue
            if where.startswith(str(self.pool.directory / "execute")) and not _name(path).startswith("condor_s"):
                found.append(int(path.name))
        return found

    def cast(self) -> dict[str, int]:
        """Process ids of starter, agent, trainer, worker and shadow of the running attempt."""
        found: dict[str, int] = {}
        self.wait("agent, trainer and worker", lambda: found.update(self._seen()) or found)
        return found

    def _seen(self) -> dict[str, int]:
        """The same, empty while they are not all there."""
        known = parents()
        mine = [pid for pid in self.processes() if pid in known and known[pid] not in self.processes()]
        for agent in mine:
            below = [pid for pid in descendants(agent) if pid in known]
            for worker in below:
                # The agent's child is the keeper, the keeper's the trainer.
                trainer = known[worker]
                if known.get(known.get(trainer, 0)) == agent and trainer in below:
                    return {
                        "agent": agent,
                        "trainer": trainer,
                        "worker": worker,
                        "starter": _above(agent, known, "condor_starter"),
                        "shadow": shadow_of(self.pool.directory, known),
                    }
        return {}


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return ""


def _above(pid: int, known: dict[int, int], name: str) -> int:
    while pid and not _name(Path(f"/proc/{pid}")).startswith(name):
        pid = known.get(pid, 0)
    return pid


def temporary_files(root: Path) -> list[str]:
    """Names below `root` that are not final ones."""
    return [str(path) for path in root.rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")]
