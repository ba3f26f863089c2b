"""`make bench-convert`: how fast `segue convert` is beside a bare loop over the lerobot API, and what a worker holds in memory.

The same episodes of the lab's layout (two cameras, 640×480 JPEG → 224×224 PNG, every second frame) through the same lerobot in the same
Python: once as a plain loop of create, add_frame, save_episode in one process, once by `segue convert` with one worker and once with one for
each core. Whole processes are timed, imports and checks included. Ratios are those of this run; the last line is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from tests.jobs.convert import lerobot_env, sources
from tests.jobs.convert.conftest import command

EPISODES, FRAMES, SIZE = 12, 120, 224

BARE = """
import io, sys
from pathlib import Path
import datasets, h5py, numpy as np
from PIL import Image
from lerobot.datasets.lerobot_dataset import LeRobotDataset
datasets.disable_progress_bars()
source, root, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
cameras = ("mount_image", "gripper_image")
features = {name: {"dtype": "float32", "shape": (8,), "names": None} for name in ("state", "actions")}
features |= {name: {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channel"]} for name in cameras}
dataset = LeRobotDataset.create(repo_id="local/bench", fps=10, features=features, root=root, robot_type="xarm6", use_videos=False)
for path in sorted(source.glob("ep*/episode.h5")):
    with h5py.File(path) as file:
        state = np.column_stack([file["robot_current_pose"][()], file["gripper_actual_position"][()]])
        actions = np.column_stack([file["robot_desired_pose"][()], file["gripper_commanded_position"][()]])
        for index in range(0, len(state), 2):
            frame = {"state": state[index], "actions": actions[index]}
            for name in cameras:
                image = Image.open(io.BytesIO(file[name + "_rgb_compressed"][index].tobytes())).convert("RGB")
                frame[name] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
            dataset.add_frame(frame, task="pick up the red block")
        dataset.save_episode()
"""


def main() -> int:
    """Run it; returns the exit code."""
    python = lerobot_env.interpreter()
    with tempfile.TemporaryDirectory(prefix="segue-bench-") as directory:
        home = Path(directory)
        _record(home / "lab", EPISODES)
        _record(home / "few", EPISODES // 4)
        cores = len(os.sched_getaffinity(0))
        bare_s, bare_peak = _timed([str(python), "-c", BARE, str(home / "lab"), str(home / "bare"), str(SIZE)], home)
        one_s, _ = _timed(_convert(python, home / "lab", home / "one", 1), home)
        all_s, many_peak = _timed(_convert(python, home / "lab", home / "all", cores), home)
        _, few_peak = _timed(_convert(python, home / "few", home / "less", cores), home)
        sizes = [_bytes(home / name / "data") for name in ("bare", "all")]
    images = EPISODES * FRAMES
    print(f"{EPISODES} episodes of {FRAMES // 2} kept frames, two cameras: {images} images of {SIZE}×{SIZE}")
    print(f"bare loop          {bare_s:6.1f} s   peak of a process {bare_peak / 1e6:6.0f} MB")
    print(f"convert, 1 worker  {one_s:6.1f} s   speed ÷ bare loop {bare_s / one_s:.2f}")
    print(
        f"convert, {cores} workers {all_s:6.1f} s   speed ÷ bare loop {bare_s / all_s:.2f}   peak of a worker {many_peak / 1e6:6.0f} MB"
    )
    growth, bytes_ratio = many_peak / few_peak, sizes[1] / sizes[0]
    print(
        f"peak of a worker with {EPISODES} episodes ÷ with {EPISODES // 4}: {growth:.2f}; bytes of data ÷ bare loop: {bytes_ratio:.2f}"
    )
    result = {
        "speed_one_worker": round(bare_s / one_s, 3),
        "speed_all_cores": round(bare_s / all_s, 3),
        "workers": cores,
        "memory_growth": round(growth, 3),
        "worker_mb": round(many_peak / 1e6),
        "bare_mb": round(bare_peak / 1e6),
        "bytes": round(bytes_ratio, 3),
    }
    print(json.dumps(result))
    met = result["speed_one_worker"] >= 0.9 and result["speed_all_cores"] >= (1.0 if cores > 1 else 0.9)
    return 0 if met else 1


def _record(directory: Path, episodes: int) -> None:
    frames = [sources.jpeg(sources.picture(number, 480, 640)) for number in range(20)]
    for number in range(episodes):
        arrays = sources.lab_arrays(number, FRAMES)
        for camera in sources.CAMERAS:
            arrays[f"{camera}_rgb_compressed"] = [frames[(number + index) % len(frames)] for index in range(FRAMES)]
        sources.write_lab(directory, number, arrays)


def _convert(python: Path, source: Path, out: Path, workers: int) -> list[str]:
    words = ("--repo-id", "local/bench", "--fps", 10, "--downsample", 2, "--default-task", "pick up the red block")
    return command(python, source, *words, "--image-size", SIZE, SIZE, "--workers", workers, "--out", out)


def _timed(words: list[str], home: Path) -> tuple[float, int]:
    """Seconds of the whole process, and the greatest memory of its own that one process of it held, in bytes."""
    environment = {**os.environ, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    _, said = process.communicate()
    took = time.monotonic() - began
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(words[:4])} …: exit {process.returncode}: {said}")
    shutil.rmtree(home / "hf", ignore_errors=True)
    return took, peak[0]


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for each in family:
            try:
                peak[0] = max(peak[0], each.memory_info().rss)
            except psutil.Error:
                continue
        time.sleep(0.2)


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.parquet"))


if __name__ == "__main__":
    sys.exit(main())
