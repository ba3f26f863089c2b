"""Camera images without a screen: Mesa's EGL, the machine's own, else Debian's of the machine's own release, in the user's cache.

Nothing is installed: the libraries are unpacked, and found by three variables in the environment of the programs that render.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from agent.errors import SegueError
from dagman.pool.apt import ARCHITECTURES, NoPackages, PrivateApt, architecture, mirrors
from dagman.pool.fetch import cache_directory, locked

_PACKAGES = ("libegl1", "libegl-mesa0", "libgl1-mesa-dri", "libgl1")
# The machine's own, which a running Python has loaded already.
_OWN = ("libc6", "libc-bin", "gcc-", "libgcc-s1", "libcrypt1")
_TRY = "from jobs.reference.reacher import Arm\nwith Arm(True) as arm:\n    arm.image()\n"


def environment(say: Callable[[str], None]) -> dict[str, str]:
    """What is to be added to the environment so that frames can be rendered; empty where they can be already.

    Raises SegueError with the simulator's own sentence when they cannot be had.
    """
    more = {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    problem = _problem(more)
    if not problem:
        return more
    say("no EGL on this machine: fetching Mesa's libraries into the user's cache")
    try:
        more |= _variables(_fetched(say))
    except (NoPackages, OSError) as error:
        raise SegueError(f"{problem} ({error})") from error
    problem = _problem(more)
    if problem:
        raise SegueError(problem)
    return more


def _problem(more: dict[str, str]) -> str:
    """The last line of a program that renders one frame, empty when it could."""
    done = subprocess.run(
        [sys.executable, "-c", _TRY], env={**os.environ, **more}, capture_output=True, text=True, check=False
    )
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines[-1] if lines else "no camera images can be rendered here")


def _fetched(say: Callable[[str], None]) -> Path:
    release = platform.freedesktop_os_release()
    suite = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not suite:
        raise NoPackages("Mesa's libraries are fetched on Debian only")
    place = cache_directory() / "egl" / suite
    with locked(place.parent):
        if place.is_dir():
            return place
        architecture()
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".apt-") as temporary:
            apt = PrivateApt(Path(temporary) / "apt", mirrors()[0], suite)
            (Path(temporary) / "apt").mkdir()
            apt.update()
            wanted = [one for one in apt.resolve(*_PACKAGES) if not one.name.startswith(_OWN)]
            apt.unpack(wanted, Path(temporary) / "unpacked", say)
            shutil.move(Path(temporary) / "unpacked", place)
    return place


def _variables(place: Path) -> dict[str, str]:
    libraries = place / "usr" / "lib" / ARCHITECTURES[architecture()][0]
    paths = [str(libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(paths),
        "LIBGL_DRIVERS_PATH": str(libraries / "dri"),
        "__EGL_VENDOR_LIBRARY_DIRS": str(place / "usr" / "share" / "glvnd" / "egl_vendor.d"),
    }
