"""One file to or from a host with rsync: what is there already is not sent again, and rsync's own words become one sentence.

`--append-verify` goes on after the last byte that arrived and compares the whole file's checksum at the end; an rsync without it (macOS)
compares block by block instead.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from agent.errors import SegueError
from dagman.shipping.ssh import Connection, Lost, last_line, lost, plain_environment

Progress = Callable[[int], None]
_BYTES = re.compile(rb"\s*([\d,.']+)\s+\d+%")
# Seconds without a byte after which a transfer is given up. Comparing what arrived before takes minutes; ssh itself notices a dead line.
_SILENCE_S = 1800
_BROKEN = {10, 12, 30, 35, 255}


class NoRoomThere(SegueError):
    """The receiving disk is full, or its quota used up."""


def _options() -> list[str]:
    """By what the installed rsync can do. SegueError when there is none."""
    try:
        asked = subprocess.run(["rsync", "--version"], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise SegueError(
            f"rsync: cannot be started ({error.strerror}): install it (Debian: apt-get install rsync; macOS: brew install rsync)"
        ) from error
    if re.search(r"^rsync\s+version [3-9]", asked.stdout, re.MULTILINE):
        return ["--protect-args", "--append-verify"]
    return ["--partial", "--inplace"]


def send(link: Connection, source: Path, target: str, progress: Progress | None = None) -> None:
    """Bring the file to the path ``target`` on the host; a part of it that is there is completed. Raises as ``explain``."""
    _copy(link, [str(source), f"{link.host}:{target}"], f"{link.host}:{target}", progress)


def receive(link: Connection, source: str, target: Path, progress: Progress | None = None) -> None:
    """Bring the host's file ``source`` here; a part of it that is here is completed. Raises as ``explain``."""
    _copy(link, [f"{link.host}:{source}", str(target)], str(target), progress)


def _copy(link: Connection, ends: list[str], target: str, progress: Progress | None) -> None:
    shell = " ".join(shlex.quote(word) for word in link.words)
    shown = ["--info=progress2", "--outbuf=N"] if progress is not None and "--append-verify" in _options() else []
    words = ["rsync", *_options(), f"--timeout={_SILENCE_S}", *shown, "-e", shell, "--", *ends]
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env=plain_environment(),
        )
        try:
            assert child.stdout is not None
            _watch(child.stdout, progress)
            code = child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
            if child.stdout is not None:
                child.stdout.close()
        if code != 0:
            said.seek(0)
            raise explain(link.host, said.read(), code, target)


def _watch(output: IO[bytes], progress: Progress | None) -> None:
    """Read what rsync prints until it ends; its progress is a line that it writes over."""
    while data := output.read1(4096):  # type: ignore[attr-defined]
        found = _BYTES.findall(data)
        if found and progress is not None:
            progress(int(re.sub(rb"\D", b"", found[-1])))


def missing_there(host: str) -> SegueError:
    """The host has no rsync."""
    return SegueError(
        f"{host}: has no rsync on its PATH: ask the site's staff, or name another `transfer_host` in run.toml"
    )


def explain(host: str, said: str, code: int, target: str) -> SegueError:
    """Why rsync ended with ``code``: NoRoomThere, Lost (run it again), or SegueError."""
    for pattern in ("No space left on device", "Disk quota exceeded"):
        if pattern in said:
            what = "its quota is used up" if "quota" in pattern else "its disk is full"
            return NoRoomThere(
                f"{target}: {what}: make room there, then run the same command again, it goes on from there"
            )
    if code == 127 or "command not found" in said or "rsync: not found" in said:
        return missing_there(host)
    if "is your shell clean" in said:
        return SegueError(
            f"{host}: its shell prints something when it starts, and rsync takes that for an answer: make your startup files there silent "
            "where there is no terminal (.bashrc, .cshrc)"
        )
    for line in said.splitlines():
        if "Permission denied (13)" in line or "Read-only file system" in line:
            return SegueError(
                f"{target}: {host} does not let you write or read there: check owner and mode of the directory ({line.strip()[:200]})"
            )
        if "No such file or directory (2)" in line:
            return SegueError(f"{target}: is gone: {line.strip()[:200]}")
    if code in (20, -2, -15, -9):
        return Lost(f"{target}: the transfer was interrupted: run the same command again, it goes on from there")
    if code in _BROKEN:
        return lost(host, said)
    return SegueError(f"{target}: rsync failed (exit {code}): {last_line(said) or 'no message'}")
