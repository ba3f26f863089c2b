"""The reference trainer: cut anywhere, killed at any time, it ends with the same bits; and it does what the agent tells it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from agent.errors import BadInput
from jobs.reference.episodes import find
from tests.jobs.conftest import Programs, identical, steps


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = sorted(path.glob(pattern)) if path.is_dir() else []
        if found:
            return found[0]
        assert process.poll() is None, "the trainer ended too soon"
        time.sleep(0.005)
    raise AssertionError(f"no {pattern} in {path}")


def start(programs: Programs, root: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    told = {"SEGUE_CHECKPOINT_DIR": str(root), "SEGUE_STEPS": "60", **more}
    command = programs.command("train", "--data", programs.data, "--hidden", "32", *arguments)
    return subprocess.Popen(
        command, env=programs.environment(told), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_three_segments_end_with_the_bits_of_an_uninterrupted_run(
    programs: Programs, straight: Path, tmp_path: Path
) -> None:
    programs.train(tmp_path, SEGUE_LAST_STEP="13")
    programs.train(tmp_path, SEGUE_LAST_STEP="41", SEGUE_RESUME_STEP="13")
    programs.train(tmp_path, SEGUE_LAST_STEP="60", SEGUE_RESUME_STEP="41")
    assert identical(tmp_path / "60", straight / "60")


def test_a_cold_compile_cache_gives_the_same_bits(programs: Programs, straight: Path, tmp_path: Path) -> None:
    cold = tmp_path / "home"
    cold.mkdir()
    programs.train(tmp_path / "c", HOME=str(cold))
    assert identical(tmp_path / "c" / "60", straight / "60")
    assert any((cold / ".cache" / "jax").iterdir())


def test_a_carried_compile_cache_is_hit_in_another_scratch_directory(programs: Programs, tmp_path: Path) -> None:
    first, second = tmp_path / "scratch-1", tmp_path / "scratch-2"
    first.mkdir()
    programs.train(first / "c", HOME=str(first), SEGUE_LAST_STEP="2")
    shutil.copytree(first / ".cache", second / ".cache")
    programs.train(second / "c", HOME=str(second), SEGUE_LAST_STEP="2")
    compiled = [sorted(path.name for path in home.rglob("*-cache")) for home in (first, second)]
    assert compiled[0] == compiled[1] != []


def test_a_kill_during_an_async_save_loses_only_the_unfinished_checkpoint(
    programs: Programs, straight: Path, tmp_path: Path
) -> None:
    process = start(programs, tmp_path, "--pad-mb", "200", SEGUE_SAVE_INTERVAL="20", SEGUE_RESUME_STEP="0")
    wait_for(tmp_path, "40.orbax-checkpoint-tmp*", process)
    process.kill()
    process.communicate()
    assert steps(tmp_path) == [20]
    size = sum(path.stat().st_size for path in (tmp_path / "20").rglob("*") if path.is_file())
    assert 200e6 <= size < 205e6
    programs.train(tmp_path, SEGUE_RESUME_STEP="20")
    assert identical(tmp_path / "60", straight / "60")
    assert steps(tmp_path)[-1] == 60
    assert not list(tmp_path.glob("*tmp*"))


def test_the_stop_file_ends_training_after_a_save_at_its_step(programs: Programs, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    stop.write_text("17\n")
    done = programs.train(tmp_path / "c", SEGUE_STOP_FILE=str(stop), SEGUE_SAVE_INTERVAL="50")
    assert steps(tmp_path / "c") == [17]
    assert done.stdout.splitlines()[-1].startswith("step 17 loss ")


def test_the_agent_rules_the_save_interval_and_hears_of_each_step(programs: Programs, tmp_path: Path) -> None:
    progress = tmp_path / "progress.jsonl"
    more = {"SEGUE_PROGRESS_FILE": str(progress), "SEGUE_SAVE_INTERVAL": "25"}
    done = programs.train(tmp_path / "c", "--save-interval", "7", "--keep", "9", **more)
    assert steps(tmp_path / "c") == [25, 50, 60]
    told = [json.loads(line) for line in progress.read_text().splitlines()]
    assert [entry["step"] for entry in told] == list(range(1, 61))
    assert told[-1]["loss"] < told[0]["loss"]
    assert len(done.stdout.splitlines()) < 30


def test_a_finished_run_does_nothing_again(programs: Programs, straight: Path) -> None:
    done = programs.train(straight, SEGUE_RESUME_STEP="60")
    assert "nothing left to do" in done.stdout


def test_checkpoints_beyond_the_resumed_step_are_made_anew(programs: Programs, straight: Path, tmp_path: Path) -> None:
    root = tmp_path / "c"
    shutil.copytree(straight, root)
    shutil.copytree(straight / "20", root / "60", dirs_exist_ok=True)
    programs.train(root, SEGUE_RESUME_STEP="40", SEGUE_SAVE_INTERVAL="50", SEGUE_LAST_STEP="45")
    assert steps(root) == [40, 45]


@pytest.mark.parametrize(
    ("option", "code", "said"),
    [("--crash-at", 1, "told to crash in step 37"), ("--nan-at", 1, "loss is nan in step 37")],
)
def test_misbehaviour_comes_at_the_step_asked_for(
    programs: Programs, tmp_path: Path, option: str, code: int, said: str
) -> None:
    progress = tmp_path / "progress.jsonl"
    done = programs.train(tmp_path / "c", option, "37", expect=code, SEGUE_PROGRESS_FILE=str(progress))
    assert said in done.stderr
    assert json.loads(progress.read_text().splitlines()[-1])["step"] == 36


def test_a_hanging_trainer_is_silent_and_its_workers_die_with_it(programs: Programs, tmp_path: Path) -> None:
    process = start(programs, tmp_path, "--hang-at", "3", "--workers", "2")
    assert process.stderr is not None
    assert "told to hang in step 3" in process.stderr.readline()
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(alive(int(pid)) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(int(pid)) for pid in workers)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_dead_worker_is_noticed(programs: Programs, tmp_path: Path) -> None:
    process = start(programs, tmp_path, "--workers", "1", "--step-seconds", "0.1")
    assert process.stdout is not None
    process.stdout.readline()
    worker = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(worker, signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"data worker {worker} died" in told


@pytest.mark.parametrize(
    ("arguments", "told", "sentence"),
    [
        (["--hidden", "48"], {"SEGUE_RESUME_STEP": "20"}, "the checkpoint has hidden = 32, data and options give 48"),
        ([], {"SEGUE_RESUME_STEP": "33"}, "no checkpoint of step 33 to resume from (there: 20, 40, 60)"),
        ([], {"SEGUE_LAST_STEP": "soon"}, "SEGUE_LAST_STEP='soon': a whole number of steps is needed"),
        (["--data", "/nowhere"], {}, "/nowhere: no such file or directory"),
        (["--seed", "-1"], {}, "take no negative numbers"),
    ],
)
def test_bad_input_gets_one_sentence(
    programs: Programs, straight: Path, tmp_path: Path, arguments: list[str], told: dict[str, str], sentence: str
) -> None:
    root = tmp_path / "c"
    if "SEGUE_RESUME_STEP" in told:
        shutil.copytree(straight, root)
    done = programs.train(root, *arguments, expect=2, **told)
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not root.exists() or steps(root) == [20, 40, 60]


def test_damaged_episodes_get_one_sentence(programs: Programs, tmp_path: Path) -> None:
    broken = tmp_path / "half.npz"
    broken.write_bytes(programs.data.read_bytes()[:5000])
    with pytest.raises(BadInput, match=r"half\.npz: cannot be read as recorded episodes"):
        find(broken)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"holds neither \.npz files nor a LeRobot dataset"):
        find(tmp_path / "empty")
    np.savez(tmp_path / "nan.npz", state=np.full((3, 2), np.nan), actions=np.zeros((3, 2)), episode=np.zeros(3))
    with pytest.raises(BadInput, match="'state' holds a value that is not finite"):
        find(tmp_path / "nan.npz")
    np.savez(tmp_path / "ragged.npz", state=np.zeros((3, 2)), actions=np.zeros((4, 2)), episode=np.zeros(3))
    with pytest.raises(BadInput, match="'actions' has shape \\(4, 2\\) where 'state' has 3 frames"):
        find(tmp_path / "ragged.npz")
