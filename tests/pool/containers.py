"""A pool whose jobs run in containers, as at a real site: Apptainer, an image built from images/debian.def, /staging bound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dagman.pool import EmbeddedPool
from dagman.pool.apptainer import container_config, find, sandbox
from dagman.pool.fetch import locked

DEFINITION = Path(__file__).resolve().parents[2] / "images" / "debian.def"


@dataclass(frozen=True)
class ContainerPool:
    """The running pool, the image its jobs name, and the host's directory that they see as /staging."""

    pool: EmbeddedPool
    image: Path
    staging: Path


def image_file(image: Path) -> Path:
    """The image as one .sif file, made from the sandbox directory once and kept beside it."""
    target = image.with_name(f"{image.name}.sif")
    with locked(image.parent):
        if not target.exists():
            definition = image.with_name(f"{image.name}.def")
            definition.write_text(f"Bootstrap: localimage\nFrom: {image}\n")
            find().build(definition, target)
    return target


@contextmanager
def container_pool(directory: Path) -> Iterator[ContainerPool]:
    """Start one in `directory`; the image is built once and kept in the cache."""
    if os.geteuid() != 0:
        pytest.skip("building the image needs root: debootstrap sets owners of files")
    image = sandbox(DEFINITION)
    staging = directory / "staging"
    staging.mkdir()
    with EmbeddedPool(directory / "pool", container_config(find(), {staging: "/staging"})) as pool:
        yield ContainerPool(pool, image, staging)
