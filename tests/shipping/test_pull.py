"""`segue pull` from a real sshd: laid out as the trainer's server takes it, every byte verified, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shipping.checkpoints import OPENPI, archive, tree
from tests.shipping.conftest import Run
from tests.shipping.test_stage import begin, kill_rsync, names, wait_for

OPENPI_TRAINER = 'recipe = "openpi"\noptions = {config = "pi05_lab", exp_name = "blocks"}'


def there(run: Run) -> Path:
    return run.toml.parent / "robot"


def test_openpis_final_archive_lies_where_openpis_server_looks(run: Run, tmp_path: Path) -> None:
    # given what consolidation leaves of 100 updates, which OpenPI's JAX trainer labels 99
    run.write(trainer=OPENPI_TRAINER)
    archive(run.staging, tmp_path, step=100, label="99", recipe="openpi")
    # when it is pulled by a machine that has nothing but run.toml
    found = run.json("pull", "--to", str(there(run)))
    # then the directory is a checkpoint of OpenPI's
    target = there(run) / "checkpoints" / "pi05_lab" / "blocks" / "99"
    assert (found["directory"], found["step"], found["action"]) == (str(target), 100, "fetched")
    assert tree(target) == OPENPI
    assert names(there(run)) == ["checkpoints"]
    assert names(target.parent) == [".99.segue-manifest.json", "99"]


@pytest.mark.parametrize("name", ["stack blocks (2)", "arm/blocks"])
def test_experiments_have_any_name_that_openpi_takes(run: Run, tmp_path: Path, name: str) -> None:
    run.write(trainer=f'recipe = "openpi"\noptions = {{config = "pi05_lab", exp_name = "{name}"}}')
    archive(run.staging, tmp_path, step=100, label="99", recipe="openpi")
    directory = there(run) / "checkpoints" / "pi05_lab" / name / "99"
    assert run.json("pull", "--to", str(there(run)))["directory"] == str(directory)
    run.write(trainer='recipe = "openpi"\noptions = {config = "pi05_lab", exp_name = "../x"}')
    assert "is no name of a directory" in run.segue("pull", "--to", str(there(run)), expect=2)


def test_other_recipes_are_by_run_and_step(run: Run, tmp_path: Path) -> None:
    run.write(trainer='recipe = "lerobot"')
    archive(run.staging, tmp_path, step=100, label="000100", recipe="lerobot", files={"pretrained_model/x": b"1"})
    run.segue("pull", "--to", str(there(run)))
    assert tree(there(run) / "checkpoints" / "demo" / "100") == {"pretrained_model/x": b"1"}


def test_a_step_is_its_commit_of_the_highest_epoch(run: Run, tmp_path: Path) -> None:
    for epoch in (2, 10, 3):
        archive(run.staging, tmp_path, step=40, label="40", epoch=epoch, files={"w": str(epoch).encode()})
    archive(run.staging, tmp_path, step=60, label="60", epoch=3, files={"w": b"x"}, beside={"wandb_id.txt": b"abc"})
    found = run.json("pull", "--to", str(there(run)), "--step", "40")
    assert (found["epoch"], tree(Path(found["directory"]))) == (10, {"w": b"10"})
    # the newest is of the highest epoch, as for a restore; what travels beside a checkpoint lies beside it
    assert run.json("pull", "--to", str(there(run)), "--step", "newest")["step"] == 40
    assert run.json("pull", "--to", str(there(run)), "--step", "60")["label"] == "60"
    assert (there(run) / "checkpoints" / "demo" / "wandb_id.txt").read_bytes() == b"abc"


def test_what_is_not_there_yet_is_said(run: Run, tmp_path: Path) -> None:
    assert "has no run 'demo'" in run.segue("pull", expect=1)
    run.store.mkdir(parents=True)
    assert "has no checkpoint in staging yet" in run.segue("pull", expect=1)
    archive(run.staging, tmp_path, step=40, label="40", epoch=1)
    assert "at step 40 of 100: `--step 40` brings that commit" in run.segue("pull", expect=1)
    assert "there are steps 40" in run.segue("pull", "--step", "41", expect=1)
    assert "neither a number of steps" in run.segue("pull", "--step", "last", expect=2)
    assert "neither a number of steps" in run.segue("pull", "--step", "9" * 5000, expect=2)


def test_a_pulled_checkpoint_is_verified_and_not_fetched_again(run: Run, tmp_path: Path) -> None:
    archive(run.staging, tmp_path, step=100, label="100")
    target = Path(run.json("pull", "--to", str(there(run)))["directory"])
    with run.server.replaced("rsync", "echo must not be asked >&2; exit 9"):
        assert run.json("pull", "--to", str(there(run)))["action"] == "there"
    # damaged here, it is fetched again
    (target / "params" / "d" / "0123").write_bytes(b"x" * 10240)
    again = run.json("pull", "--to", str(there(run)))
    assert again["action"] == "fetched" and "0123 has changed" in again["note"]
    assert tree(target) == OPENPI


def test_a_directory_of_somebody_else_is_left_alone(run: Run, tmp_path: Path) -> None:
    archive(run.staging, tmp_path, step=100, label="100")
    own = there(run) / "checkpoints" / "demo" / "100"
    own.mkdir(parents=True)
    (own / "mine").write_text("x")
    assert "was not put there by `segue pull`" in run.segue("pull", "--to", str(there(run)), expect=2)
    assert names(own) == ["mine"]


def test_a_new_archive_of_the_same_step_replaces_the_old_one(run: Run, tmp_path: Path) -> None:
    archive(run.staging, tmp_path, step=100, label="100")
    run.segue("pull", "--to", str(there(run)))
    # of the same size, as after another training under the same name
    files = {**OPENPI, "params/d/0123": bytes(reversed(range(256))) * 40}
    archive(run.staging, tmp_path, step=100, label="100", files=files)
    found = run.json("pull", "--to", str(there(run)))
    assert "replaced" in found["note"]
    assert tree(Path(found["directory"])) == files


def test_a_broken_pull_goes_on_where_it_broke(run: Run, tmp_path: Path, slow: Callable[[], None]) -> None:
    data = os.urandom(4_000_000)
    archive(run.staging, tmp_path, step=100, label="100", files={"params/w": data})
    arriving = there(run) / ".segue-pull" / "demo" / "demo-000000100.tar"
    with begin(run, "pull", "--to", str(there(run))) as process:
        wait_for(500_000, lambda: arriving if arriving.exists() else None, process)
        kill_rsync(process)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and "goes on from there" in said
    assert names(there(run)) == [".segue-pull"]
    arrived = arriving.stat().st_size
    slow()
    found = run.json("pull", "--to", str(there(run)))
    assert (found["action"], found["from_bytes"]) == ("fetched", arrived)
    assert tree(Path(found["directory"])) == {"params/w": data}
    assert names(there(run)) == ["checkpoints"]


def test_what_an_earlier_pull_left_of_another_archive_does_no_harm(run: Run, tmp_path: Path) -> None:
    path = archive(run.staging, tmp_path, step=100, label="100")
    arriving = there(run) / ".segue-pull" / "demo" / path.name
    arriving.parent.mkdir(parents=True)
    arriving.write_bytes(os.urandom(path.stat().st_size))
    assert tree(Path(run.json("pull", "--to", str(there(run)))["directory"])) == OPENPI


def test_what_a_broken_pull_of_another_run_left_stays(run: Run, tmp_path: Path) -> None:
    archive(run.staging, tmp_path, step=100, label="100")
    arriving = there(run) / ".segue-pull" / "another" / "another-000000100.tar"
    arriving.parent.mkdir(parents=True)
    arriving.write_bytes(b"half")
    assert run.json("pull", "--to", str(there(run)))["action"] == "fetched"
    assert arriving.read_bytes() == b"half"


def test_run_may_have_any_name(run: Run, tmp_path: Path) -> None:
    for name in ("lock", "unpacked"):
        run.write(name=f'"{name}"')
        archive(run.staging, tmp_path, step=100, label="100", run=name)
        assert tree(Path(run.json("pull", "--to", str(there(run)))["directory"])) == OPENPI
    assert names(there(run)) == ["checkpoints"]


@pytest.mark.parametrize("place", ["a file's bytes", "the manifest", "cut short"])
def test_a_damaged_archive_puts_nothing_in_place(run: Run, tmp_path: Path, place: str) -> None:
    path = archive(run.staging, tmp_path, step=100, label="100")
    data = bytearray(path.read_bytes())
    if place == "cut short":
        data = data[: len(data) // 2]
    else:
        at = data.index(b"\x01\x02\x03\x04") if place == "a file's bytes" else data.index(b'"files"')
        data[at] ^= 1
    path.write_bytes(data)
    said = run.segue("pull", "--to", str(there(run)), expect=1)
    assert "damaged in staging" in said and "nothing was put in place" in said
    assert not (there(run) / "checkpoints").exists()


def test_a_disk_that_fills_while_unpacking_keeps_what_was_fetched(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent.store.fs import PosixFileSystem

    path = archive(run.staging, tmp_path, step=100, label="100")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(PosixFileSystem, "truncate", full)
        said = run.segue("pull", "--to", str(there(run)), expect=1)
    assert "no room to unpack" in said and "--to" in said
    assert not (there(run) / "checkpoints").exists()
    assert run.json("pull", "--to", str(there(run)))["from_bytes"] == path.stat().st_size


def test_an_archive_of_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    path = archive(run.staging, tmp_path, step=100, label="100", run="other")
    target = run.store / "final" / "demo-000000100.tar"
    target.parent.mkdir(parents=True)
    shutil.copy(path, target)
    assert "is of run 'other'" in run.segue("pull", "--to", str(there(run)), expect=1)
    assert not (there(run) / "checkpoints").exists()


def test_from_mounted_staging_nothing_is_copied_on_the_way(run: Run, tmp_path: Path) -> None:
    archive(run.staging, tmp_path, step=100, label="100")
    found = run.json("pull", "--mounted", "--to", str(there(run)))
    assert found["action"] == "unpacked"
    assert tree(Path(found["directory"])) == OPENPI
    assert names(there(run)) == ["checkpoints"]


def test_a_workflow_directory_is_as_good_as_its_run_toml(run: Run, tmp_path: Path) -> None:
    archive(run.staging, tmp_path, step=100, label="100")
    workflow = tmp_path / "demo"
    workflow.mkdir()
    shutil.copy(run.toml, workflow / "run.toml")
    text = '{"run": "demo", "staging": "%s", "steps": 100, "recipe": "reference"}'
    (workflow / "job.json").write_text(text % run.staging)
    run.toml = workflow
    assert run.json("pull", "--to", str(there(run)))["step"] == 100
    assert "is the copy that `segue dag` made" in run.segue("stage", expect=2)
