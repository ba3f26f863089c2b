"""Where HTCondor's programs are: an installation on PATH that can run a whole pool, or one fetched into the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dagman.pool.fetch import BrokenInstallation, Report, Software, fetch, quiet

# Debian's newest with HTCondor 25 first; trixie has 23.9.
SUITES = ("forky", "trixie")
_DAEMONS = ("master", "collector", "negotiator", "schedd", "startd", "starter", "shadow")
_TOOLS = ("submit", "dagman", "q", "vacate_job")
HTCONDOR = Software(
    "htcondor",
    ("condor",),
    homes=("usr/bin", "usr/sbin", "usr/libexec/condor", "usr/lib/condor"),
    programs=(*(f"usr/sbin/condor_{name}" for name in _DAEMONS), *(f"usr/bin/condor_{name}" for name in _TOOLS)),
)


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


def find(suites: Sequence[str] | None = None, report: Report = quiet) -> Installation:
    """The HTCondor to use: with no suites asked for, the one on PATH if it is whole; else a fetched one.

    Raises NoPackages (nothing can be fetched here), BrokenInstallation.
    """
    if suites is None and (present := on_path()) is not None:
        return present
    return fetched(suites or SUITES, report)


def on_path() -> Installation | None:
    """The HTCondor on PATH when it can run a whole pool; an access point's tools alone are not enough."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    if shutil.which("condor_master", path=places) is None or shutil.which("condor_config_val") is None:
        return None
    names = ("RELEASE_DIR", "BIN", "SBIN", "LIB", "LIBEXEC")
    asked = subprocess.run(["condor_config_val", *names], capture_output=True, text=True, check=False)
    values = asked.stdout.split()
    if asked.returncode != 0 or len(values) != len(names):
        return None
    told = dict(zip(names, values, strict=True))
    if not all((Path(told["SBIN"]) / f"condor_{name}").exists() for name in _DAEMONS):
        return None
    programs = Path(told["BIN"])
    return Installation(
        programs, Path(told["SBIN"]), Path(told["LIBEXEC"]), tuple(told.items()), _version(programs), "PATH"
    )


def fetched(suites: Sequence[str], report: Report = quiet) -> Installation:
    """HTCondor of the first of the suites that the cache has or a mirror gives. Raises as `dagman.pool.fetch.fetch`."""
    prefix = fetch(HTCONDOR, suites, report)
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
    environment = {**os.environ, "CONDOR_CONFIG": "ONLY_ENV"}
    asked = subprocess.run(
        [str(programs / "condor_version")], capture_output=True, text=True, env=environment, check=False
    )
    found = re.search(r"CondorVersion: (\S+)", asked.stdout)
    if asked.returncode != 0 or found is None:
        said = (asked.stderr or asked.stdout).strip().splitlines()
        raise BrokenInstallation(f"{programs}/condor_version does not run: {said[0] if said else 'no message'}")
    return found[1]
