"""From commits to one archive: complete runs only, verified, inference parameters alone, repeatable."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.bundle import build_jobs
from agent.config import JobConfig, dump
from agent.errors import BadInput, SegueError
from agent.store import Claimant, Metadata, PosixFileSystem, Store, snapshot
from jobs import consolidate
from jobs.consolidate_kinds import _SLICE, all_finite, halve, kind_of
from jobs.main import main as jobs_main
from jobs.reference.compare import contents, differences
from tests.jobs.conftest import Programs


def job_for(staging: Path, **more: Any) -> JobConfig:
    return JobConfig(**{"run": "reacher", "staging": str(staging), "steps": 60, "recipe": "reference", **more})


def publish(job: JobConfig, root: Path, *steps: int, parts: tuple[str, ...] = ()) -> Store:
    """Commits of these labels below ``root``, by one attempt."""
    store = Store(job.store_root, fs=PosixFileSystem())
    claim = store.claim(Claimant(), job.fingerprint)
    for step in steps:
        taken = root.parent / f"snapshot-{step}"
        snapshot(root, [str(step), *parts], taken)
        store.publish(claim, taken, Metadata(step=step, label=str(step), recipe=job.recipe))
        shutil.rmtree(taken)
    return store


def members(archive: Path) -> list[str]:
    with tarfile.open(archive) as opened:
        return opened.getnames()


def write_job(job: JobConfig, directory: Path) -> Path:
    path = directory / "job.json"
    path.write_text(dump(job), encoding="utf-8")
    return path


@pytest.fixture
def staged(straight: Path, tmp_path: Path) -> JobConfig:
    """A complete run of the reference trainer in staging, three commits."""
    (tmp_path / "staging").mkdir()
    job = job_for(tmp_path / "staging")
    shutil.copytree(straight, tmp_path / "checkpoints")
    publish(job, tmp_path / "checkpoints", 20, 40, 60)
    return job


def test_a_complete_run_becomes_one_archive_without_optimizer_state(
    staged: JobConfig, straight: Path, tmp_path: Path
) -> None:
    done = consolidate.consolidate(staged, tmp_path)
    final = staged.store_root / "final" / "reacher-000000060.tar"
    assert done["final"] == str(final)
    assert [path.name for path in final.parent.iterdir()] == [final.name]
    names = members(final)
    assert names[-1] == "segue-manifest.json"
    assert {name.split("/")[1] for name in names if "/" in name} == {"params", "config"}
    whole = {name: value for name, value in contents(straight / "60").items() if not name.startswith("train_state")}
    assert not differences(contents(final), whole)
    assert done["pruned"] == ["000000020.e000001.tar"]
    assert not list(tmp_path.glob("consolidate-*"))


def test_consolidating_again_changes_nothing_and_a_damaged_archive_is_written_again(
    staged: JobConfig, tmp_path: Path
) -> None:
    first = consolidate.consolidate(staged, tmp_path)
    final = Path(str(first["final"]))
    before = final.read_bytes()
    assert consolidate.consolidate(staged, tmp_path)["was_there"] is True
    final.write_bytes(before[:3000] + b"x" + before[3001:])
    assert consolidate.consolidate(staged, tmp_path)["was_there"] is False
    assert final.read_bytes() == before


def test_an_incomplete_run_ends_with_78_and_a_sentence(
    staged: JobConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = write_job(job_for(Path(staged.staging), steps=100), tmp_path)
    assert jobs_main(["consolidate", "--config", str(longer)]) == 78
    assert "run reacher is at step 60 of 100" in capsys.readouterr().err
    nothing = write_job(job_for(Path(staged.staging), run="other"), tmp_path)
    assert jobs_main(["consolidate", "--config", str(nothing)]) == 78
    assert "run other has no commit" in capsys.readouterr().err


def test_a_machine_without_staging_leaves_the_node_to_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(job_for(tmp_path / "staging"), tmp_path)
    assert jobs_main(["consolidate", "--config", str(job)]) == 75
    assert "check the path and that the file system is mounted here" in capsys.readouterr().err


def damage(commit: Path) -> None:
    data = bytearray(commit.read_bytes())
    data[len(data) // 2] ^= 1
    commit.write_bytes(data)


def test_a_damaged_last_commit_is_set_aside_and_leaves_no_archive(
    staged: JobConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = staged.store_root / "checkpoints"
    damage(checkpoints / "000000060.e000001.tar")
    with pytest.raises(consolidate.NotComplete, match="at step 40 of 60"):
        consolidate.consolidate(staged, tmp_path)
    assert "000000060.e000001.tar" in capsys.readouterr().err
    assert not (checkpoints / "000000060.e000001.tar").exists()
    assert len(Store(staged.store_root, fs=PosixFileSystem()).set_aside()) == 1
    assert not list((staged.store_root / "final").glob("*.tar"))


def test_a_machine_on_which_no_commit_reads_well_sets_none_aside(staged: JobConfig, tmp_path: Path) -> None:
    before = sorted((staged.store_root / "checkpoints").iterdir())
    for path in before:
        damage(path)
    with pytest.raises(SegueError, match="no other commit reads well on this machine"):
        consolidate.consolidate(staged, tmp_path)
    assert sorted((staged.store_root / "checkpoints").iterdir()) == before


def test_an_older_commit_with_all_steps_is_taken_where_the_newest_is_damaged(staged: JobConfig, tmp_path: Path) -> None:
    damage(staged.store_root / "checkpoints" / "000000060.e000001.tar")
    done = consolidate.consolidate(job_for(Path(staged.staging), steps=40), tmp_path)
    assert done["step"] == 40


def test_the_zipapp_consolidates_alone(staged: JobConfig, programs: Programs, tmp_path: Path) -> None:
    build_jobs(tmp_path / "jobs.pyz")
    environment = {**programs.environment({}), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "jobs.pyz", "consolidate", "--config", str(write_job(staged, tmp_path))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 60


def openpi(root: Path, step: int, value: float = 1.5) -> None:
    import orbax.checkpoint as ocp

    (root / str(step) / "assets").mkdir(parents=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = {"params": {"layer": {"kernel": {"value": np.full((4, 3), value, np.float32)}}}}
        checkpointer.save((root / str(step) / "params").resolve(), tree)
    (root / str(step) / "train_state").mkdir()
    (root / str(step) / "train_state" / "big").write_bytes(b"x" * 1000)
    (root / "wandb_id.txt").write_text("abc")


@pytest.mark.parametrize("half", [False, True])
def test_openpi_keeps_parameters_and_assets(tmp_path: Path, half: bool) -> None:
    import orbax.checkpoint as ocp

    (tmp_path / "staging").mkdir()
    job = job_for(tmp_path / "staging", recipe="openpi", options={"bfloat16": half})
    openpi(tmp_path / "checkpoints", 60)
    publish(job, tmp_path / "checkpoints", 60, parts=("wandb_id.txt",))
    final = Path(str(consolidate.consolidate(job, tmp_path)["final"]))
    with tarfile.open(final) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "out", filter="data")
    assert {name.split("/")[1] for name in names if name.count("/") >= 1} == {"params", "assets"}
    assert "wandb_id.txt" not in names
    assert (tmp_path / "out" / "60" / "assets").is_dir()
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore((tmp_path / "out" / "60" / "params").resolve())
    kernel = found["params"]["layer"]["kernel"]["value"]
    assert str(kernel.dtype) == ("bfloat16" if half else "float32")
    assert (np.asarray(kernel, np.float32) == 1.5).all()


def test_parameters_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    openpi(tmp_path, 60, value=float("nan"))
    with pytest.raises(SegueError, match=r"kernel.* holds a value that is not finite"):
        kind_of(job_for(tmp_path, recipe="openpi")).prepare(tmp_path / "60")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("place", [0, 1, _SLICE - 1, _SLICE, 2 * _SLICE])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype: str, place: int) -> None:
    import ml_dtypes

    array = np.zeros((2 * _SLICE + 1, 1), getattr(ml_dtypes, dtype, dtype)).T
    all_finite(Path("60"), {"kernel": array, "scalar": np.float32(1), "count": np.arange(3), "none": np.zeros((0, 2))})
    array[0, place] = np.inf
    with pytest.raises(SegueError, match=r"60: parameter .*kernel.* holds a value that is not finite"):
        all_finite(Path("60"), {"kernel": array})


def highest(work: Callable[[], object]) -> int:
    """Bytes that numpy holds at most while this runs, beyond what it held before."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_the_parameters_are_in_memory_once_while_they_are_looked_at(tmp_path: Path) -> None:
    """Full fine-tuning's have 13 GB, the largest of them nearly 5."""
    large = {"kernel": np.ones((8, 1 << 20), np.float32)}
    all_finite(tmp_path, large)
    assert highest(lambda: all_finite(tmp_path, large)) < large["kernel"].nbytes // 4


def test_the_parameters_are_halved_one_by_one() -> None:
    import ml_dtypes

    one = np.ones(1 << 20, np.float32).nbytes

    def work() -> None:
        leaves = [np.full(1 << 20, number, np.float32) for number in range(8)] + [np.arange(3)]
        halve(leaves)
        assert [str(leaf.dtype) for leaf in leaves] == ["bfloat16"] * 8 + ["int64"]
        assert all(leaf[0] == leaf[-1] == ml_dtypes.bfloat16(number) for number, leaf in enumerate(leaves[:8]))

    work()
    assert highest(work) < 8.75 * one


def safetensors(path: Path, cut: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16 - cut))


@pytest.mark.parametrize(
    ("recipe", "model", "dropped"),
    [
        ("openpi-pytorch", "model.safetensors", "optimizer.pt"),
        ("lerobot", "pretrained_model/model.safetensors", "training_state/optimizer.safetensors"),
    ],
)
def test_safetensors_trainers_keep_the_model_and_refuse_a_cut_one(
    tmp_path: Path, recipe: str, model: str, dropped: str
) -> None:
    (tmp_path / "staging").mkdir()
    checkpoint = tmp_path / "checkpoints" / "60"
    safetensors(checkpoint / model)
    safetensors(checkpoint / dropped)
    job = job_for(tmp_path / "staging", recipe=recipe)
    publish(job, tmp_path / "checkpoints", 60)
    names = members(Path(str(consolidate.consolidate(job, tmp_path)["final"])))
    assert f"60/{model}" in names
    assert f"60/{dropped}" not in names
    safetensors(checkpoint / model, cut=3)
    with pytest.raises(SegueError, match="is no whole safetensors file"):
        kind_of(job).prepare(checkpoint)


def test_any_other_trainer_keeps_the_whole_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    checkpoint = tmp_path / "checkpoints" / "60"
    (checkpoint / "deep" / "empty").mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    (tmp_path / "checkpoints" / "beside.txt").write_text("b")
    job = job_for(tmp_path / "staging", recipe="command")
    publish(job, tmp_path / "checkpoints", 60, parts=("beside.txt",))
    names = members(Path(str(consolidate.consolidate(job, tmp_path)["final"])))
    assert names == ["60", "60/deep", "60/deep/empty", "60/state.json", "beside.txt", "segue-manifest.json"]


def test_an_unknown_recipe_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="recipe 'own' is not known here"):
        kind_of(job_for(tmp_path, recipe="own"))


def test_a_python_without_orbax_hands_over_to_the_trainers(tmp_path: Path) -> None:
    """In an image `python3` of PATH need not be the environment's: the node starts there all the same."""
    bare = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}"
    if subprocess.run([bare, "-c", "import orbax"], capture_output=True).returncode == 0:
        pytest.skip(f"{bare} has orbax")
    (tmp_path / "staging").mkdir()
    job = job_for(tmp_path / "staging", recipe="openpi", python=sys.executable)
    openpi(tmp_path / "checkpoints", 60)
    publish(job, tmp_path / "checkpoints", 60)
    write_job(job, tmp_path)
    build_jobs(tmp_path / "jobs.pyz")
    words = [bare, "jobs.pyz", "consolidate", "--config", "job.json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no orbax in" in done.stderr and json.loads(done.stdout)["step"] == 60
