"""A real sshd on loopback, as a transfer host: own keys, own account, own PATH, a child that ends with the test.

rsync and sshd are those on PATH, else Debian's, fetched into the user's cache like HTCondor. As root the server runs in namespaces that map
root to an ordinary user `bbadger` with a home of the test's: it sees the rights of files as such a user does.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.errors import SegueError
from dagman.pool.fetch import Software, fetch

SOFTWARE = Software(
    "ssh",
    ("openssh-server", "openssh-client", "openssh-sftp-server", "rsync"),
    homes=("usr/lib/openssh",),
    programs=("usr/sbin/sshd", "usr/bin/ssh", "usr/bin/ssh-keygen", "usr/bin/rsync"),
)
SUITES = ("trixie",)
HOST = "transfer.example.edu"
USER = "bbadger"
_ORDINARY = 1000
_DEADLINE_S = 20.0
# What a plain Linux host has; rsync comes beside.
_TOOLS = [
    "sh",
    "cat",
    "mkdir",
    "find",
    "awk",
    "sed",
    "df",
    "wc",
    "tr",
    "mv",
    "rm",
    "sync",
    "dirname",
    "sha256sum",
    "tail",
    "od",
]


class NoServer(Exception):
    """Why there can be none on this machine."""


@dataclass(frozen=True)
class Programs:
    """Absolute paths."""

    ssh: Path
    keygen: Path
    sshd: Path
    rsync: Path
    helpers: Path | None


def find_programs() -> Programs:
    """From PATH, else fetched. Raises NoServer with one sentence."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = [shutil.which(name, path=places) for name in ("ssh", "ssh-keygen", "sshd", "rsync")]
    if all(found):
        ssh, keygen, sshd, rsync = (Path(path) for path in found if path is not None)
        return Programs(ssh, keygen, sshd, rsync, None)
    try:
        usr = fetch(SOFTWARE, SUITES) / "usr"
    except SegueError as error:
        raise NoServer(f"sshd and rsync are not on PATH and cannot be fetched: {error}") from error
    return Programs(usr / "bin/ssh", usr / "bin/ssh-keygen", usr / "sbin/sshd", usr / "bin/rsync", usr / "lib/openssh")


@dataclass
class Server:
    """A running one. ``bin`` is its PATH, ``client_bin`` goes before the client's; ``small``: a file system of 2 MB, None without namespaces."""

    root: Path
    programs: Programs
    port: int
    user: str
    small: Path | None
    process: subprocess.Popen[bytes] | None = None

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def log(self) -> str:
        return (self.root / "sshd.log").read_text(errors="replace")

    def ssh(self) -> str:
        """The value of SEGUE_SSH."""
        return f"{self.programs.ssh} -F {self.root / 'ssh_config'}"

    @contextlib.contextmanager
    def replaced(self, tool: str, text: str | None) -> Iterator[None]:
        """For a while a program of the host is another one, or (None) not there."""
        path = self.bin / tool
        aside = path.with_name(f".{tool}")
        there = os.path.lexists(path)
        if there:
            path.rename(aside)
        if text is not None:
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if there:
                aside.rename(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write(root: Path, programs: Programs, port: int, user: str) -> None:
    for name in ("host_key", "user_key"):
        command = [programs.keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", root / name]
        subprocess.run(command, check=True, capture_output=True)
    shutil.copy(root / "user_key.pub", root / "authorized_keys")
    (root / "home").mkdir()
    (root / "bin").mkdir()
    for tool in _TOOLS:
        path = shutil.which(tool)
        if path is None:
            raise NoServer(f"{tool} is not on PATH")
        (root / "bin" / tool).symlink_to(path)
    (root / "bin" / "rsync").symlink_to(programs.rsync)
    (root / "passwd").write_text(
        f"root:x:0:0:root:/root:/bin/sh\n{USER}:x:{_ORDINARY}:{_ORDINARY}::{root}/home:/bin/sh\n"
    )
    helpers = programs.helpers
    lines = [
        "ListenAddress 127.0.0.1",
        f"Port {port}",
        f"HostKey {root}/host_key",
        f"AuthorizedKeysFile {root}/authorized_keys",
        "PidFile none",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        f"SetEnv PATH={root}/bin",
        *([f"SshdSessionPath {helpers}/sshd-session", f"SshdAuthPath {helpers}/sshd-auth"] if helpers else []),
    ]
    (root / "sshd_config").write_text("\n".join(lines) + "\n")
    client = [
        f"Host {HOST}",
        "HostName 127.0.0.1",
        f"Port {port}",
        f"User {user}",
        f"IdentityFile {root}/user_key",
        "Host *",
        "IdentitiesOnly yes",
        "IdentityAgent none",
        "BatchMode yes",
        "GlobalKnownHostsFile /dev/null",
        f"UserKnownHostsFile {root}/known_hosts",
        f"HostKeyAlias {HOST}",
    ]
    (root / "ssh_config").write_text("\n".join(client) + "\n")
    key = (root / "host_key.pub").read_text()
    (root / "known_hosts").write_text(f"{HOST} {key}")


def _mapping() -> list[str] | None:
    """Words before sshd: namespaces with another account, None where the kernel forbids them."""
    front = ["unshare", "--user", "--mount", "--map-root-user", "--"]
    if shutil.which("unshare") is None or subprocess.run([*front, "true"], capture_output=True).returncode != 0:
        return None
    return front


@contextlib.contextmanager
def running(root: Path) -> Iterator[Server]:
    """Start one whose files are in ``root``; NoServer says why not."""
    programs, port, front = find_programs(), _free_port(), _mapping()
    if front is None and os.geteuid() == 0:
        raise NoServer("as root sshd needs user namespaces here, and there are none")
    user = USER if front is not None else pwd.getpwuid(os.geteuid()).pw_name
    _write(root, programs, port, user)
    small = root / "small" if front is not None else None
    command = [str(programs.sshd), "-D", "-e", "-f", str(root / "sshd_config")]
    if front is not None:
        (root / "small").mkdir()
        script = (
            f'mount --bind "$1/passwd" /etc/passwd && mount -t tmpfs -o size=2m,mode=0755 none "$1/small" && shift && '
            f'exec unshare --user --map-user={_ORDINARY} --map-group={_ORDINARY} -- "$@"'
        )
        command = [*front, "sh", "-c", script, "sh", str(root), *command]
    with (root / "sshd.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        _await(process, port, root / "sshd.log")
        yield Server(root, programs, port, user, small, process)
    finally:
        process.terminate()
        process.wait()


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _DEADLINE_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.02)
    said = log.read_text(errors="replace").strip().splitlines()
    raise NoServer(f"sshd does not start: {said[-1] if said else 'no message'}")
