"""A chain of segments on a real pool with the plain trainer: submit description, DAG, and who is who among the processes."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from agent.config import dump
from agent.processes import descendants, parents
from dagman.pool import EmbeddedPool
from tests.agent.support import ROOT, Run

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


class Chain:
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

    def ended(self) -> str:
        """DAGMan's exit status once it is over, empty before."""
        path = self.directory / "chain.dag.dagman.out"
        text = path.read_text(errors="replace") if path.exists() else ""
        place = text.rfind("EXITING WITH STATUS")
        return text[place:].split()[3] if place >= 0 else ""

    def wait(self, what: str, reached: Callable[[], object]) -> None:
        """Wait for an event; the chain must not end before."""
        until = time.monotonic() + PATIENCE_S
        while not reached():
            assert time.monotonic() < until and not self.ended(), f"{what} did not happen\n{self.said()}"
            time.sleep(0.05)

    def wait_for_end(self) -> str:
        until = time.monotonic() + PATIENCE_S
        while not self.ended():
            assert time.monotonic() < until, f"the chain did not end\n{self.said()}"
            time.sleep(0.1)
        return self.ended()

    def said(self) -> str:
        """For a failed test: the ends of the event log and of what the jobs wrote."""
        paths = [self.directory / "events.log", *sorted(self.directory.glob("segment-*.err"))]
        return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in paths if path.exists())

    def epoch(self) -> int:
        claims = [path.stem for path in (self.run.store / "epochs").glob("[0-9]*")]
        return max((int(stem) for stem in claims), default=0)

    def newest(self) -> tuple[int, int]:
        """(epoch, step) of the newest commit."""
        found = [(0, 0)]
        for path in (self.run.store / "checkpoints").glob("[0-9]*.e*.tar"):
            step, _, epoch = path.name[: -len(".tar")].partition(".e")
            found.append((int(epoch), int(step)))
        return max(found)

    def running(self) -> None:
        """Wait until the newest attempt has published something of its own."""
        self.wait("a commit of the newest attempt", lambda: self.epoch() > 0 and self.newest()[0] == self.epoch())

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
            "shadow": self._shadow(known),
        }

    def _shadow(self, known: dict[int, int]) -> int:
        """This pool's: others may run beside it."""
        mine = str(self.pool.directory).encode()
        for pid in known:
            if _name(pid) == "condor_shadow" and mine in Path(f"/proc/{pid}/environ").read_bytes():
                return pid
        raise AssertionError("the running job has no shadow")

    def final_state(self) -> str:
        epoch, step = self.newest()
        with tarfile.open(self.run.store / "checkpoints" / f"{step:09d}.e{epoch:06d}.tar") as tar:
            file = tar.extractfile(f"{step}/state.json")
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
