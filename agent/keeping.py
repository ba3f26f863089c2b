"""What an attempt says and counts is kept in the store, compressed, also when it is evicted without a word: written anew now and then.

`<store>/logs/000007.log.gz` and `000007.jsonl.gz`, `<store>/wandb/000007.tar`. A share of the item budget bounds how many attempts are kept.
All of it is done by an errand and may fail without harm to the training.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.output import left_out

_HEAD = 256 << 10
_TAIL = 8 << 20
_MOST_ATTEMPTS = 50
_SHARE = 20
_KEPT = re.compile(r"(\d{6,})\.(?:log|jsonl)\.gz|(\d{6,})\.tar")
_TEMPORARY = re.compile(r"\.(\d{6,})\..*\.tmp|\.carry\.(\d{6,})\.tmp")
KEPT_IN = ("logs", "wandb", "carry")


def make_place(directory: Path) -> None:
    """Make a directory in the run's store, and never the store itself: that would hide a mount which is away just now."""
    directory.mkdir(exist_ok=True)


def sweep(root: Path, epoch: int) -> list[Path]:
    """Remove what attempts before ``epoch`` were killed over while they kept something; the paths."""
    swept = []
    for name in KEPT_IN:
        directory = root / name
        for path in list(directory.iterdir()) if directory.is_dir() else []:
            match = _TEMPORARY.fullmatch(path.name)
            if match is not None and int(match[1] or match[2]) < epoch:
                path.unlink(missing_ok=True)
                swept.append(path)
    return swept


def attempts_kept(items: int | None) -> int:
    """How many attempts' logs fit into a twentieth of the item budget, two items each."""
    return _MOST_ATTEMPTS if items is None else max(3, min(_MOST_ATTEMPTS, items // _SHARE // 2))


def shortened(path: Path) -> bytes:
    """A log's beginning and end; all of it when it is not long."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _HEAD + _TAIL:
            return file.read()
        head = file.read(_HEAD)
        gone = size - _HEAD - _TAIL + left_out(file.fileno())
        file.seek(size - _TAIL)
        return head + f"\n… {gone} bytes left out …\n".encode() + file.read()


def keep(directory: Path, epoch: int, sources: dict[str, Path], most: int) -> list[str]:
    """Compress each source to ``<epoch>.<suffix>.gz`` and drop the oldest attempts beyond ``most``; returns the names written."""
    make_place(directory)
    written = []
    for suffix, source in sources.items():
        if not source.exists():
            continue
        name = f"{epoch:06d}.{suffix}.gz"
        place(directory, name, gzip.compress(shortened(source), compresslevel=4, mtime=0))
        written.append(name)
    drop_oldest(directory, most)
    return written


def place(directory: Path, name: str, data: bytes) -> None:
    """Write a file under its name in one step, on disk when this returns."""
    temporary = directory / f".{name}.tmp"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / name)


def drop_oldest(directory: Path, most: int) -> None:
    """Keep the newest ``most`` attempts' files."""
    by_epoch: dict[int, list[Path]] = {}
    for path in directory.iterdir():
        match = _KEPT.fullmatch(path.name)
        if match:
            by_epoch.setdefault(int(match[1] or match[2]), []).append(path)
    for epoch in sorted(by_epoch)[: max(0, len(by_epoch) - most)]:
        for path in by_epoch[epoch]:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Ledger:
    """What the ledger of an attempt tells the next one: how far it came, and its own last line when it ended in an orderly way.

    ``unpublished``: why the newest try to publish failed, empty when it did not.
    """

    step: int = 0
    end: Mapping[str, Any] = field(default_factory=dict)
    unpublished: str = ""


def ledger_of(directory: Path, epoch: int) -> Ledger:
    """The last lines of the ledger of attempt ``epoch``; an empty one when that is not known."""
    path = directory / f"{epoch:06d}.jsonl.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            said = [json.loads(line) for line in file.read().splitlines()[-20:]]
        steps = [int(one["step"]) for one in said if isinstance(one.get("step"), int)]
        tries = [one for one in said if one.get("event") in ("commit", "unpublished")]
        failed = str(tries[-1].get("reason", "")) if tries else ""
        return Ledger(max(steps, default=0), said[-1] if said and said[-1].get("event") == "end" else {}, failed)
    except Exception:  # nothing depends on it but a better plan, and damage shows in many ways
        return Ledger()


def below(top: Path) -> list[Path]:
    """All files and directories below; what vanishes meanwhile is left out."""
    return [Path(directory, name) for directory, *names in os.walk(top) for name in (*names[0], *names[1])]


def size_of(path: Path) -> int:
    """Bytes of a regular file; 0 of anything else, and of what has vanished."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def archive(directory: Path, name: str, sources: Sequence[Path], top: str, most_bytes: int) -> int:
    """One uncompressed tar of ``sources``, each below ``top`` in it, for us alone to read: the client writes down whatever the trainer
    prints. Returns its size, 0 when there is nothing or too much.
    """
    import tarfile

    chosen = sorted((path, source.parent) for source in sources for path in [source, *below(source)])
    size = sum(size_of(path) for path, _ in chosen)
    if not sources or size > most_bytes:
        return 0
    make_place(directory)
    temporary = directory / f".{name}.tmp"
    with temporary.open("wb") as file:
        with suppress(OSError):  # not every mount has modes
            os.fchmod(file.fileno(), 0o600)
        with tarfile.open(fileobj=file, mode="w") as tar:
            for path, base in chosen:
                with suppress(FileNotFoundError):  # the trainer goes on, and so do its files
                    tar.add(path, arcname=str(Path(top, path.relative_to(base))), recursive=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / name)
    return size
