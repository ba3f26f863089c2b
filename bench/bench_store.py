"""What the checkpoint store costs against plain copying, on this disk: publish, verified restore, memory, listing, and the trainer beside it.

Five rounds; in each, every operation runs once, on the same source, and a ratio is the median of the rounds' own ratios, so that a
slow minute of the disk hits both sides. Each operation is a fresh process and times itself, and each finds the same memory: a
virtual machine gives free memory back to its host, and whoever touches it next waits for it (docs/format.md, "Measured"), so all of it
is touched before each operation. The last line on stdout is JSON:
{"publish_over_cp", "restore_over_cp", "publish_over_tar", "steps_while_publishing", "publish_peak_mb", "list_1000_ms"}.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LARGE, SMALL = 24, 6
OPERATIONS = ("cp", "publish", "tar", "restore")
_WATCH_S = 8.0

LEFT_FREE = 768 << 20
TOUCH = """
import mmap, sys
free = [int(line.split()[1]) * 1024 for line in open('/proc/meminfo') if line.startswith('MemFree')][0]
size = min(free - int(sys.argv[1]), int(sys.argv[2]))
if size > 0: mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
"""

WORK = {
    "cp": "subprocess.run(['cp', '-r', source, target], check=True); subprocess.run(['sync', '-f', target], check=True)",
    "tar": (
        "subprocess.run(['tar', 'cf', target, '-C', source, '.'], check=True);"
        "fd = os.open(target, os.O_RDONLY); os.fsync(fd); os.close(fd)"
    ),
    "publish": (
        "store = Store(Path(target) / 'segue' / 'bench'); claim = store.claim(Claimant(), {});"
        "store.publish(claim, Path(source), Metadata(1, '1'))"
    ),
    "restore": "os.mkdir(target); assert Store(Path(source)).restore(Path(target)) is not None",
}
PROGRAM = """
import json, os, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from agent.store import Claimant, Metadata, Store, lower_priority
from agent.store import publish, restore, manifest
source, target = sys.argv[1:3]
if len(sys.argv) > 3: lower_priority()
began = time.monotonic()
{work}
seconds = time.monotonic() - began
peak = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0]
print(json.dumps([seconds, int(peak) / 1024]))
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_source(root: Path, total: int) -> None:
    """A checkpoint of the shape that orbax writes: 24 large files of chunks, 6 small ones; incompressible."""
    generator = random.Random(0)
    block = generator.randbytes(1 << 22)
    data = root / "1" / "params" / "ocdbt.process_0" / "d"
    data.mkdir(parents=True)
    for number in range(LARGE):
        left = total // LARGE
        with (data / f"{number:032x}").open("wb") as file:
            while left > 0:
                block = block[97:] + block[:97]
                left -= file.write(block[:left])
    for number in range(SMALL):
        (root / "1" / f"_METADATA_{number}").write_bytes(generator.randbytes(4000 + number))


def touch_free_memory(most: int) -> None:
    """Let the host give back what free memory it took, at most ``most`` bytes: none of the operations is to pay for it."""
    subprocess.run([sys.executable, "-c", TOUCH, str(LEFT_FREE), str(most)], check=True)


def once(operation: str, source: Path, target: Path, *more: str) -> tuple[float, float]:
    """(seconds, peak memory in MB) of one operation in a process of its own."""
    program = PROGRAM.format(root=str(ROOT), work=WORK[operation])
    done = subprocess.run(
        [sys.executable, "-c", program, str(source), str(target), *more], check=True, capture_output=True, text=True
    )
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def one_round(place: Path, number: int, size: int) -> tuple[dict[str, float], float]:
    """Every operation once, in an order that turns with the round; (seconds of each, peak MB of the publish)."""
    source, store, seconds, peak = place / "source", place / "store", {}, 0.0
    order = ["cp", "publish", "tar"]
    order = order[number % 3 :] + order[: number % 3]
    for operation in [*order, "restore"]:
        target = store if operation == "publish" else place / operation
        if operation == "publish":
            store.mkdir()
        os.sync()
        touch_free_memory(4 * size)
        taken_from = store / "segue" / "bench" if operation == "restore" else source
        seconds[operation], memory = once(operation, taken_from, target)
        if operation == "publish":
            peak = memory
        else:
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    shutil.rmtree(store)
    os.sync()
    return seconds, peak


def list_1000(place: Path) -> float:
    """Milliseconds to list 1,000 commits, median of 21."""
    from agent.store import Store
    from agent.store.names import commit_name

    root = place / "many"
    (root / "checkpoints").mkdir(parents=True)
    for step in range(1000):
        (root / "checkpoints" / commit_name(step, 1 + step // 100)).write_bytes(b"")
    times = []
    for _ in range(21):
        began = time.perf_counter()
        assert len(Store(root).commits()) == 1000
        times.append(1000 * (time.perf_counter() - began))
    shutil.rmtree(root)
    return statistics.median(times)


def steps_done(progress: Path) -> int:
    """The last step in the trainer's progress file."""
    with progress.open("rb") as file:
        file.seek(max(0, progress.stat().st_size - 4096))
        lines = [line for line in file.read().split(b"\n")[:-1] if line.startswith(b"{") and line.endswith(b"}")]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def pace(progress: Path, until: object) -> float:
    """Steps a second from now until a process ends, or for a number of seconds."""
    began, first = time.monotonic(), steps_done(progress)
    if isinstance(until, subprocess.Popen):
        until.wait()
    else:
        time.sleep(_WATCH_S)
    return (steps_done(progress) - first) / (time.monotonic() - began)


def beside_the_trainer(place: Path, rounds: int) -> float:
    """Steps a second of the reference trainer, on all cores but one, while publishes run, over its pace without; median of
    interleaved rounds."""
    data, progress = place / "reacher.npz", place / "progress"
    subprocess.run(
        [sys.executable, "-m", "jobs.reference.record", "--out", str(data), "--episodes", "50"],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    environment = {
        **os.environ,
        "SEGUE_CHECKPOINT_DIR": str(place / "trained"),
        "SEGUE_STEPS": "100000000",
        "SEGUE_SAVE_INTERVAL": "100000000",
        "SEGUE_PROGRESS_FILE": str(progress),
        "HOME": str(place),
    }
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(
        0, sorted(cores)[:-1] or cores
    )  # inherited: the question is what a publish costs where a core is spare
    trainer = subprocess.Popen(
        [sys.executable, "-m", "jobs.reference.train", "--data", str(data)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # as under the agent: the kernel may share the processor among sessions first
    )
    os.sched_setaffinity(0, cores)
    # Three in a row: one takes two seconds, too short to tell a pace by.
    program = PROGRAM.format(
        root=str(ROOT), work="\n".join([WORK["publish"].replace("'bench'", f"'bench{n}'") for n in range(3)])
    )
    ratios = []
    try:
        deadline = time.monotonic() + 120
        while not progress.exists() or steps_done(progress) < 200:
            if trainer.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("bench-store: the reference trainer did not start")
            time.sleep(0.2)
        for _ in range(rounds):
            before = pace(progress, None)
            store = place / "store"
            store.mkdir()
            publisher = subprocess.Popen(
                [sys.executable, "-c", program, str(place / "source"), str(store), "low"],
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            during = pace(progress, publisher)
            if publisher.returncode != 0:
                raise SystemExit("bench-store: the publish beside the trainer failed")
            shutil.rmtree(store)
            os.sync()
            after = pace(progress, None)
            ratios.append(during / ((before + after) / 2))
            say(f"  steps/s: {before:.0f} before, {during:.0f} while publishing, {after:.0f} after")
    finally:
        trainer.kill()
        trainer.wait()
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=4 << 30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=ROOT / ".work")
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="bench-store-", dir=given.directory))
    try:
        say(f"{given.bytes / 2**30:.1f} GiB in {LARGE + SMALL} files below {given.directory}, {os.cpu_count()} cores")
        make_source(place / "source", given.bytes)
        rounds, peaks = [], []
        for number in range(given.rounds):
            seconds, peak = one_round(place, number, given.bytes)
            rounds.append(seconds)
            peaks.append(peak)
            say("  " + "  ".join(f"{name} {seconds[name]:.2f} s" for name in OPERATIONS))

        def ratio(first: str, second: str) -> float:
            return round(statistics.median(one[first] / one[second] for one in rounds), 3)

        listing = list_1000(place)
        steps = beside_the_trainer(place, given.rounds)
        result = {
            "publish_over_cp": ratio("publish", "cp"),
            "restore_over_cp": ratio("restore", "cp"),
            "publish_over_tar": ratio("publish", "tar"),
            "steps_while_publishing": round(steps, 3),
            "publish_peak_mb": round(max(peaks), 1),
            "list_1000_ms": round(listing, 2),
        }
        print(f"{'operation':<10}{'median s':>10}{'GB/s':>8}")
        for name in OPERATIONS:
            median = statistics.median(one[name] for one in rounds)
            print(f"{name:<10}{median:>10.2f}{given.bytes / median / 1e9:>8.2f}")
        print(json.dumps(result))
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
