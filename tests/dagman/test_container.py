"""container.image: a URL stands as it is, a file is named by its absolute path and must be where HTCondor takes it from."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import BadInput
from dagman.prepare import ask, prepare

RUN = """
name = "boxed"
site = "local"
steps = 10
staging = "staging"
[trainer]
recipe = "command"
args = ["train.py"]
[container]
image = "{image}"
{more}
"""


def image_line(directory: Path, image: str, more: str = "") -> str:
    (directory / "staging").mkdir(exist_ok=True)
    run = directory / "run.toml"
    run.write_text(RUN.format(image=image, more=more))
    workflow = prepare(ask(run))
    text = next(file.text for file in workflow.files if file.path == "segment.sub")
    return next(line for line in text.splitlines() if line.startswith("container_image"))


def test_an_image_beside_run_toml_is_found_from_the_workflow_directory(workdir: Path) -> None:
    (workdir / "my.sif").write_bytes(b"SIF")
    assert image_line(workdir, "my.sif") == f"container_image = {workdir}/my.sif"


def test_an_image_of_a_registry_stands_as_it_is(workdir: Path) -> None:
    assert image_line(workdir, "docker://debian:13") == "container_image = docker://debian:13"


def test_an_image_that_is_not_here_is_refused_unless_the_machines_have_it(workdir: Path) -> None:
    with pytest.raises(BadInput, match=r"run.toml: container.image: .*/my.sif: no such file"):
        image_line(workdir, "my.sif")
    assert image_line(workdir, "/cvmfs/images/my", "transfer = false") == "container_image = /cvmfs/images/my"
