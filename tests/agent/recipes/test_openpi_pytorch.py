"""OpenPI's PyTorch trainer: --resume only where a step exists, the last step saved, torchrun for several GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import RetentionRule
from agent.recipes.base import Progress, Start
from agent.recipes.openpi_pytorch import OpenPIPyTorch
from tests.agent.recipes.starts import CODE, checkout, saved, start_of, steps, value, with_job

WHOLE = ("model.safetensors", "optimizer.pt", "metadata.pt", "assets/")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    made = tmp_path / "scratch"
    checkout(made / "code")
    return made


def start(scratch: Path, **fields: Any) -> Start:
    return start_of(scratch, "openpi-pytorch", {"config": "debug"}, **{"code": CODE, **fields})


def test_resume_is_passed_only_where_a_step_exists(scratch: Path) -> None:
    assert "--resume" not in OpenPIPyTorch().command(start(scratch))
    assert "--resume" in OpenPIPyTorch().command(start(scratch, resume_step=20, resume_label="20"))


def test_one_more_step_is_asked_for_so_that_the_last_one_is_saved(scratch: Path) -> None:
    words = OpenPIPyTorch().command(start(scratch, last_step=40, save_interval=30))
    assert value(words, "--num-train-steps") == "41"  # saves step 40 as "the one before the last"
    assert value(words, "--save-interval") == "30"


@pytest.mark.parametrize(("last", "asked", "told"), [(39, 10, "9"), (39, 40, "39"), (40, 10, "10"), (1, 2, "1")])
def test_save_interval_never_saves_the_step_beyond_the_last(scratch: Path, last: int, asked: int, told: str) -> None:
    words = OpenPIPyTorch().command(start(scratch, last_step=last, save_interval=asked))
    assert value(words, "--save-interval") == told


def test_several_gpus_are_started_by_torchrun(scratch: Path) -> None:
    one, four = (OpenPIPyTorch().command(start(scratch, gpus=gpus)) for gpus in (1, 4))
    assert "torch.distributed.run" not in one
    assert four[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node=4"]
    assert four[6].endswith("scripts/train_pytorch.py")


def test_label_is_updates_done_and_the_rename_is_the_commit(scratch: Path) -> None:
    root = OpenPIPyTorch().checkpoint_root(start(scratch))
    saved(root, "10", WHOLE)
    saved(root, "20", WHOLE)
    saved(root, "tmp_30", WHOLE)
    saved(root, "5", ("model.safetensors",))
    assert steps(OpenPIPyTorch().finished(start(scratch))) == [(10, "10"), (20, "20")]


def test_old_checkpoints_are_removed_because_the_trainer_never_does(scratch: Path) -> None:
    root = OpenPIPyTorch().checkpoint_root(start(scratch))
    for label in ("10", "20", "30", "40"):
        saved(root, label, WHOLE)
    kept = with_job(start(scratch), retention=RetentionRule(2, every=15))
    assert steps(OpenPIPyTorch().finished(kept)) == [(20, "20"), (30, "30"), (40, "40")]
    assert sorted(path.name for path in root.iterdir()) == ["20", "30", "40"]
    secured = replace(kept, secured_step=20)  # its links are enough, and each takes 50 GB of scratch otherwise
    assert steps(OpenPIPyTorch().finished(secured)) == [(30, "30"), (40, "40")]
    saved(root, "35", WHOLE)
    assert steps(OpenPIPyTorch().finished(secured)) == [(30, "30"), (35, "35"), (40, "40")]


def test_half_written_saves_are_removed_before_a_start(scratch: Path) -> None:
    job = start(scratch, resume_step=10, resume_label="10")
    root = OpenPIPyTorch().checkpoint_root(job)
    for label in ("10", "20", "tmp_30"):
        saved(root, label, WHOLE)
    OpenPIPyTorch().prepare(job)
    assert sorted(path.name for path in root.iterdir()) == ["10"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("step=12 loss=0.5000 lr=1.0e-06 grad_norm=0.10 time=1.2s", Progress(13, 0.5)),
        ("Saved checkpoint at step 12 -> /x", None),
    ],
)
def test_progress_lines(line: str, said: Progress | None) -> None:
    assert OpenPIPyTorch().progress(line) == said
