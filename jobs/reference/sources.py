"""A policy wherever it lies: a checkpoint's directory, a directory of checkpoints, a commit, or the archive that consolidation left.

Archives are verified byte by byte while they are unpacked into a temporary directory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import BadInput


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The directory with params/ and config/ (and train_state/ where it was kept); valid inside the context only.

    Raises BadInput when there is none, SegueError when an archive is damaged.
    """
    if path.is_dir():
        yield _directory(path)
        return
    if not path.is_file():
        raise BadInput(f"{path}: no such file or directory; a checkpoint's directory or an archive of segue is needed")
    from jobs.archives import unpack

    with tempfile.TemporaryDirectory(prefix="segue-") as temporary:
        manifest = unpack(path, Path(temporary))
        yield _directory(Path(temporary) / manifest.label)


def _directory(path: Path) -> Path:
    if (path / "params").is_dir():
        return path
    steps = sorted((int(entry.name) for entry in path.iterdir() if entry.name.isdigit()) if path.is_dir() else [])
    if steps and (path / str(steps[-1]) / "params").is_dir():
        return path / str(steps[-1])
    raise BadInput(f"{path}: no checkpoint of the reference trainer (it has no params/)")
