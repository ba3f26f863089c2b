"""Root becomes an ordinary user for HTCondor: a user namespace that maps it to one.

As root HTCondor wants a `condor` user and a system-wide installation; mapped, it is an ordinary personal pool. The namespaces
of a pool's daemons and tools are different ones with the same mapping, so that owners of files look alike to all of them.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence

from agent.errors import SegueError

ORDINARY = 1000


class NoUserNamespaces(SegueError):
    """The kernel or the container forbids user namespaces, and we are root."""


def ordinary_user() -> int:
    """User id to which root is mapped: one that the machine has a name for, since HTCondor looks its owner's name up.

    1000 when it exists, else the lowest ordinary user, else `nobody` or any other that is not root.
    """
    known = sorted({entry.pw_uid for entry in pwd.getpwall()} - {0})
    if ORDINARY in known:
        return ORDINARY
    return next((uid for uid in known if ORDINARY <= uid < 60000), known[-1] if known else ORDINARY)


def prefix() -> list[str]:
    """What stands before a command of the pool: nothing, or as root `unshare --user …`."""
    if os.geteuid() != 0:
        return []
    user = ordinary_user()
    return ["unshare", "--user", f"--map-user={user}", f"--map-group={user}", "--"]


def check() -> None:
    """Raises NoUserNamespaces when we are root and the mapping does not work here."""
    front = prefix()
    if not front:
        return
    remedy = "run segue as an ordinary user, or work in the docker image htcondor/mini"
    if shutil.which(front[0]) is None:
        raise NoUserNamespaces(
            f"as root the embedded pool needs the program unshare (package util-linux): install it, or {remedy}"
        )
    tried = subprocess.run([*front, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        said = tried.stderr.strip().splitlines()
        raise NoUserNamespaces(
            f"as root the embedded pool needs a user namespace, and there is none here ({said[-1] if said else 'unshare failed'}): {remedy}"
        )


def wrap(argv: Sequence[str]) -> list[str]:
    """The command as the pool's ordinary user."""
    return [*prefix(), *argv]
