"""`make reacher`: from robot episodes with camera images to a policy that drives the arm through a websocket, every step a command of segue.

MuJoCo's Reacher with 64×64 frames → HDF5 → `segue convert` (the real lerobot 0.3.3) → `segue stage` through a real sshd on loopback → a chain of
segments on the embedded HTCondor, one of them evicted → consolidation → `segue pull` → `segue serve` → openpi-client drives the arm.
Progress goes to stderr; the last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agent.errors import SegueError
from dagman.pool import EmbeddedPool
from examples.reacher import demo
from examples.reacher.demo import SEGUE, Chain, DemoFailed, ended, run, say, submit, working_directory
from examples.reacher_camera import camera
from tests.jobs.convert import lerobot_env
from tests.shipping import server as transfer_host

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EPISODES, TEST_EPISODES, FIRST_TEST_SEED = 250, 100, 100_000
LEAST = 0.8
LOAD_S = 180.0


def tell(words: list[str], directory: Path, **environment: str) -> str:
    """Run a command of segue in ``directory``, its messages passing through; stdout. DemoFailed when it fails."""
    say(f"segue {' '.join(words)}")
    found = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([*SEGUE, *words], cwd=directory, env=found, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"segue {words[0]} ended with exit code {done.returncode}")
    return done.stdout


def record(directory: Path, episodes: int, eyes: dict[str, str]) -> None:
    """Expert episodes of seeds from 0 on, none of which is tested later."""
    say(f"recording {episodes} episodes with camera images")
    words = ["-m", "jobs.reference.record", "--camera", "--hdf5", "--out", str(directory / "episodes")]
    told = json.loads(run([*words, "--episodes", str(episodes), "--seed", "0"], **eyes))
    say(
        f"{told['frames']} frames of 64×64, {size_of(directory / 'episodes') / 1e6:.0f} MB of HDF5, expert {told['expert']}"
    )


def size_of(directory: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def convert(directory: Path, lerobot: Future[Path]) -> None:
    """To a LeRobot dataset v2.1, by the real lerobot in an environment of its own, ``lerobot`` its Python."""
    try:
        python = lerobot.result()
    except lerobot_env.NoEnvironment as error:
        raise DemoFailed(str(error)) from error
    words = ["convert", str(directory / "episodes"), "--repo-id", "local/reacher", "--fps", "50", "--format", "v2.1"]
    words += ["--python", str(python), "--out", str(directory / "dataset" / "reacher")]
    say(tell(words, directory).strip())


@contextlib.contextmanager
def host(directory: Path) -> Iterator[transfer_host.Server]:
    """A transfer host on loopback, and this process's ssh and rsync on their way to it."""
    (directory / "host").mkdir()
    try:
        with transfer_host.running(directory / "host") as server:
            tools = directory / "tools"
            tools.mkdir()
            (tools / "rsync").symlink_to(server.programs.rsync)
            os.environ["SEGUE_SSH"] = server.ssh()
            os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
            yield server
    except transfer_host.NoServer as error:
        raise DemoFailed(str(error)) from error


def write_run(directory: Path, user: str) -> Path:
    """The example's run.toml and site.toml, with this host's account and staging."""
    staging = directory / "staging"
    staging.mkdir()
    text = (HERE / "run.toml").read_text(encoding="utf-8")
    path = directory / "run.toml"
    path.write_text(text.replace('"USER"', f'"{user}"').replace('"STAGING"', f'"{staging}"'), encoding="utf-8")
    shutil.copy(HERE / "site.toml", directory)
    return path


def evict(pool: EmbeddedPool, chain: Chain) -> None:
    """condor_vacate_job on the second attempt's segment as soon as it has a commit of its own."""

    def later(status: dict[str, Any]) -> tuple[int, str] | None:
        for segment in status["segments"][1:]:
            for attempt in segment["attempts"]:
                if attempt["outcome"] == "running" and status["step"] > began.setdefault(
                    attempt["job"], status["step"]
                ):
                    return segment["number"], attempt["job"]
        return None

    began: dict[str, int] = {}
    number, job = chain.until("a commit of a later segment", later)
    say(f"condor_vacate_job {job}: the eviction of segment {number}")
    done = pool.run(["condor_vacate_job", job], capture_output=True, text=True)
    if done.returncode != 0:
        raise DemoFailed(f"condor_vacate_job: {done.stderr.strip()}")
    chain.until("the eviction", lambda status: status["segments"][number]["evictions"] >= 1)


def train(directory: Path, run_toml: Path) -> dict[str, Any]:
    """The chain, disturbed once; its last status."""
    say("starting HTCondor")
    with EmbeddedPool(directory / "pool") as pool:
        workflow = submit(pool, run_toml)
        say(f"submitted {workflow.name}: a chain of segments of a minute each")
        evict(pool, Chain(pool, workflow))
        return ended(pool, workflow)


@contextlib.contextmanager
def serving(words: list[str], directory: Path) -> Iterator[dict[str, Any]]:
    """A server's process for as long as the block runs; what it said in its JSON line."""
    child = subprocess.Popen(
        words, cwd=directory, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise DemoFailed(f"{' '.join(words[2:5])} ended with exit code {child.wait()} before it served")
        told: dict[str, Any] = json.loads(line)
        yield told
    finally:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(30)
        child.kill()
        child.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def drive(port: int, episodes: int, eyes: dict[str, str], *more: str) -> dict[str, Any]:
    """The robot's side: success rates of whatever answers there. ``eyes``: environment of a program that renders."""
    words = ["-m", "jobs.reference.drive", "--port", str(port), "--episodes", str(episodes)]
    found: dict[str, Any] = json.loads(run([*words, "--seed", str(FIRST_TEST_SEED), *more], **eyes))
    return found


def demonstrate(directory: Path, episodes: int, tests: int) -> dict[str, Any]:
    """Everything; the result. Whatever happens, what was started is ended."""
    # For these programs alone: other libraries lie beside Mesa's, which HTCondor of another release must not find.
    eyes = camera.environment(say)
    say("looking for lerobot 0.3.3 meanwhile (the first time it is installed, which takes minutes)")
    with ThreadPoolExecutor(1) as beside:
        lerobot = beside.submit(lerobot_env.interpreter)
        record(directory, episodes, eyes)
        convert(directory, lerobot)
    with host(directory) as server:
        run_toml = write_run(directory, server.user)
        tell(["stage", str(run_toml)], directory)
        status = train(directory, run_toml)
        pulled = directory / "laptop"
        pulled.mkdir()
        tell(["pull", str(run_toml), "--to", str(pulled)], directory)
    say("serving the policy, and driving the arm through the websocket")
    port = free_port()
    with serving([*SEGUE, "serve", str(run_toml), "--port", str(port), "--json"], pulled) as served:
        say(f"first inference {served['first_ms']} ms, then {served['latency_ms']} ms")
        rates = drive(port, tests, eyes, "--expert")
    say("the same with the network as it is before its first step")
    words = [
        sys.executable,
        "-m",
        "jobs.reference.serve",
        "--checkpoint",
        served["policy"],
        "--untrained",
        "--port",
        "0",
    ]
    with serving(words, pulled) as fresh:
        untrained = drive(int(fresh["port"]), tests, eyes)
    say(f"success rate: policy {rates['policy']}, expert {rates['expert']}, untrained {untrained['policy']}")
    return {
        "policy": rates["policy"],
        "expert": rates["expert"],
        "untrained": untrained["policy"],
        "episodes": tests,
        "segments": sum(bool(segment["attempts"]) for segment in status["segments"]),
        "evictions": status["evictions"],
        "wall_s": round(time.monotonic() - demo.STARTED, 1),
    }


def main() -> int:
    """Exit 0 when the policy is worth having: at least 0.8 where the expert has 1.0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the working directory")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="to record")
    parser.add_argument("--test-episodes", type=int, default=TEST_EPISODES, help="to drive, of other seeds")
    options = parser.parse_args()
    demo.PATIENCE_S = 900.0
    directory = working_directory("reacher-camera")
    try:
        result = demonstrate(directory, options.episodes, options.test_episodes)
    except (DemoFailed, SegueError) as error:
        print(f"reacher: {error}", file=sys.stderr)
        print(f"reacher: everything is still in {directory}", file=sys.stderr)
        return 1
    if not options.keep:
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(result))
    return 0 if result["policy"] >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
