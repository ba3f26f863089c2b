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

from agent.errors import SegueError
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
    """Process id of the agent that runs the segment: it has the agent's arguments in a job of this run, and its parent has not."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            handed = (entry / "environ").read_bytes().decode(errors="replace")
            parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if f"{segment:03d}" in arguments and "--handover" in arguments and f"{workflow.parent}/" in handed:
            found[int(entry.name)] = parent
    agents = [process for process, parent in found.items() if parent not in found]
    if len(agents) != 1:
        raise DemoFailed(f"{len(agents)} agents of segment {segment} are running")
    return agents[0]


def run(arguments: list[str], **environment: str) -> str:
    """Run a program of this project; its stdout. DemoFailed with its last words when it fails."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    if done.returncode != 0:
        raise DemoFailed(f"{' '.join(arguments[:3])} failed: {done.stderr.strip()[-800:]}")
    return done.stdout


def submit(pool: EmbeddedPool, run_toml: Path) -> Path:
    """Generate with `segue dag`, submit with HTCondor's own condor_submit_dag; the workflow directory."""
    made = pool.run([*SEGUE, "dag", str(run_toml)], capture_output=True, text=True)
    if made.returncode != 0:
        raise DemoFailed(f"segue dag: {made.stderr.strip()}")
    dag = Path(made.stdout.strip())
    done = pool.run(["condor_submit_dag", str(dag)], capture_output=True, text=True)
    if done.returncode != 0:
        raise DemoFailed(f"condor_submit_dag: {done.stderr.strip() or done.stdout.strip()}")
    return dag.parent


def disturb(pool: EmbeddedPool, chain: Chain) -> None:
    """One eviction in segment 1, one SIGKILL of the agent in segment 2, each after a commit of that segment."""
    steps = 0
    for number in (1, 2):
        at_start = chain.until(f"segment {number} runs", lambda status, n=number: _started(status, n))
        steps = at_start["step"]
        attempt = chain.until(
            f"a commit of segment {number}", lambda status, n=number, s=steps: running_attempt(status, n, s)
        )
        if number == 1:
            say(f"condor_vacate_job {attempt['job']}: the eviction")
            done = pool.run(["condor_vacate_job", attempt["job"]], capture_output=True, text=True)
            if done.returncode != 0:
                raise DemoFailed(f"condor_vacate_job: {done.stderr.strip()}")
            chain.until("the eviction", lambda status: status["segments"][1]["evictions"] >= 1)
        else:
            process = agent_process(chain.workflow, number)
            say(f"kill -9 {process}: the agent of segment 2")
            os.kill(process, signal.SIGKILL)
            chain.until("the death of the agent", lambda status: len(status["segments"][2]["attempts"]) >= 2)


def _started(status: dict[str, Any], segment: int) -> dict[str, Any] | None:
    attempts = status["segments"][segment]["attempts"]
    return status if attempts and attempts[-1]["outcome"] == "running" else None


def ended(pool: EmbeddedPool, workflow: Path) -> dict[str, Any]:
    """Wait for the workflow's end; its last status. DemoFailed unless it is complete."""
    chain = Chain(pool, workflow)
    deadline = time.monotonic() + PATIENCE_S
    while (status := chain.status())["state"] not in ("complete", "failed", "removed", "held"):
        if time.monotonic() > deadline:
            raise DemoFailed(f"{workflow.name} did not end within {PATIENCE_S:.0f} s")
        time.sleep(POLL_S)
    if status["state"] != "complete":
        raise DemoFailed(f"{workflow.name} is {status['state']}: {status['reason']}")
    return status


def resumed_from(status: dict[str, Any]) -> list[int]:
    """The step from which each later attempt resumed, in order, as the claims in staging and the handovers tell."""
    found = []
    for segment in status["segments"]:
        handover = segment["handover"]
        if handover and handover["restored"]:
            found.append(handover["restored"]["step"])
    return found


def write_run(directory: Path, name: str, queue_class: str, step_s: float) -> Path:
    """The example's run.toml with another name, class and shortest time of a step, in the working directory."""
    text = (HERE / "run.toml").read_text(encoding="utf-8")
    for line, wanted in (
        ('name = "reacher"', f'name = "{name}"'),
        ('class = "short"', f'class = "{queue_class}"'),
        ('"--step-seconds", "0.05"', f'"--step-seconds", "{step_s}"'),
    ):
        if line not in text:
            raise DemoFailed(f"run.toml has no line {line!r}")
        text = text.replace(line, wanted)
    path = directory / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def demonstrate(directory: Path) -> dict[str, Any]:
    """The whole demonstration; its result. The pool is stopped whatever happens."""
    say("recording 100 expert episodes in MuJoCo's Reacher-v5")
    (directory / "data").mkdir()
    run(
        [
            "-m",
            "jobs.reference.record",
            "--out",
            str(directory / "data" / "reacher.npz"),
            "--episodes",
            "100",
            "--seed",
            "0",
        ]
    )
    say("starting HTCondor")
    with EmbeddedPool(directory / "pool") as pool:
        workflow = submit(pool, write_run(directory, "reacher", "short", 0.05))
        say(f"submitted {workflow.name}: a chain of segments of 30 s each")
        chain = Chain(pool, workflow)
        disturb(pool, chain)
        say("left alone from now on")
        status = ended(pool, workflow)
        say("the same training again in one piece, for comparison")
        alone = submit(pool, write_run(directory, "straight", "long", 0.0))
        straight = ended(pool, alone)
    finals = [
        next((directory / "staging" / "segue" / name / "final").glob("*.tar")) for name in ("reacher", "straight")
    ]
    checkpoints = [newest(directory / "staging" / "segue" / name / "checkpoints") for name in ("reacher", "straight")]
    compared = json.loads(run(["-m", "jobs.reference.compare", *map(str, checkpoints)]))
    same_final = json.loads(run(["-m", "jobs.reference.compare", *map(str, finals)]))
    say("evaluating the policy in the simulator")
    rates = json.loads(
        run(["-m", "jobs.reference.evaluate", "--checkpoint", str(finals[0]), "--episodes", "100", "--seed", "1000"])
    )
    say(f"success rate: policy {rates['policy']}, expert {rates['expert']}, untrained {rates['untrained']}")
    ran = [segment for segment in status["segments"] if segment["attempts"]]
    return {
        "segments": len(ran),
        "skipped": sum(segment["state"] == "skipped" for segment in status["segments"]),
        "evictions": status["evictions"],
        "attempts": status["attempts"],
        "resumed_from": resumed_from(status),
        "final_step": status["step"],
        "identical": compared["identical"] and same_final["identical"] and straight["step"] == status["step"],
        "success_rate": rates["policy"],
        "expert_rate": rates["expert"],
        "untrained_rate": rates["untrained"],
        "wall_s": round(time.monotonic() - STARTED, 1),
    }


def newest(checkpoints: Path) -> Path:
    """The commit that a restore would take: names carry (step, epoch)."""
    return max(checkpoints.glob("*.e*.tar"), key=lambda path: tuple(reversed(path.stem.split(".e"))))


def main() -> int:
    """Run the demonstration; exit 0 when the disturbed training equals the other to the last bit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the working directory")
    arguments = parser.parse_args()
    directory = working_directory()
    try:
        result = demonstrate(directory)
    except (DemoFailed, SegueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        print(f"demo: everything is still in {directory}", file=sys.stderr)
        return 1
    if not arguments.keep:
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(result))
    return 0 if result["identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
