"""Packages from the machine's own apt mirror, without touching the machine: private lists, private cache, empty status.

Root is not needed and nothing is installed: packages are resolved, downloaded (apt verifies signatures and checksums) and
unpacked into a directory. The mirror is whatever apt is configured with; only the suite is ours.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import SegueError

# Debian architecture -> (directory of its libraries, its program loader)
ARCHITECTURES = {
    "amd64": ("x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
    "arm64": ("aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
}
REMEDY = (
    "install HTCondor (Debian and Ubuntu: apt-get install condor, or htcondor) or work in the docker image htcondor/mini; "
    "segue uses the condor_master that it finds on PATH"
)

_INST = re.compile(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ")


class NoPackages(SegueError):
    """Packages cannot be fetched on this machine; the message says why and what to do instead."""


@dataclass(frozen=True)
class Package:
    """A package and the version that apt chose."""

    name: str
    version: str


def architecture() -> str:
    """This machine's Debian architecture.

    Raises NoPackages without apt, and on an architecture for which relocation is not known.
    """
    for tool in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(tool) is None:
            raise NoPackages(f"{tool} is not on this machine, so no HTCondor can be fetched: {REMEDY}")
    name = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise NoPackages(f"the architecture {name} is not supported by the embedded pool ({known} are): {REMEDY}")
    return name


def mirrors() -> list[str]:
    """Addresses of the archives that apt is configured with, the distribution's main archive first."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True, check=False
    )
    found = list(dict.fromkeys(line.strip().rstrip("/") for line in done.stdout.splitlines() if line.strip()))
    main = [site for site in found if site.endswith("/debian")]
    rest = [site for site in found if site not in main and "security" not in site]
    if not main + rest:
        raise NoPackages(
            f"apt has no package source (apt-get indextargets shows none), so no mirror is known: {REMEDY}"
        )
    return main + rest


class PrivateApt:
    """apt with one suite of one mirror, all of its state in `directory`."""

    def __init__(self, directory: Path, mirror: str, suite: str) -> None:
        self.directory = directory
        self.mirror = mirror
        self.suite = suite
        self._configuration = directory / "apt.conf"

    def update(self) -> None:
        """Fetch the suite's package lists (about 10 MB). Raises NoPackages when the mirror does not give them."""
        for name in ("lists/partial", "archives/partial", "debs"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        (self.directory / "sources.list").write_text(f"deb {self.mirror} {self.suite} main\n")
        self._configuration.write_text(self._settings())
        done = self._apt("apt-get", "update", "-o", "APT::Update::Error-Mode=any")
        if done.returncode != 0:
            raise NoPackages(self._explained(done.stderr))

    def resolve(self, *names: str) -> list[Package]:
        """The packages and everything that they depend on. Raises NoPackages when the suite does not have one."""
        done = self._apt("apt-get", "install", "--simulate", *names)
        if done.returncode != 0:
            raise NoPackages(
                f"the suite {self.suite} has no installable package {' or '.join(names)}: {_last(done.stderr)}"
            )
        matches = (_INST.match(line) for line in done.stdout.splitlines())
        return [Package(match[1], match[2]) for match in matches if match]

    def unpack(self, packages: Sequence[Package], target: Path, report: Callable[[str], None] = lambda _: None) -> None:
        """Download the packages and unpack their files into `target`; no maintainer script runs."""
        report(f"fetching {len(packages)} packages of {self.suite}")
        wanted = [f"{package.name}={package.version}" for package in packages]
        done = self._apt("apt-get", "download", *wanted, cwd=self.directory / "debs")
        if done.returncode != 0:
            raise NoPackages(self._explained(done.stderr))
        target.mkdir(parents=True, exist_ok=True)
        for archive in sorted((self.directory / "debs").glob("*.deb")):
            extracted = subprocess.run(["dpkg", "-x", str(archive), str(target)], capture_output=True, text=True)
            if extracted.returncode != 0:
                raise NoPackages(f"cannot unpack {archive.name} into {target}: {_last(extracted.stderr)}")

    def _settings(self) -> str:
        here = self.directory
        return "\n".join(
            [
                # What the machine's own apt does after an update is meant for the machine's own lists.
                "#clear APT::Update::Post-Invoke;",
                "#clear APT::Update::Post-Invoke-Success;",
                f'Dir::State::lists "{here}/lists";',
                f'Dir::State::status "{here}/status";',
                f'Dir::Cache "{here}";',
                f'Dir::Cache::archives "{here}/archives";',
                f'Dir::Etc::sourcelist "{here}/sources.list";',
                'Dir::Etc::sourceparts "-";',
                'Dir::Etc::preferences "-";',
                'Dir::Etc::preferencesparts "-";',
                'Acquire::Languages "none";',
                'Acquire::Retries "2";',
                'Acquire::http::Timeout "30";',
                'APT::Install-Recommends "false";',
                # The lists lie in the user's own cache, which apt's sandbox user cannot read.
                'APT::Sandbox::User "";' if os.geteuid() != 0 else 'APT::Sandbox::User "root";',
                "",
            ]
        )

    def _apt(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        tool, *rest = command
        # `--config-file` is read after the machine's own settings (proxy, keys), so that ours win.
        return subprocess.run(
            [tool, f"--config-file={self._configuration}", *rest],
            capture_output=True,
            text=True,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            check=False,
        )

    def _explained(self, stderr: str) -> str:
        if "NO_PUBKEY" in stderr or "not signed" in stderr or "signature" in stderr.lower():
            return f"apt does not trust {self.suite} at {self.mirror} ({_last(stderr)}): install debian-archive-keyring, or {REMEDY}"
        if "does not have a Release file" in stderr:
            return f"{self.mirror} has no suite {self.suite}: {REMEDY}"
        return f"cannot fetch {self.suite} from {self.mirror} ({_last(stderr)}): is there a network? Otherwise {REMEDY}"


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")] or lines
    return errors[0][:300] if errors else "no message"
