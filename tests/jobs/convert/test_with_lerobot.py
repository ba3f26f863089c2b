"""Conversions through the real lerobot, read back with its own loader: values, format, resuming, full disk, clear ends."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.jobs.convert import sources
from tests.jobs.convert.conftest import LIMIT_S, command

pytestmark = pytest.mark.slow

Convert = Callable[..., "subprocess.CompletedProcess[str]"]
ReadBack = Callable[..., list[tuple[dict[str, Any], dict[str, NDArray[Any]]]]]

TASK = "pick up the red block"
LAB = ("--fps", 10, "--downsample", 2, "--default-task", TASK)


def resized(encoded: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """As the dataset's loader gives it: (3, H, W) of 0 to 1."""
    with Image.open(io.BytesIO(encoded.tobytes())) as image:
        found = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    return (found.astype(np.float32) / 255).transpose(2, 0, 1)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if out.name in path.name and path != out)


def test_lab_episodes_become_the_dataset_that_openpi_reads(
    convert: Convert, read_back: ReadBack, tmp_path: Path
) -> None:
    """The lab's own option names, the default place, and the values, images and action chunks as its training asks for them."""
    source = sources.lab(tmp_path / "lab")

    ended = convert(
        "--db_dir", source, "--repo_name", "local/blocks", "--fps", 10, "--downsample_factor", 2, "--image_size", 32, 40, "--default_task", TASK,
        HF_LEROBOT_HOME=str(tmp_path / "home"),
    )  # fmt: skip

    out = tmp_path / "home" / "local" / "blocks"
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{out}: LeRobot v2.1, 3 episodes, 16 frames, 0 left out\n"
    assert ended.stderr == ""
    assert leftovers(out) == []
    assert not (out / "images").exists()
    ahead = {"actions": [step / 10 for step in range(3)]}
    (facts, columns) = read_back(out, delta_timestamps=ahead)[0]
    assert (facts["version"], facts["fps"], facts["robot_type"], facts["tasks"], facts["episodes"]) == (
        "2.1",
        10,
        "xarm6",
        [TASK],
        3,
    )
    assert columns["index"].tolist() == list(range(16))
    assert columns["episode_index"].tolist() == [0] * 5 + [1] * 5 + [2] * 6
    assert np.allclose(columns["timestamp"], np.concatenate([np.arange(5), np.arange(5), np.arange(6)]) / 10)
    row = 0
    for number, frames in enumerate((9, 10, 11)):
        arrays = sources.lab_arrays(number, frames)
        state = np.column_stack([arrays["robot_current_pose"], arrays["gripper_actual_position"]])[::2]
        actions = np.column_stack([arrays["robot_desired_pose"], arrays["gripper_commanded_position"]])[::2]
        rows = slice(row, row + len(state))
        assert np.array_equal(columns["state"][rows], state)
        assert np.array_equal(columns["actions"][rows, 0], actions)
        assert np.array_equal(columns["actions"][row, 2], actions[2])
        for camera in sources.CAMERAS:
            expected = np.stack([resized(each, 32, 40) for each in arrays[f"{camera}_rgb_compressed"][::2]])
            assert np.allclose(columns[camera][rows], expected, atol=1e-6)
        row += len(state)
    assert np.allclose(facts["stats"]["state"]["mean"], columns["state"].mean(axis=0), atol=1e-5)
    assert np.allclose([facts["stats"]["index"][key][0] for key in ("min", "max", "mean")], [0, 15, 7.5])


def test_every_layout_keeps_its_values_and_videos_keep_their_pictures(
    convert: Convert, read_back: ReadBack, tmp_path: Path
) -> None:
    made = {
        "aloha": (sources.aloha(tmp_path / "a"), ("--fps", 50)),
        "jpegs": (sources.aloha(tmp_path / "j", compressed=True), ("--fps", 50)),
        "npz": (sources.npz(tmp_path / "n"), ("--fps", 10)),
        "zarr": (sources.zarr_buffer(tmp_path / "z.zarr"), ("--fps", 10)),
        "video": (sources.lab(tmp_path / "l", episodes=2), ("--fps", 10, "--downsample", 2, "--video")),
    }
    outs = {name: tmp_path / "out" / name for name in made}
    for name, (source, words) in made.items():
        ended = convert(source, "--repo-id", name, *words, "--default-task", TASK, "--out", outs[name])
        assert ended.returncode == 0, ended.stderr

    read = dict(zip(outs, read_back(*outs.values()), strict=True))

    facts, aloha = read["aloha"]
    random = np.random.default_rng(1)
    assert (facts["fps"], facts["robot_type"]) == (50, "aloha")
    assert np.array_equal(aloha["observation.state"][6:], random.normal(size=(6, 14)).astype(np.float32))
    assert np.array_equal(aloha["observation.velocity"][6:], random.normal(size=(6, 14)).astype(np.float32))
    assert np.array_equal(aloha["action"][6:], random.normal(size=(6, 14)).astype(np.float32))
    low = np.stack([sources.picture(1500 + frame) for frame in range(6)]).transpose(0, 3, 1, 2) / 255
    assert np.allclose(aloha["observation.images.cam_low"][6:], low, atol=1e-6)
    encoded = [resized(sources.jpeg(sources.picture(1500 + frame)), 48, 64) for frame in range(6)]
    assert np.allclose(read["jpegs"][1]["observation.images.cam_low"][6:], np.stack(encoded), atol=1e-6)

    facts, npz = read["npz"]
    assert facts["tasks"] == ["reach target 0", "reach target 1"]
    assert npz["task_index"].tolist() == [0] * 6 + [1] * 6
    assert np.array_equal(npz["state"][6:], np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32))

    random = np.random.default_rng(0)
    buffer = read["zarr"][1]
    assert buffer["episode_index"].tolist() == [0] * 5 + [1] * 7
    assert np.array_equal(buffer["observation.state"], random.normal(size=(12, 5)).astype(np.float32))
    assert np.array_equal(buffer["action"], random.normal(size=(12, 2)).astype(np.float32))
    assert np.array_equal(buffer["observation.n_contacts"].ravel(), random.integers(0, 3, 12))
    pictures = np.stack([sources.picture(frame) for frame in range(12)]).transpose(0, 3, 1, 2) / 255
    assert np.allclose(buffer["observation.images.img"], pictures, atol=1e-6)

    video = read["video"][1]
    shown = np.stack([resized(each, 48, 64) for each in sources.lab_arrays(1, 10)["mount_image_rgb_compressed"][::2]])
    assert np.abs(video["mount_image"][5:] - shown).mean() < 0.05
    assert len(list(outs["video"].rglob("*.mp4"))) == 4


def test_newer_lerobot_makes_a_dataset_of_v30_with_the_same_values(
    newer_python: Path, read_back: ReadBack, tmp_path: Path
) -> None:
    source = sources.lab(tmp_path / "lab")
    outs = {kind: tmp_path / kind for kind in ("images", "video")}
    for kind, out in outs.items():
        words = command(
            newer_python, source, "--repo-id", "local/x", *LAB, f"--{kind}", "--format", "v3.0", "--out", out
        )
        ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.endswith("LeRobot v3.0, 3 episodes, 16 frames, 0 left out\n")
        assert leftovers(out) == []

    read = read_back(*outs.values(), python=newer_python)

    arrays = [sources.lab_arrays(number, 9 + number) for number in range(3)]
    state = np.concatenate(
        [np.column_stack([each["robot_current_pose"], each["gripper_actual_position"]])[::2] for each in arrays]
    )
    shown = np.stack(
        [resized(picture, 48, 64) for each in arrays for picture in each["mount_image_rgb_compressed"][::2]]
    )
    for facts, columns in read:
        assert (facts["version"], facts["tasks"], facts["episodes"]) == ("3.0", [TASK], 3)
        assert columns["index"].tolist() == list(range(16))
        assert columns["episode_index"].tolist() == [0] * 5 + [1] * 5 + [2] * 6
        assert np.array_equal(columns["state"], state)
    assert np.allclose(read[0][1]["mount_image"], shown, atol=1e-6)
    assert np.abs(read[1][1]["mount_image"] - shown).mean() < 0.05


def test_killed_conversion_goes_on_and_gives_the_same_bytes(
    convert: Convert, lerobot_python: Path, tmp_path: Path
) -> None:
    source = sources.lab(tmp_path / "lab", episodes=10, frames=40)
    whole, out = tmp_path / "whole", tmp_path / "out"
    words = (source, "--repo-id", "local/x", *LAB, "--image-size", 224, 224, "--workers", 2)
    assert convert(*words, "--out", whole).returncode == 0

    started = subprocess.Popen(command(lerobot_python, *words, "--out", out), start_new_session=True)
    done = out.with_name("out.segue-partial") / "done"
    deadline = time.monotonic() + LIMIT_S
    while len(list(done.glob("*.json"))) < 3:
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    family = psutil.Process(started.pid).children(recursive=True)
    converting = [each for each in family if "jobs.convert" in each.cmdline()]
    assert converting
    converting[0].kill()
    assert started.wait(LIMIT_S) != 0
    psutil.wait_procs(family, timeout=60)
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert not out.exists()
    there = len(list(done.glob("*.json")))
    assert 3 <= there < 10

    ended = convert(*words, "--out", out, "--json")

    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["episodes"], result["resumed"]) == (10, there)
    assert digests(out) == digests(whole)
    assert leftovers(out) == []


def test_bad_episode_ends_it_before_anything_is_written_and_is_left_out_when_told_so(
    convert: Convert, read_back: ReadBack, tmp_path: Path
) -> None:
    source = sources.lab(tmp_path / "lab")
    arrays = sources.lab_arrays(1, 10)
    arrays["robot_current_pose"][3, 2] = np.nan
    sources.write_lab(source, 1, arrays)
    out = tmp_path / "out"
    words = (source, "--repo-id", "local/x", *LAB, "--out", out)

    refused = convert(*words)

    assert refused.returncode == 2
    assert refused.stderr.startswith(
        "segue: error: 1 of 3 episodes cannot be converted: ep000001 'state' holds nan at frame 3, column 2."
    )
    assert len(refused.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["lab"]

    skipped = convert(*words, "--skip-bad")

    assert skipped.returncode == 0
    assert skipped.stderr == "segue: skipped ep000001: 'state' holds nan at frame 3, column 2\n"
    assert skipped.stdout.endswith("2 episodes, 11 frames, 1 left out\n")
    columns = read_back(out)[0][1]
    assert columns["episode_index"].tolist() == [0] * 5 + [1] * 6


def test_full_disk_is_said_and_the_conversion_goes_on_when_there_is_room(lerobot_python: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounts = shutil.which("unshare")
    if mounts is None or os.geteuid() != 0 or subprocess.run([mounts, "-m", "true"], check=False).returncode != 0:
        pytest.skip("a small file system can only be mounted by root: unshare -m")
    source = sources.lab(tmp_path / "lab", episodes=3, frames=40)
    words = command(
        lerobot_python,
        source,
        "--repo-id",
        "local/x",
        *LAB,
        "--image-size",
        224,
        224,
        "--workers",
        1,
        "--out",
        small / "out",
    )
    script = (
        f'mount -t tmpfs -o size=1500k tmpfs {small}; "$@"; echo "exit $?"; ls {small}; '
        f'mount -o remount,size=64m {small}; "$@" --json; ls -A {small}'
    )

    ended = subprocess.run(
        [mounts, "-m", "sh", "-c", script, "sh", *words], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )

    assert "the disk is full or the quota used up" in ended.stderr, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    lines = ended.stdout.splitlines()
    assert lines[:2] == ["exit 1", "out.segue-partial"]
    assert json.loads(lines[2])["episodes"] == 3
    assert lines[3:] == ["out"]


def test_begun_with_other_options_or_elsewhere_wanted_is_refused(convert: Convert, tmp_path: Path) -> None:
    source = sources.npz(tmp_path / "npz")
    partial = tmp_path / "out.segue-partial"
    partial.mkdir()
    (partial / "conversion.json").write_text("{}")
    words = (source, "--repo-id", "x", "--out", tmp_path / "out")

    other = convert(*words)
    wrong = convert(*words, "--format", "v3.0")
    (tmp_path / "file").touch()
    nowhere = convert(*words[:-1], tmp_path / "file" / "out")

    assert (other.returncode, wrong.returncode) == (2, 1)
    assert "was begun with other options or another lerobot" in other.stderr
    assert "the installed lerobot 0.3.3 writes v2.1" in wrong.stderr
    assert nowhere.returncode == 1
    assert (
        nowhere.stderr
        == f"segue: error: {tmp_path}/file/out: cannot be written (File exists); name a directory of yours with --out\n"
    )
    assert not (tmp_path / "out").exists()
