"""The two zipapps that travel with every job: agent.pyz (the agent alone) and jobs.pyz (the other programs, and the agent's rooms they use).

The same sources give the same bytes: names sorted, times fixed, nothing compressed. Compiled modules of the running Python go in beside the
sources, unchecked against them: a job with the same Python starts sooner, any other ignores them and reads the sources.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import stat
import sys
import zipfile
from pathlib import Path
from types import CodeType

from agent.errors import SegueError

_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_SHEBANG = b"#!/usr/bin/env python3\n"
_LEFT_OUT = ("__pycache__",)
_UNCHECKED = 1


def build_agent(target: Path) -> None:
    """Write agent.pyz, executable. Raises SegueError when the sources cannot be read or the target cannot be written."""
    _build(target, ("agent",), "agent.__main__")


def build_jobs(target: Path) -> None:
    """Write jobs.pyz, executable; also what `python -m jobs.reference.train` needs on PYTHONPATH. Raises SegueError as above."""
    _build(target, ("jobs", "agent"), "jobs.main")


def _source(package: str) -> Path:
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or ()) if found is not None else []
    if not places or not Path(places[0]).is_dir():
        raise SegueError(
            f"the sources of {package!r} are not there as files; install segue from its wheel or its checkout"
        )
    return Path(places[0])


def _members(packages: tuple[str, ...], main: str) -> dict[str, bytes]:
    code = f"import sys\n\nfrom {main} import main\n\nsys.exit(main())\n"
    members = {"__main__.py": code.encode()}
    for package in packages:
        root = _source(package)
        for path in root.rglob("*"):
            if path.is_file() and path.suffix != ".pyc" and not set(path.parts) & set(_LEFT_OUT):
                members[f"{package}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    for name in [name for name in members if name.endswith(".py")]:
        if (compiled := _compiled(name, members[name])) is not None:
            members[f"{name}c"] = compiled
    return members


def _compiled(name: str, source: bytes) -> bytes | None:
    """An unchecked hash-based .pyc (PEP 552). Marshalled in version 2, without references, which alone is the same in every process. None
    where it would not be: before Python 3.11 a constant set is written in the order of its hashes.
    """
    code = compile(source, name, "exec", dont_inherit=True)
    if sys.version_info < (3, 11) and _holds_set(code):
        return None
    head = importlib.util.MAGIC_NUMBER + _UNCHECKED.to_bytes(4, "little") + importlib.util.source_hash(source)
    return head + marshal.dumps(code, 2)


def _holds_set(code: CodeType) -> bool:
    return any(isinstance(one, frozenset) or (isinstance(one, CodeType) and _holds_set(one)) for one in code.co_consts)


def _build(target: Path, packages: tuple[str, ...], main: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        members = _members(packages, main)
        with temporary.open("wb") as file:
            file.write(_SHEBANG)
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name in sorted(members):
                    entry = zipfile.ZipInfo(name, _LONG_AGO)
                    entry.external_attr = (stat.S_IFREG | 0o644) << 16
                    archive.writestr(entry, members[name])
        temporary.chmod(0o755)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SegueError(f"{target}: cannot be written ({error.strerror or error})") from error
