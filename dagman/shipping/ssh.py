"""One ssh connection for everything that a command does on a host: a password or a second factor is asked for once.

The master is a child that reads from us: it ends with us, however we end, and leaves nothing behind. Scripts travel by standard input, so
that whatever login shell the account has quotes nothing. SEGUE_SSH replaces the program `ssh`, options included.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

from agent.errors import BadInput, SegueError

VARIABLE = "SEGUE_SSH"
_LOST = 255
# A dead line is noticed after two minutes; a host that does not answer after half a minute.
_OPTIONS = ("-x", "-a", "-T", "-o", "ClearAllForwardings=yes", "-o", "ConnectTimeout=30")
_ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8")


class CannotConnect(SegueError):
    """The host cannot be reached, or does not let the user in."""


class Lost(SegueError):
    """The connection broke while it was used."""


def program() -> list[str]:
    """The words of ssh itself: $SEGUE_SSH split as a shell would, else `ssh`."""
    given = os.environ.get(VARIABLE, "").strip()
    try:
        return shlex.split(given) or ["ssh"]
    except ValueError as error:
        raise BadInput(f"{VARIABLE}: {given!r} cannot be split into words ({error})") from error


def plain_environment() -> dict[str, str]:
    """Messages in the language that we look for."""
    return {**os.environ, "LC_ALL": "C"}


class Connection:
    """A context: opened on entry, all its processes ended on exit. ``host``: [user@]host or a name of ssh's configuration."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._words = [*program(), *_OPTIONS, *_ALIVE]
        self._shared: list[str] = []
        self._master: subprocess.Popen[str] | None = None
        self._said: IO[str] | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Connection:
        with contextlib.ExitStack() as undo:
            undo.callback(self._close)
            self._open()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def words(self) -> list[str]:
        """ssh and its options, without the host: for programs that start ssh themselves."""
        return [*self._words, *self._shared]

    def _open(self) -> None:
        if self._user_has_one():
            return
        # A socket's path has room for some hundred bytes: not below the user's own, possibly long, directories.
        try:
            directory = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="segue-", dir="/tmp"))
        except OSError as error:
            raise SegueError(
                f"/tmp: cannot be written ({error.strerror}): ssh's shared connection needs a socket there"
            ) from error
        path = Path(directory) / "s"
        self._said = self._closing.enter_context(tempfile.TemporaryFile("w+", errors="replace"))  # noqa: SIM115  (as long as we live)
        master = [*self._words, "-o", "ControlMaster=yes", "-o", f"ControlPath={path}", "-o", "ControlPersist=no"]
        try:
            self._master = subprocess.Popen(
                [*master, self.host, "cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                errors="replace",
                env=plain_environment(),
            )
        except OSError as error:
            raise _no_program(error) from error
        if not self._answers():
            code = self._master.wait()
            self._said.seek(0)
            raise refused(self.host, self._said.read(), code)
        self._shared = ["-o", "ControlMaster=no", "-o", f"ControlPath={path}"]

    def _user_has_one(self) -> bool:
        """Whether the user's own configuration shares a connection that is open already."""
        try:
            asked = subprocess.run(
                [*self._words, "-O", "check", self.host],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        except OSError as error:
            raise _no_program(error) from error
        return asked.returncode == 0

    def _answers(self) -> bool:
        """Wait, for as long as a person needs to type, until the other end repeats a word; False when the connection ended."""
        assert self._master is not None and self._master.stdin is not None and self._master.stdout is not None
        token = f"segue-{secrets.token_hex(8)}"
        try:
            self._master.stdin.write(f"{token}\n")
            self._master.stdin.flush()
        except BrokenPipeError:
            return False
        return any(token in line for line in self._master.stdout)

    def _close(self) -> None:
        if self._master is not None:
            with contextlib.suppress(OSError):
                if self._master.stdin is not None:
                    self._master.stdin.close()
            try:
                self._master.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._master.terminate()
                self._master.wait()
            if self._master.stdout is not None:
                self._master.stdout.close()
            self._master = None
        self._closing.close()

    def run(self, script: str) -> list[str]:
        """Run a script with the host's /bin/sh; the lines it printed. CannotConnect, Lost, SegueError with its last words when it fails."""
        begin = f"segue-{secrets.token_hex(8)}"
        try:
            done = subprocess.run(
                [*self.words, self.host, "/bin/sh"],
                input=f"echo {begin}\n{script}\nexit 0\n".encode("utf-8", "surrogateescape"),
                capture_output=True,
                env=plain_environment(),
                check=False,
            )
        except OSError as error:
            raise _no_program(error) from error
        out = done.stdout.decode("utf-8", "surrogateescape")
        said = done.stderr.decode("utf-8", "replace")
        # What a login shell prints by itself stands before our own first line.
        _, found, printed = out.partition(f"{begin}\n")
        if done.returncode == _LOST or not found:
            raise lost(self.host, said) if self._shared else refused(self.host, said, done.returncode)
        if done.returncode != 0:
            raise SegueError(f"{self.host}: {last_line(said) or f'a command ended with exit {done.returncode}'}")
        return printed.splitlines()


def _no_program(error: OSError) -> SegueError:
    return SegueError(
        f"{program()[0]}: cannot be started ({error.strerror}): install OpenSSH's client (Debian: openssh-client), or name it in {VARIABLE}"
    )


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def lost(host: str, said: str) -> Lost:
    """An established connection ended."""
    return Lost(
        f"{host}: the connection broke ({last_line(said) or 'no message'}): run the same command again, it goes on from there"
    )


# What ssh prints -> what to say, in this order: it prints several lines.
_REASONS: tuple[tuple[str, str], ...] = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that ssh knows: ask the site whether it changed",
    ),
    (
        "Host key verification failed",
        "ssh does not know its host key: connect once by hand (ssh {host}) and compare it",
    ),
    ("Too many authentication failures", "ssh offered too many keys: name one with IdentityFile in ~/.ssh/config"),
    (
        "Permission denied",
        "it does not let {who} in: correct `user` (your netid there) in run.toml, or check your key or password",
    ),
    (
        "Connection refused",
        "it refuses the connection: it is down, or listens on another port ({variable}='ssh -p PORT')",
    ),
    ("Connection timed out", "it does not answer: check the network, or the site's VPN"),
    ("Operation timed out", "it does not answer: check the network, or the site's VPN"),
    ("No route to host", "it cannot be reached: check the network, or the site's VPN"),
    ("Network is unreachable", "it cannot be reached: check the network, or the site's VPN"),
)


def refused(host: str, said: str, code: int) -> SegueError:
    """Why ssh did not get in, as a sentence that names what to change."""
    line = last_line(said)
    if "Could not resolve hostname" in said:
        return BadInput(f"{host}: no host of this name: correct `transfer_host` in run.toml, or check the network")
    if "onfiguration option" in said or "onfig file" in said:
        return BadInput(f"{VARIABLE}: ssh refuses its own options: {line}")
    if code == 127 or (code != _LOST and "not found" in said):
        return CannotConnect(f"{host}: lets you in, but runs no commands there ({line}): ask the site's staff")
    for pattern, reason in _REASONS:
        if pattern in said:
            who = f"user {host.split('@')[0]}" if "@" in host else "you"
            return CannotConnect(f"{host}: {reason.format(host=host, who=who, variable=VARIABLE)}: {line}")
    return CannotConnect(f"{host}: ssh cannot connect: {line or f'exit {code}'}; try `ssh {host}` by hand")
