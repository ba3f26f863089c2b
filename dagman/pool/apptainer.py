"""Apptainer for the embedded pool, without root: jobs run in containers there as they do on a real pool.

The one on PATH is used when there is one, else Debian's package, unpacked and relocated like HTCondor. Relocated, it looks for
its configuration and session directories relative to its programs; links and empty directories put them there, and a
wrapper puts its companions (unsquashfs, debootstrap) on PATH.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import SegueError
from dagman.pool.apt import mirrors
from dagman.pool.fetch import Report, Software, cache_directory, fetch, quiet

# Debian keeps Apptainer out of its releases.
SUITES = ("sid",)
_PROGRAMS = (
    "usr/bin/apptainer",
    "usr/bin/mksquashfs",
    "usr/bin/unsquashfs",
    "usr/lib/{libraries}/apptainer/bin/starter",
)
_IDS = "0 0 65536\n"


# HTCondor's starter calls it by its absolute path, with a PATH of the starter's own.
_WRAPPER = """#!/bin/sh
usr=${0%/*}/usr
PATH=$PATH:/usr/sbin:/sbin:$usr/sbin:$usr/bin
DEBOOTSTRAP_DIR=$usr/share/debootstrap
export PATH DEBOOTSTRAP_DIR
exec "$usr/bin/apptainer" "$@"
"""


class CannotBuild(SegueError):
    """An image could not be built; the message quotes the builder."""


def _arrange(prefix: Path) -> None:
    usr = prefix / "usr"
    (usr / "etc").symlink_to("../etc")
    (usr / "lib/etc").symlink_to("../../etc")
    for base in (usr, usr / "lib"):
        (base / "var/lib/apptainer/mnt/session").mkdir(parents=True)
    wrapper = prefix / "apptainer"
    wrapper.write_text(_WRAPPER)
    wrapper.chmod(0o755)


APPTAINER = Software(
    "apptainer",
    ("apptainer", "squashfs-tools", "debootstrap"),
    homes=(),
    programs=_PROGRAMS,
    finish=_arrange,
)


@dataclass(frozen=True)
class Apptainer:
    """The program, by its absolute path."""

    program: Path

    def build(
        self, definition: Path, target: Path, arguments: Mapping[str, str] | None = None, report: Report = quiet
    ) -> None:
        """Build an image from a definition file: a sandbox directory, or one file when `target` ends in .sif.

        `target` appears whole or not at all. As root the build runs in a user namespace that maps all ids, which gives the
        capabilities that a container lacks. Raises CannotBuild.
        """
        if not definition.is_file():
            raise CannotBuild(f"there is no definition file {definition}")
        target.parent.mkdir(parents=True, exist_ok=True)
        told = [f"--build-arg={name}={value}" for name, value in (arguments or {}).items()]
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as temporary:
            image = Path(temporary) / target.name
            work = Path(temporary) / "tmp"
            work.mkdir()
            sandbox = [] if target.suffix == ".sif" else ["--sandbox"]
            command = [str(self.program), "build", *sandbox, *told, str(image), str(definition.resolve())]
            log = target.parent / f"{target.name}.log"
            report(f"building {target.name} from {definition.name}; the builder's words: {log}")
            environment = {**os.environ, "APPTAINER_TMPDIR": str(work), "TMPDIR": str(work)}
            with log.open("wb") as output:
                code = _mapped(command, environment, output.fileno())
            if code != 0 or not image.exists():
                raise CannotBuild(f"apptainer build of {definition} failed ({code}): {_why(log)}; see {log}")
            image.rename(target)


def find(report: Report = quiet) -> Apptainer:
    """The Apptainer to use: the one on PATH, else a fetched one. Raises NoPackages, BrokenInstallation."""
    present = shutil.which("apptainer")
    if present is not None:
        return Apptainer(Path(present))
    return Apptainer(fetch(APPTAINER, SUITES, report) / "apptainer")


def container_config(apptainer: Apptainer, binds: Mapping[Path, str]) -> dict[str, str]:
    """HTCondor parameters for `universe = container`: host directory -> its place in the container, writable."""
    pairs = ",".join(f"{host}:{inside}" for host, inside in binds.items())
    return {
        "SINGULARITY": str(apptainer.program),
        # Not the set-user-id starter, which needs root's installation.
        "SINGULARITY_EXTRA_ARGUMENTS": "--userns",
        "SINGULARITY_RUN_TEST_BEFORE_JOB": "False",
        "SINGULARITY_BIND_EXPR": f'"{pairs}"' if pairs else "",
        # Debian's HTCondor lacks the image that it would try; without FUSE Apptainer unpacks a .sif for each job.
        "STARTD_ATTRS": "$(STARTD_ATTRS) HasSIF",
        "HasSIF": "True",
    }


def mirror_arguments() -> dict[str, str]:
    """Build arguments for a definition that starts from a Debian mirror: the one that apt is configured with."""
    return {"MIRROR": mirrors()[0]}


def sandbox(definition: Path, report: Report = quiet) -> Path:
    """A sandbox directory built from a definition file, kept in the cache by the definition's content.

    Raises CannotBuild, and as `find`.
    """
    from hashlib import sha256

    from dagman.pool.fetch import locked

    text = definition.read_bytes()
    images = cache_directory() / "images"
    kept = images / f"{definition.stem}-{sha256(text).hexdigest()[:12]}"
    with locked(images):
        if not kept.is_dir():
            find(report).build(definition, kept, mirror_arguments() if b"{{ MIRROR }}" in text else {}, report)
    return kept


@contextlib.contextmanager
def _builder(
    command: Sequence[str], environment: Mapping[str, str], said: int, output: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, with all that it started: what it makes is removed then, and it would go on making it."""
    with subprocess.Popen(
        command, env=dict(environment), stdin=said, stdout=output, stderr=output, start_new_session=True
    ) as builder:
        try:
            yield builder
        finally:
            if builder.poll() is None:
                os.killpg(builder.pid, signal.SIGKILL)


def _mapped(command: Sequence[str], environment: Mapping[str, str], output: int) -> int:
    """Run a build; as root in a user and mount namespace with every id mapped to itself. Its exit code."""
    if os.geteuid() != 0:
        with _builder(command, environment, subprocess.DEVNULL, output) as builder:
            return builder.wait()
    # The shell waits until we have written the maps, then becomes the builder: a program started before them has no rights.
    waiting = ["unshare", "--user", "--mount", "--", "sh", "-c", 'read -r _ && exec "$@"', "sh", *command]
    # debootstrap makes no device nodes when it is told that it runs in such a namespace.
    told = {**environment, "container": "mmdebstrap-unshare"}
    with _builder(waiting, told, subprocess.PIPE, output) as builder:
        assert builder.stdin is not None
        here = Path("/proc/self/ns/user").readlink()
        while builder.poll() is None and Path(f"/proc/{builder.pid}/ns/user").readlink() == here:
            time.sleep(0.01)
        with contextlib.suppress(OSError):
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{builder.pid}/{name}").write_text(_IDS)
            builder.stdin.write(b"\n")
            builder.stdin.close()
        return builder.wait()


def _why(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if "FATAL" in line or line.startswith("E:")]
    return (wrong or lines or ["no message"])[-1]
