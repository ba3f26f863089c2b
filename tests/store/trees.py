"""Small checkpoints for tests: written, and read back as a comparable value."""

# Names are bytes here, in any encoding.
# ruff: noqa: PTH115, PTH123, PTH208
from __future__ import annotations

import os
import stat
from pathlib import Path


def make_checkpoint(root: Path, step: int, *, files: int = 3, size: int = 5000) -> Path:
    """``root/<step>/…`` with a few files, an empty directory and a link; the content is a function of the step."""
    top = root / str(step)
    (top / "params" / "d").mkdir(parents=True)
    (top / "assets").mkdir()
    for number in range(files):
        (top / "params" / "d" / f"{number}.bin").write_bytes(
            bytes((step + number + i) % 251 for i in range(size + number))
        )
    (top / "empty").write_bytes(b"")
    (top / "current").symlink_to("params/d/0.bin")
    return root


def picture(root: Path) -> dict[bytes, tuple[str, int, bytes]]:
    """All below ``root``: path → (kind, mode, content)."""
    found: dict[bytes, tuple[str, int, bytes]] = {}

    def look(directory: bytes, prefix: bytes) -> None:
        for name in sorted(os.listdir(directory)):
            path = directory + b"/" + name
            about = os.lstat(path)
            if stat.S_ISLNK(about.st_mode):
                found[prefix + name] = ("link", 0, os.readlink(path))
            elif stat.S_ISDIR(about.st_mode):
                found[prefix + name] = ("directory", stat.S_IMODE(about.st_mode), b"")
                look(path, prefix + name + b"/")
            else:
                with open(path, "rb") as file:
                    found[prefix + name] = ("file", stat.S_IMODE(about.st_mode), file.read())

    look(os.fsencode(root), b"")
    return found
