"""The lerobot package of this Python: is it there, and which format of dataset does it write."""

from __future__ import annotations

import re
import sys
from importlib import metadata

from agent.errors import SegueError

_INSTALL = {"v2.1": "lerobot==0.3.3", "v3.0": "'lerobot>=0.4,<0.5'"}


def installed_format(wanted: str | None) -> str:
    """ "v2.1" or "v3.0". Raises SegueError when lerobot is missing, too old, or writes another format than ``wanted``."""
    version = installed_version()
    if version is None:
        raise SegueError(
            f"the lerobot package is not in this Python ({sys.executable}): pip install {_INSTALL[wanted or 'v2.1']}, "
            "or name the interpreter of an environment that has it with --python"
        )
    found = format_of(version)
    if found is None:
        raise SegueError(
            f"lerobot {version} cannot write datasets of v2.1 or v3.0: pip install {_INSTALL[wanted or 'v2.1']}"
        )
    if wanted is not None and wanted != found:
        raise SegueError(
            f"--format {wanted}: the installed lerobot {version} writes {found}; pip install {_INSTALL[wanted]}, "
            "or name the interpreter of an environment that has it with --python"
        )
    return found


def installed_version() -> str | None:
    """As its distribution says, without importing it."""
    try:
        return metadata.version("lerobot")
    except metadata.PackageNotFoundError:
        return None


def format_of(version: str) -> str | None:
    """Format that a version of lerobot writes; None for those before 0.3.2."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < (0, 3, 2):
        return None
    return "v2.1" if numbers < (0, 4) else "v3.0"
