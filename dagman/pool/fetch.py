"""Software of a Debian suite in the user's cache: fetched, unpacked, relocated, once.

A prefix is complete or absent: it is made under a temporary name and renamed, under a lock, so that two first starts at once
fetch it once. Its directory is named with suite and version; removing it makes the next start fetch the suite's newest.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.errors import SegueError
from dagman.pool.apt import ARCHITECTURES, NoPackages, Package, PrivateApt, architecture, mirrors
from dagman.pool.relocate import missing_libraries, objects, relocate

Report = Callable[[str], None]

# Libraries that only maintainer scripts, Python, Perl and web pages need; programs do not.
_UNNEEDED = re.compile(r"lib(python|perl|js-|date-manip|semanage|sepol|systemd-shared|debconf|gdbm|c-gconv|.*-common$)")


class BrokenInstallation(SegueError):
    """Fetched programs are there but do not run."""


def quiet(_: str) -> None:
    """A Report that says nothing."""


@dataclass(frozen=True)
class Software:
    """What to fetch. `packages`: the first gives the version, all are unpacked with the libraries that they need.

    `homes` are directories, `programs` files in the prefix whose programs are relocated; every library of `programs` must be
    there. `finish` arranges the unpacked files; it gets the temporary prefix.
    """

    name: str
    packages: tuple[str, ...]
    homes: tuple[str, ...]
    programs: tuple[str, ...]
    finish: Callable[[Path], None] = lambda _: None


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/segue` or `~/.cache/segue`."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "segue"


def fetch(software: Software, suites: Sequence[str], report: Report = quiet) -> Path:
    """Prefix of the software from the first of the suites that the cache has or a mirror gives.

    Raises NoPackages with every suite's reason, BrokenInstallation when libraries are missing.
    """
    cache = cache_directory() / software.name
    with locked(cache):
        for suite in suites:
            kept = sorted(cache.glob(f"{suite}-*"), key=lambda path: path.stat().st_mtime)
            if kept:
                return kept[-1]
        name = architecture()
        reasons = []
        for suite in suites:
            for mirror in mirrors():
                try:
                    return _fetch(software, cache, PlaceOfOrigin(mirror, suite, name), report)
                except NoPackages as error:
                    reasons.append(str(error))
    raise NoPackages(" | ".join(reasons))


@dataclass(frozen=True)
class PlaceOfOrigin:
    """Mirror, suite and architecture of what is fetched."""

    mirror: str
    suite: str
    architecture: str


def _fetch(software: Software, cache: Path, origin: PlaceOfOrigin, report: Report) -> Path:
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as temporary:
        apt = PrivateApt(Path(temporary), origin.mirror, origin.suite)
        apt.update()
        packages = apt.resolve(*software.packages)
        version = next(package.version for package in packages if package.name == software.packages[0])
        # Not the colon of an epoch: it separates the directories of an RPATH.
        final = cache / f"{origin.suite}-{version.replace(':', '_')}"
        unpacked = Path(temporary) / "prefix"
        apt.unpack([package for package in packages if _needed(package, software)], unpacked, report)
        libraries, loader = ARCHITECTURES[origin.architecture]
        search = [final / "usr/lib", final / "usr/lib" / libraries]
        inside = [unpacked / place.relative_to(final) for place in search]
        own = [path for path in inside[0].glob("lib*.so*") if not path.is_symlink()]
        programs = [unpacked / name.format(libraries=libraries) for name in software.programs]
        homes = (unpacked / name for name in software.homes)
        relocate(dict.fromkeys([*objects(homes), *own, *programs]), search[1] / loader, search)
        lacking = missing_libraries(programs, inside)
        if lacking:
            raise BrokenInstallation(
                f"{software.packages[0]} {version} of {origin.suite} needs {', '.join(lacking)}, which its packages did not bring"
            )
        software.finish(unpacked)
        for name in ("doc", "man", "locale", "lintian"):
            shutil.rmtree(unpacked / "usr/share" / name, ignore_errors=True)
        unpacked.rename(final)
    report(f"{software.name} {version} is in {final}")
    return final


def _needed(package: Package, software: Software) -> bool:
    if package.name in software.packages:
        return True
    return package.name.startswith(("lib", "zlib")) and not _UNNEEDED.match(package.name)


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """One process at a time works in a directory of the cache. Raises NoPackages when it cannot be written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / ".lock").open("w")
    except OSError as error:
        raise NoPackages(
            f"cannot keep files in {cache} ({error.strerror}): set XDG_CACHE_HOME to a writable directory"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
