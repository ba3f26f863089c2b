"""Where HTCondor's programs are: an installation on PATH, or one fetched into the cache.

A fetched one is complete or absent: it is unpacked and relocated under a temporary name and then renamed, under a lock, so
that two first starts at once fetch it once.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.errors import SegueError
from dagman.pool.apt import ARCHITECTURES, NoPackages, Package, PrivateApt, architecture, mirrors
from dagman.pool.relocate import missing_libraries, objects, relocate

SUITES = ("forky", "trixie")
# Only maintainer scripts, Python, Perl and web pages need these; the daemons do not.
_UNNEEDED = re.compile(r"lib(python|perl|js-|date-manip|semanage|sepol|systemd-shared|debconf|gdbm|c-gconv|.*-common$)")
_DAEMONS = (
    "condor_master",
    "condor_collector",
    "condor_negotiator",
    "condor_schedd",
    "condor_startd",
    "condor_starter",
    "condor_shadow",
)
_TOOLS = ("condor_submit", "condor_submit_dag", "condor_dagman", "condor_q", "condor_vacate_job", "condor_dag_checker")


class BrokenInstallation(SegueError):
    """HTCondor's programs are there but do not run."""


@dataclass(frozen=True)
class Installation:
    """Directories of one HTCondor. `settings` are lines for its configuration; `source` says where it came from."""

    bin: Path
    sbin: Path
    libexec: Path
    settings: tuple[tuple[str, str], ...]
    version: str
    source: str

    def search_path(self, before: str) -> str:
        """PATH with HTCondor's programs in front."""
        return os.pathsep.join(dict.fromkeys([str(self.bin), str(self.sbin), *before.split(os.pathsep)]))


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/segue` or `~/.cache/segue`."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "segue"


def find(suites: Sequence[str] | None = None, report: Callable[[str], None] = lambda _: None) -> Installation:
    """The HTCondor to use: with no suites asked for, the one on PATH if it is whole; else a fetched one.

    Raises NoPackages (nothing can be fetched here), BrokenInstallation.
    """
    if suites is None and (present := on_path()) is not None:
        return present
    return fetched(suites or SUITES, report)


def on_path() -> Installation | None:
    """The HTCondor on PATH when it can run a whole pool; an access point's tools alone are not enough."""
    master = shutil.which("condor_master", path=_path_with_sbin())
    if master is None or shutil.which("condor_submit") is None:
        return None
    names = ("RELEASE_DIR", "BIN", "SBIN", "LIB", "LIBEXEC")
    asked = subprocess.run(["condor_config_val", *names], capture_output=True, text=True, check=False)
    values = asked.stdout.split()
    if asked.returncode != 0 or len(values) != len(names):
        return None
    places = dict(zip(names, values, strict=True))
    sbin, libexec = Path(places["SBIN"]), Path(places["LIBEXEC"])
    if not all((sbin / name).exists() for name in _DAEMONS):
        return None
    return Installation(
        Path(places["BIN"]), sbin, libexec, tuple(places.items()), _version(Path(places["BIN"])), "PATH"
    )


def fetched(suites: Sequence[str], report: Callable[[str], None] = lambda _: None) -> Installation:
    """The first of the suites that the cache has or the mirror gives. Raises NoPackages with every suite's reason."""
    cache = cache_directory() / "htcondor"
    with _locked(cache):
        for suite in suites:
            kept = sorted(cache.glob(f"{suite}-*"), key=lambda path: path.stat().st_mtime)
            if kept:
                return _described(kept[-1])
        name = architecture()
        reasons = []
        for suite in suites:
            for mirror in mirrors():
                try:
                    return _fetch(cache, mirror, suite, name, report)
                except NoPackages as error:
                    reasons.append(str(error))
    raise NoPackages(" | ".join(reasons))


def _fetch(cache: Path, mirror: str, suite: str, arch: str, report: Callable[[str], None]) -> Installation:
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as temporary:
        apt = PrivateApt(Path(temporary), mirror, suite)
        apt.update()
        packages = apt.resolve("condor")
        version = next(package.version for package in packages if package.name == "condor")
        final = cache / f"{suite}-{version}"
        unpacked = Path(temporary) / "prefix"
        apt.unpack([package for package in packages if _needed(package)], unpacked, report)
        libraries, loader = ARCHITECTURES[arch]
        search = [final / "usr/lib", final / f"usr/lib/{libraries}", final / f"usr/lib/{libraries}/condor"]
        inside = [unpacked / place.relative_to(final) for place in search]
        homes = [unpacked / name for name in ("usr/bin", "usr/sbin", "usr/libexec/condor", "usr/lib/condor")]
        own = [path for path in inside[0].glob("lib*.so*") if not path.is_symlink()]
        relocate([*objects(homes), *own], search[1] / loader, search)
        programs = [unpacked / "usr/sbin" / name for name in _DAEMONS] + [
            unpacked / "usr/bin" / name for name in _TOOLS[:4]
        ]
        lacking = missing_libraries((path for path in programs if path.exists()), inside)
        if lacking:
            raise BrokenInstallation(
                f"condor {version} of {suite} needs {', '.join(lacking)}, which its packages did not bring"
            )
        for name in ("doc", "man", "locale", "lintian"):
            shutil.rmtree(unpacked / "usr/share" / name, ignore_errors=True)
        unpacked.rename(final)
        unpacked.mkdir()
    try:
        made = _described(final)
    except BrokenInstallation:
        shutil.rmtree(final)
        raise
    report(f"HTCondor {made.version} is in {final}")
    return made


def _needed(package: Package) -> bool:
    return package.name == "condor" or (package.name.startswith(("lib", "zlib")) and not _UNNEEDED.match(package.name))


def _described(prefix: Path) -> Installation:
    usr = prefix / "usr"
    libexec = next((path for path in (usr / "libexec/condor", usr / "lib/condor/libexec") if path.is_dir()), None)
    if libexec is None:
        raise BrokenInstallation(f"{prefix} holds no HTCondor: remove this directory and try again")
    settings = {
        "RELEASE_DIR": usr,
        "BIN": usr / "bin",
        "SBIN": usr / "sbin",
        "LIB": usr / "lib/condor",
        "LIBEXEC": libexec,
        "SHARE": usr / "share/condor",
        "ETC": prefix / "etc/condor",
    }
    lines = tuple((key, str(value)) for key, value in settings.items())
    return Installation(usr / "bin", usr / "sbin", libexec, lines, _version(usr / "bin"), prefix.name)


def _version(programs: Path) -> str:
    # ONLY_ENV: asking for the version must not need a configuration.
    done = subprocess.run(
        [str(programs / "condor_version")],
        capture_output=True,
        text=True,
        env={**os.environ, "CONDOR_CONFIG": "ONLY_ENV"},
        check=False,
    )
    found = re.search(r"CondorVersion: (\S+)", done.stdout)
    if done.returncode != 0 or found is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise BrokenInstallation(f"{programs}/condor_version does not run: {said[0] if said else 'no message'}")
    return found[1]


def _path_with_sbin() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / ".lock").open("w")
    except OSError as error:
        raise NoPackages(
            f"cannot keep HTCondor in {cache} ({error.strerror}): set XDG_CACHE_HOME to a writable directory"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
