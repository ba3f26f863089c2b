"""A chain of segments on a real pool with the plain trainer: submit description, DAG, and who is who among the processes."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path

from agent.config import dump
from agent.processes import descendants, parents
from dagman.pool import EmbeddedPool
from tests.agent.support import ROOT, Run
from tests.watched import Watched, shadow_of

PATIENCE_S = 90.0

SUBMIT = """
universe = vanilla
executable = {python}
transfer_executable = false
arguments = "-m tests.agent.plain_recipes run --config job.json --segment $(segment) --class short --handover handover.json"
environment = "PYTHONPATH={path} PATH=/usr/bin:/bin"
initialdir = {directory}
should_transfer_files = YES
transfer_input_files = job.json, placeholder/handover.json{more_inputs}
when_to_transfer_output = ON_EXIT
transfer_output_files = handover.json{more_outputs}
transfer_output_remaps = "handover.json = segment-$(segment).json"
kill_sig = SIGTERM
job_max_vacate_time = 20
log = events.log
output = segment-$(segment).out
error = segment-$(segment).err
request_cpus = 1
request_memory = 256MB
request_disk = 200MB
{more_lines}
queue
"""


class Chain(Watched):
    """``segments`` nodes in a line; a node whose agent is killed is tried again, exit 78 is final."""

    def __init__(
        self,
        pool: EmbeddedPool,
        run: Run,
        segments: int,
        more_inputs: str = "",
        more_outputs: str = "",
        more_lines: str = "",
    ) -> None:
        self.pool = pool
        self.run = run
        self.directory = run.directory
        super().__init__(self.directory / "chain.dag", run.store, PATIENCE_S)
        self._write(segments, {"more_inputs": more_inputs, "more_outputs": more_outputs, "more_lines": more_lines})

    def _write(self, segments: int, more: dict[str, str]) -> None:
        directory = self.directory
        (directory / "job.json").write_text(dump(self.run.job), encoding="utf-8")
        (directory / "placeholder").mkdir()
        (directory / "placeholder" / "handover.json").write_text('{"format": 1, "state": "pending"}\n')
        path = f"{ROOT}"
        (directory / "segment.sub").write_text(
            SUBMIT.format(python=sys.executable, path=path, directory=directory, **more)
        )
        lines = ["CONFIG dagman.config"]
        for number in range(segments):
            lines += [
                f"JOB s{number} segment.sub",
                f'VARS s{number} segment="{number}"',
                f"RETRY s{number} 5 UNLESS-EXIT 78",
            ]
        lines += [f"PARENT s{number} CHILD s{number + 1}" for number in range(segments - 1)]
        (directory / "chain.dag").write_text("\n".join(lines) + "\n")
        (directory / "dagman.config").write_text("DAGMAN_USER_LOG_SCAN_INTERVAL = 1\n")

    def submit(self) -> None:
        done = self.pool.run(["condor_submit_dag", "chain.dag"], cwd=self.directory, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def tool(self, *command: str) -> str:
        """One of HTCondor's commands, which must succeed; its output."""
        done = self.pool.run(list(command), cwd=self.directory, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return str(done.stdout)

    def logs(self) -> list[Path]:
        return [self.directory / "events.log", *sorted(self.directory.glob("segment-*.err"))]

    def processes(self) -> list[int]:
        """All of agent and trainer that run in this pool's execute directory."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                text = (path / "cmdline").read_bytes().decode(errors="replace")
                where = os.readlink(path / "cwd")  # noqa: PTH115  (may end in " (deleted)")
            except OSError:
                continue
            if not where.startswith(str(self.pool.directory / "execute")):
                continue
            if "tests.agent.plain_recipes" in text or "plain_trainer.py" in text:
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
        mine = [pid for pid in self.processes() if pid in known]
        agent = next((pid for pid in mine if known[pid] not in mine), 0)
        below = [pid for pid in reversed(descendants(agent)) if pid in known] if agent else []
        worker = next((pid for pid in below if known.get(known.get(known[pid], 0)) == agent), 0)
        if not worker:
            return {}
        return {
            "agent": agent,
            "trainer": known[worker],
            "worker": worker,
            "starter": _named("condor_starter", known, agent),
            "shadow": shadow_of(self.pool.directory, known),
        }

    def final_state(self) -> str:
        """The trainer's state in the newest commit."""
        with tarfile.open(self.newest_path()) as tar:
            file = tar.extractfile(f"{self.newest()[1]}/state.json")
            assert file is not None
            return str(json.load(file)["state"])


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _named(name: str, known: dict[int, int], pid: int) -> int:
    while pid and not _name(pid).startswith(name):
        pid = known.get(pid, 0)
    return pid
