"""Hand-over between segments against two chained nodes that do nothing but start the same trainer, on one pool, in turns.

Hand-over: from the last step of one segment to the first step of the next. Both chains run the same small trainer under the same DAGMan
settings; only one of them has the agent, the store and the PRE scripts around it. Progress on stderr; the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from dagman.pool import EmbeddedPool

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 180.0
STEP_S = 0.05

TRAINER = """
import os, sys, time
from pathlib import Path

trace = Path(sys.argv[1])
root = Path(os.environ["SEGUE_CHECKPOINT_DIR"])
stop = Path(os.environ["SEGUE_STOP_FILE"])
step, last = int(os.environ["SEGUE_RESUME_STEP"]), int(os.environ["SEGUE_LAST_STEP"])
first = True
while step < last:
    time.sleep({step_s})
    step += 1
    with trace.open("a") as file:
        file.write(f"{{os.getpid()}} {{step}} {{time.time():.4f}}\\n")
    stopping = stop.exists() and step >= int(stop.read_text())
    if step == last or stopping:
        making = root / f"{{step}}.tmp"
        making.mkdir(parents=True)
        (making / "state").write_bytes(os.urandom(1_000_000))
        making.rename(root / str(step))
    if stopping:
        break
"""

SITE = """
title = "bench"
default_class = "tiny"
retries = 1
scan_interval_s = 1
python = "{this}"
[staging]
path = "{directory}/staging"
[classes.tiny]
limit_s = 8
[margin]
fraction = 0.01
least_s = 0.2
kill_grace_s = 1
[defaults]
step_s = 0.05
startup_s = 0.2
restore_s = 0.1
save_s = 0.01
publish_s = 0.1
queue_s = 1
[resources]
memory_mb = 256
disk_mb = 100
helper_memory_mb = 256
helper_disk_mb = 100
"""


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


def gaps(trace: Path) -> list[float]:
    """Seconds from the last step of one trainer process to the first of the next, in order of their begin."""
    spans: dict[str, list[float]] = {}
    for line in trace.read_text().splitlines():
        process, _, at = line.split()
        spans.setdefault(process, []).append(float(at))
    ordered = sorted(spans.values())
    return [after[0] - before[-1] for before, after in pairwise(ordered)]


def wait_for(log: Path, what: str) -> None:
    """Until the DAG has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while not (log.exists() and "005 (" in log.read_text(errors="replace")):
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not end within {PATIENCE_S:.0f} s: {log}")
        time.sleep(0.1)


def checked(pool: EmbeddedPool, words: list[str], directory: Path) -> None:
    """A program that must succeed."""
    done = pool.run(words, cwd=directory, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: {done.stdout}{done.stderr}")


def segments(pool: EmbeddedPool, directory: Path, count: int) -> list[float]:
    """Hand-overs of a chain of segue's segments."""
    (directory / "code").mkdir(parents=True)
    trace = directory / "trace"
    (directory / "code" / "train.py").write_text(TRAINER.format(step_s=STEP_S))
    (directory / "site.toml").write_text(SITE)
    (directory / "run.toml").write_text(
        f'name = "run"\nsite = "site.toml"\nsteps = 100000\ncode = "code"\n[trainer]\nrecipe = "command"\n'
        f'args = ["train.py", "{trace}"]\noptions = {{ stops_on_request = true }}\n[segments]\ncount = {count}\nreserve = 0\n'
    )
    checked(pool, [sys.executable, "-m", "cli.main", "submit", "run.toml"], directory)
    wait_for(directory / "run" / "run.dag.dagman.log", "the chain of segments")
    return gaps(trace)


def bare(pool: EmbeddedPool, directory: Path, count: int) -> list[float]:
    """The same of nodes that start the trainer and nothing else."""
    directory.mkdir()
    trace = directory / "trace"
    (directory / "train.py").write_text(TRAINER.format(step_s=STEP_S))
    environment = "SEGUE_CHECKPOINT_DIR=checkpoints SEGUE_STOP_FILE=none SEGUE_RESUME_STEP=0 SEGUE_LAST_STEP=40"
    (directory / "node.sub").write_text(
        f"executable = {sys.executable}\ntransfer_executable = false\narguments = train.py {trace}\n"
        f"transfer_input_files = train.py\nshould_transfer_files = YES\nwhen_to_transfer_output = ON_EXIT\n"
        f'transfer_output_files = ""\nenvironment = "{environment}"\nlog = events.log\nerror = node.err\n'
        "request_cpus = 1\nrequest_memory = 256MB\nrequest_disk = 100MB\nqueue\n"
    )
    lines = ["CONFIG dagman.config", *(f"JOB n{number} node.sub" for number in range(count))]
    lines += [f"PARENT n{number} CHILD n{number + 1}" for number in range(count - 1)]
    (directory / "bare.dag").write_text("\n".join(lines) + "\n")
    (directory / "dagman.config").write_text("DAGMAN_USER_LOG_SCAN_INTERVAL = 1\n")
    checked(pool, ["condor_submit_dag", "bare.dag"], directory)
    wait_for(directory / "bare.dag.dagman.log", "the bare chain")
    return gaps(trace)


def working_directory() -> Path:
    """Fresh, and outside /tmp, where DAGMan refuses to keep its logs."""
    place = ROOT / ".work" / "bench-handover"
    if place.is_relative_to("/tmp") or place.is_relative_to("/var/tmp"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        place = cache / "segue" / "work" / "bench-handover"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def main() -> int:
    """Run the pairs and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of chains, in turns")
    parser.add_argument("--segments", type=int, default=4, help="nodes of each chain")
    options = parser.parse_args()
    place = working_directory()
    ours: list[float] = []
    theirs: list[float] = []
    with EmbeddedPool(place / "pool", report=say) as pool:
        for number in range(options.rounds):
            theirs += bare(pool, place / f"bare{number}", options.segments)
            ours += segments(pool, place / f"segue{number}", options.segments)
            say(
                f"round {number + 1}: segments {statistics.median(ours):.2f} s, bare nodes {statistics.median(theirs):.2f} s"
            )
    say(f"segments: {' '.join(f'{gap:.2f}' for gap in ours)}")
    say(f"bare:     {' '.join(f'{gap:.2f}' for gap in theirs)}")
    handover, alone = statistics.median(ours), statistics.median(theirs)
    result = {"handover_s": round(handover, 3), "bare_s": round(alone, 3), "extra_s": round(handover - alone, 3)}
    result |= {"handovers": len(ours), "bare_handovers": len(theirs)}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.SubprocessError as error:
        sys.exit(f"bench_handover: {error}")
