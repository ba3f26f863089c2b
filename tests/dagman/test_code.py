"""The code that travels: what git tracks, what is not committed yet, and nothing that git ignores."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.errors import BadInput
from dagman import code
from dagman.code import read_checkout, resolve_code

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not on PATH")


def git(directory: Path, *words: str) -> None:
    own = ["-c", "user.name=t", "-c", "user.email=t@example.edu", "-c", "protocol.file.allow=always"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    subprocess.run(["git", *own, "-C", str(directory), *words], check=True, capture_output=True, env=environment)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    made = tmp_path / "app"
    made.mkdir()
    git(made, "init", "-q", "-b", "main")
    (made / ".gitignore").write_text("*.ckpt\n/data/\n__pycache__/\n")
    (made / "train.py").write_text("print(1)\n")
    (made / "run.sh").write_text("#!/bin/sh\n")
    (made / "run.sh").chmod(0o755)
    (made / "src").mkdir()
    (made / "src" / "model.py").write_text("x = 1\n")
    git(made, "add", "-A")
    git(made, "commit", "-q", "-m", "first")
    git(made, "tag", "v1")
    return made


def names(directory: Path) -> list[str]:
    return [entry.name for entry in read_checkout(directory).entries]


def test_tracked_files_travel_and_ignored_ones_stay(checkout: Path) -> None:
    (checkout / "data").mkdir()
    (checkout / "data" / "big").write_text("x")
    (checkout / "weights.ckpt").write_text("x")
    (checkout / "__pycache__").mkdir()
    (checkout / "__pycache__" / "x.pyc").write_text("x")
    assert names(checkout) == [".gitignore", "run.sh", "src", "src/model.py", "train.py"]
    assert [entry.name for entry in read_checkout(checkout).entries if entry.executable] == ["run.sh"]


def test_a_clean_checkout_says_where_it_stands(checkout: Path) -> None:
    found = read_checkout(checkout)
    assert found.describe.startswith("v1-0-g") and found.diff == ""


def test_uncommitted_and_new_files_travel_and_are_told(checkout: Path) -> None:
    before, _ = resolve_code(checkout, checkout.parent / "r.json")
    (checkout / "train.py").write_text("print(2)\n")
    (checkout / "new é.py").write_text("y = 1\n")
    (checkout / "run.sh").unlink()
    after, found = resolve_code(checkout, checkout.parent / "r.json")
    assert found is not None
    assert [entry.name for entry in found.entries] == [".gitignore", "new é.py", "src", "src/model.py", "train.py"]
    assert after.sha256 != before.sha256
    assert found.describe.endswith("-dirty") and after.about == found.describe
    assert "+print(2)" in found.diff and "# not tracked by git, sent as it is: new é.py" in found.diff


def test_a_commit_that_changes_no_file_changes_no_digest(checkout: Path) -> None:
    (checkout / "train.py").write_text("print(2)\n")
    dirty, _ = resolve_code(checkout, checkout.parent / "r.json")
    git(checkout, "commit", "-q", "-a", "-m", "second")
    clean, _ = resolve_code(checkout, checkout.parent / "r.json")
    assert (clean.sha256, clean.about != dirty.about) == (dirty.sha256, True)


def test_a_fresh_clone_has_the_same_digest(checkout: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(checkout), str(tmp_path / "clone"))
    first, _ = resolve_code(checkout, tmp_path / "a.json")
    second, _ = resolve_code(tmp_path / "clone", tmp_path / "b.json")
    assert first.sha256 == second.sha256


def test_a_part_of_a_repository_is_that_part(checkout: Path) -> None:
    (checkout / "train.py").write_text("print(2)\n")
    (checkout / "src" / "model.py").write_text("x = 2\n")
    found = read_checkout(checkout / "src")
    assert [entry.name for entry in found.entries] == ["model.py"]
    assert "+x = 2" in found.diff and "print(2)" not in found.diff


def test_submodules_and_checkouts_inside_travel_too(checkout: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    (library / "lib.py").write_text("z = 1\n")
    (library / "skipped.log").write_text("x")
    (library / ".gitignore").write_text("*.log\n")
    git(library, "add", "-A")
    git(library, "commit", "-q", "-m", "library")
    git(checkout, "submodule", "--quiet", "add", str(library), "third_party/library")
    shutil.copytree(library, checkout / "loose")
    found = names(checkout)
    assert {"third_party/library/lib.py", "loose/lib.py"} <= set(found)
    assert not [name for name in found if ("/.git" in name and not name.endswith(".gitignore")) or "skipped" in name]


def test_changes_in_a_submodule_are_told_too(checkout: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(checkout), "other")
    git(checkout, "submodule", "add", "-q", str(tmp_path / "other"), "libs")
    git(checkout, "commit", "-q", "-m", "libs")
    (checkout / "libs" / "train.py").write_text("print(3)\n")
    (checkout / "libs" / "new.py").write_text("")
    found = read_checkout(checkout)
    assert "+print(3)" in found.diff
    assert "# not tracked by git, sent as it is: libs/new.py\n" in found.diff
    git(checkout, "config", "--file", ".gitmodules", "submodule.libs.ignore", "all")  # of what `git status` shows
    assert "+print(3)" in read_checkout(checkout).diff


def test_links_to_a_checkout_are_no_submodules(checkout: Path) -> None:
    (checkout / "here").symlink_to(".")
    git(checkout, "add", "--all")
    (checkout / "new.py").write_text("")
    assert read_checkout(checkout).diff.count("new.py") == 1


def test_checkout_inside_that_git_cannot_read_is_named(checkout: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(checkout), "other")
    git(checkout, "submodule", "add", "-q", str(tmp_path / "other"), "libs")
    assert "libs/train.py" in names(checkout)
    shutil.rmtree(checkout / ".git" / "modules")
    with pytest.raises(BadInput, match=r"libs: is a git checkout inside the checkout, and git cannot read it"):
        read_checkout(checkout)


def test_directory_that_became_a_link_travels_once(checkout: Path, tmp_path: Path) -> None:
    (checkout / "src").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "new.py").write_text("")
    (checkout / "src").symlink_to(tmp_path / "elsewhere")
    assert names(checkout) == [".gitignore", "run.sh", "src", "src/model.py", "src/new.py", "train.py"]


def test_links_travel_as_git_has_them(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("far")
    (checkout / "near").symlink_to("train.py")
    (checkout / "broken").symlink_to("generated.py")
    (checkout / "far").symlink_to(tmp_path / "outside.txt")
    kinds = {entry.name: (entry.kind, entry.link) for entry in read_checkout(checkout).entries}
    assert kinds["near"] == ("link", "train.py")
    assert kinds["broken"] == ("link", "generated.py")
    assert kinds["far"] == ("file", "")
    (checkout / "lost").symlink_to("/no/such/file")
    with pytest.raises(BadInput, match="lost: is a link to /no/such/file"):
        read_checkout(checkout)


def test_without_git_everything_but_the_leavings_travels(tmp_path: Path) -> None:
    (tmp_path / "app" / "__pycache__").mkdir(parents=True)
    (tmp_path / "app" / "__pycache__" / "x.pyc").write_text("x")
    (tmp_path / "app" / "a.py").write_text("x")
    found = read_checkout(tmp_path / "app")
    assert ([entry.name for entry in found.entries], found.describe, found.diff) == (["a.py"], "", "")


def test_a_directory_that_the_repository_around_it_ignores_travels_whole(checkout: Path) -> None:
    (checkout / "data").mkdir()
    (checkout / "data" / "a.py").write_text("x")
    assert names(checkout / "data") == ["a.py"]


def test_a_checkout_that_git_cannot_read_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadInput, match="is a git checkout and git cannot read it"):
        read_checkout(checkout)


def test_a_checkout_without_a_commit_travels(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("x")
    found = read_checkout(tmp_path)
    assert [entry.name for entry in found.entries] == ["a.py"]
    assert "sent as it is: a.py" in found.diff


def test_a_dataset_among_the_code_is_refused_by_name(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "MOST_BYTES", 5_000_000)
    with (checkout / "episodes.h5").open("wb") as file:
        file.truncate(6_000_000)
    with pytest.raises(BadInput, match=r"6 MB would travel.*episodes.h5 with 6 MB: let git ignore"):
        read_checkout(checkout)


def test_where_the_checkout_is_not_the_staged_one_is_used(checkout: Path) -> None:
    record = checkout.parent / "r.json"
    here, _ = resolve_code(checkout, record)
    shutil.rmtree(checkout)
    there, found = resolve_code(checkout, record)
    assert found is None
    assert (here.travels, there.travels, there.sha256) == ("plain", "", here.sha256)
    record.unlink()
    with pytest.raises(BadInput, match="no such directory; name your checkout"):
        resolve_code(checkout, record)


def test_the_workflow_directory_keeps_describe_and_diff(checkout: Path, workdir: Path) -> None:
    import json

    from dagman.prepare import ask, prepare
    from dagman.write import write_workflow

    (checkout / "train.py").write_text("print(2)\n")
    run_toml = workdir / "run.toml"
    run_toml.write_text(
        f'name = "demo"\nsite = "local"\nsteps = 5\ncode = "{checkout}"\n[trainer]\nrecipe = "command"\nargs = ["true"]\n'
    )
    workflow = prepare(ask(run_toml))
    write_workflow(workflow)
    about = json.loads((workflow.directory / "code.json").read_text())
    assert about["describe"].endswith("-dirty")
    assert "+print(2)" in (workflow.directory / "code.diff").read_text()
    assert workflow.job.code is not None
    assert (workflow.directory / workflow.job.code.archive).stat().st_size == workflow.job.code.bytes


def test_code_of_an_earlier_generation_goes_from_the_workflow_directory(checkout: Path, workdir: Path) -> None:
    from dagman.prepare import ask, prepare
    from dagman.write import write_workflow

    run_toml = workdir / "run.toml"
    run_toml.write_text(
        f'name = "demo"\nsite = "local"\nsteps = 5\ncode = "{checkout}"\n[trainer]\nrecipe = "command"\nargs = ["true"]\n'
    )
    write_workflow(prepare(ask(run_toml)))
    (workdir / "demo" / "mine.tar").touch()
    (checkout / "train.py").write_text("print(2)\n")
    workflow = prepare(ask(run_toml))
    write_workflow(workflow)
    assert workflow.job.code is not None
    assert sorted(path.name for path in (workdir / "demo").glob("*.tar")) == [workflow.job.code.archive, "mine.tar"]


@pytest.mark.parametrize("versioned", [True, False])
def test_a_run_file_inside_the_checkout_can_be_generated_again_and_again(checkout: Path, versioned: bool) -> None:
    # given: run.toml in the checkout itself, with or without git
    if not versioned:
        shutil.rmtree(checkout / ".git")
    asked = 'name = "mine"\nsite = "local"\nsteps = 3\n[trainer]\nrecipe = "command"\nargs = ["true"]\n'
    (checkout / "run.toml").write_text(asked)
    (checkout / "settings.toml").write_text("steps = 3\n")
    record = checkout / "run.staged.json"
    first, _ = resolve_code(checkout, record)

    # when: the workflow, its record and the store have been written beside it, more steps are asked for, and a sister run is
    (checkout / "run.toml").write_text(asked.replace("3", "9"))
    (checkout / "sister.toml").write_text(asked.replace("mine", "sister"))
    (checkout / "mine" / "handovers").mkdir(parents=True)
    for name in ("job.json", "agent.pyz", f"{first.archive}"):
        (checkout / "mine" / name).write_text(name)
    (checkout / "staging" / "segue" / "mine" / "epochs").mkdir(parents=True)
    (checkout / "staging" / "segue" / "mine" / "epochs" / "000001.json").write_text("{}")
    (checkout / "staging" / "segue" / "mine" / "run.json").write_text("{}")
    second, found = resolve_code(checkout, record)

    # then: it is the same code
    assert found is not None
    assert {"train.py", "settings.toml"} <= {entry.name for entry in found.entries}
    assert not {"run.toml", "sister.toml"} & {entry.name for entry in found.entries}
    assert second.sha256 == first.sha256
