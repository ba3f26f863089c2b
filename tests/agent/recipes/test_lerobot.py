"""LeRobot's trainer: resumed from the restored configuration, only what `last` vouches for is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.config import Wandb
from agent.errors import BadInput
from agent.recipes.base import Progress, Start
from agent.recipes.lerobot import LeRobot
from agent.wandb_run import as_told, offline_runs
from tests.agent.recipes.starts import DATASET, dataset_at, saved, start_of, steps, value

WHOLE = (
    "pretrained_model/train_config.json",
    "pretrained_model/model.safetensors",
    "training_state/training_step.json",
)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    made = tmp_path / "scratch"
    dataset_at(made / DATASET.target)
    return made


def start(scratch: Path, options: dict[str, Any] | None = None, **fields: Any) -> Start:
    given = {"inputs": (DATASET,), "args": ("--policy.type=act", "--policy.push_to_hub", "false", "--batch_size=8")}
    return start_of(scratch, "lerobot", options, **{**given, **fields})


def resumed(scratch: Path, **fields: Any) -> Start:
    return start(scratch, resume_step=20, resume_label="000020", **fields)


def test_first_start_says_all_that_the_user_asked(scratch: Path) -> None:
    words = LeRobot().command(start(scratch))
    assert value(words, "--policy.type") == "act"
    assert value(words, "--dataset.root") == str(scratch / DATASET.target)
    assert value(words, "--dataset.repo_id") == "local/lab"
    assert value(words, "--save_freq") == "10"
    assert value(words, "--output_dir") == str(scratch / "lerobot")
    assert value(words, "--resume") is None


def test_resumed_start_takes_the_restored_configuration_and_this_directory(scratch: Path) -> None:
    words = LeRobot().command(resumed(scratch))
    root = LeRobot().checkpoint_root(resumed(scratch))
    assert value(words, "--config_path") == str(root / "000020/pretrained_model/train_config.json")
    assert value(words, "--resume") == "true"
    assert value(words, "--output_dir") == str(scratch / "lerobot")
    assert value(words, "--batch_size") == "8"
    assert not [word for word in words if word.startswith("--policy.")]  # it is in the configuration


def test_wandb_client_is_told_by_arguments_what_the_agent_decided(scratch: Path) -> None:
    """What the trainer itself gives to wandb.init goes before WANDB_MODE, WANDB_ENTITY and WANDB_NAME."""
    wandb = Wandb("arms", "arm-1", entity="lab", name="shown", mode="auto")
    for decided in ("online", "offline"):
        one = as_told(start(scratch, wandb=wandb), {"WANDB_MODE": decided})
        words = LeRobot().command(one)
        told = ("--wandb.enable", "--wandb.project", "--wandb.run_id", "--wandb.entity", "--job_name", "--wandb.mode")
        assert [value(words, name) for name in told] == ["true", "arms", "arm-1", "lab", "shown", decided]
    assert value(LeRobot().command(start(scratch)), "--wandb.enable") == "false"


def test_own_arguments_for_wandb_stay_but_none_goes_online_where_that_cannot_work(scratch: Path) -> None:
    own = ("--policy.type=act", "--wandb.project=mine", "--wandb.enable=true", "--wandb.mode=online")
    words = LeRobot().command(start(scratch, args=own, wandb=Wandb("arms", "arm-1", mode="offline")))
    assert value(words, "--wandb.project") == "mine"
    assert [word for word in words if word.startswith(("--wandb.enable", "--wandb.mode"))] == [
        "--wandb.enable=true",
        "--wandb.mode=online",
        "--wandb.mode=offline",
    ]


def test_offline_files_of_an_earlier_start_are_kept(scratch: Path) -> None:
    for resume in (start(scratch), resumed(scratch)):
        run = LeRobot().output(resume) / "wandb" / f"offline-run-20260101_00000{resume.resume_step}-arm-1"
        run.mkdir(parents=True)
        (run / "run-arm-1.wandb").write_bytes(b"data")
        LeRobot().checkpoint_root(resume).mkdir(exist_ok=True)
        LeRobot().prepare(resume)
    assert [path.name[-7:] for path in offline_runs(scratch)] == ["0-arm-1", "0-arm-1"]
    assert not list((scratch / "lerobot").glob("wandb/offline-run-*"))


def test_steps_end_a_segment_only_where_no_schedule_is_stretched_over_them(scratch: Path) -> None:
    assert value(LeRobot().command(start(scratch)), "--steps") == "40"
    assert value(LeRobot().command(start(scratch, args=("--policy.type=diffusion",))), "--steps") == "100"
    told = start(scratch, {"fixed_schedule": True}, args=("--policy.type=diffusion",))
    assert value(LeRobot().command(told), "--steps") == "40"


def test_an_old_checkpoint_that_cannot_be_removed_ends_nothing(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = LeRobot().checkpoint_root(start(scratch))
    for name in ("000010", "000020", "000030"):
        saved(root, name, WHOLE)
    (root / "last").symlink_to("000030")

    def busy(path: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("agent.recipes.directories.shutil.rmtree", busy)
    assert steps(LeRobot().finished(start(scratch))) == [(20, "000020"), (30, "000030")]


def test_only_what_last_vouches_for_is_finished(scratch: Path) -> None:
    root = LeRobot().checkpoint_root(start(scratch))
    saved(root, "000010", WHOLE)
    assert LeRobot().finished(start(scratch)) == []  # `last` is made after the files
    (root / "last").symlink_to("000010")
    saved(root, "000020", ("pretrained_model/train_config.json",))
    assert steps(LeRobot().finished(start(scratch))) == [(10, "000010")]


def test_without_last_all_but_the_newest_is_finished(scratch: Path) -> None:
    """A kill between two system calls of a save leaves it so; the newest may be half-written."""
    root = LeRobot().checkpoint_root(start(scratch))
    for name in ("000010", "000020", "000030"):
        saved(root, name, WHOLE)
    assert steps(LeRobot().finished(start(scratch))) == [(10, "000010"), (20, "000020")]


def test_link_of_a_newer_version_is_absolute_or_relative(scratch: Path) -> None:
    root = LeRobot().checkpoint_root(start(scratch))
    saved(root, "0000020", WHOLE)
    (root / "last").symlink_to(root / "0000020")
    assert steps(LeRobot().finished(start(scratch))) == [(20, "0000020")]


def test_resumed_start_gets_its_link_and_loses_what_was_half_written(scratch: Path) -> None:
    job = resumed(scratch)
    root = LeRobot().checkpoint_root(job)
    saved(root, "000020", WHOLE)
    saved(root, "000030", ("pretrained_model/train_config.json",))
    LeRobot().prepare(job)
    assert sorted(path.name for path in root.iterdir()) == ["000020", "last"]
    assert str((root / "last").readlink()) == "000020"


def test_first_start_leaves_no_directory_that_the_trainer_would_refuse(scratch: Path) -> None:
    """The agent makes the checkpoint directory after the recipe's cleaning; the command line removes the empty one."""
    import subprocess

    job = start(scratch, {"program": "/bin/echo"})
    saved(LeRobot().checkpoint_root(job), "000010", WHOLE)
    LeRobot().prepare(job)
    LeRobot().checkpoint_root(job).mkdir(parents=True)
    subprocess.run(LeRobot().command(job), check=True, stdout=subprocess.DEVNULL)
    assert not LeRobot().output(job).exists()


def test_progress_counts_lines_because_the_printed_step_is_rounded(scratch: Path) -> None:
    job = start(scratch, {"log_freq": 5})
    made = LeRobot()
    made.prepare(job)
    line = "INFO 2026-01-01 00:00:00 ts/train.py:232 step:1K smpl:8 ep:0 epch:0.01 loss:6.100 grdn:98.2 lr:1.0e-05 updt_s:1.2"
    assert [made.progress(line) for _ in range(2)] == [Progress(5, 6.1), Progress(10, 6.1)]
    assert made.progress("INFO Checkpoint policy after step 20") == Progress(20)
    assert made.progress("INFO Creating dataset") is None


def test_wrong_top_directory_of_the_dataset_is_named(scratch: Path) -> None:
    top = scratch / DATASET.target
    (top / "meta/info.json").unlink()
    dataset_at(top / "lab")
    with pytest.raises(BadInput, match=r"top directory is wrong: meta/info\.json lies in lab/"):
        LeRobot().prepare(start(scratch))


def test_option_of_another_recipe_is_refused(scratch: Path) -> None:
    with pytest.raises(BadInput, match=r"trainer\.options\.config is unknown to recipe 'lerobot'"):
        LeRobot().configure(start(scratch, {"config": "pi0"}).job)


def test_agent_knows_whether_steps_end_a_segment(scratch: Path) -> None:
    act, diffusion = LeRobot(), LeRobot()
    act.configure(start(scratch).job)
    diffusion.configure(start(scratch, args=("--policy.type=diffusion",)).job)
    assert (act.sets_last_step, diffusion.sets_last_step) == (True, False)


def test_lines_are_at_least_one_step_apart(scratch: Path) -> None:
    with pytest.raises(BadInput, match=r"trainer.options.log_freq is -3; it must be at least 1"):
        LeRobot().configure(start(scratch, {"log_freq": -3}).job)
