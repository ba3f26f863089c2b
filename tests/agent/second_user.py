"""Another user of the access point: an identity of its own, by token, on the same pool."""

from __future__ import annotations

import os
from pathlib import Path

from dagman.pool import EmbeddedPool


class SecondUser:
    """`bob@localhost` on a pool that lets everybody read (ALLOW_READ = *)."""

    def __init__(self, pool: EmbeddedPool, directory: Path, identity: str = "bob@localhost") -> None:
        self._pool = pool
        self._identity = identity
        directory.mkdir(mode=0o700)
        made = pool.run(["condor_token_create", "-identity", identity], capture_output=True, text=True)
        assert made.returncode == 0 and made.stdout, made.stderr
        token = directory / "token"
        token.touch(mode=0o600)
        token.write_text(made.stdout)
        self._as = [
            "env",
            "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS=IDTOKENS",
            f"_CONDOR_SEC_TOKEN_DIRECTORY={directory}",
        ]
        assert f"Remote Mapping:              {identity}" in self.sees(
            "condor_ping", "-verbose", "-type", "SCHEDD", "READ"
        )

    def sees(self, *command: str) -> str:
        """What a command shows this user; it must succeed."""
        done = self._pool.run([*self._as, *command], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return str(done.stdout)

    def may_read_history(self) -> bool:
        """Whether the schedd serves its history to this user."""
        command = [*self._as, "condor_history", "-name", "localhost", "-limit", "1"]
        return self._pool.run(command, capture_output=True).returncode == 0


def files_with(root: Path, needle: bytes, but: Path) -> list[str]:
    """Files below `root` that hold `needle`, `but` the one where it is kept."""
    found = []
    for directory, _, names in os.walk(root):  # which, unlike rglob, bears with a directory that goes meanwhile
        for path in (Path(directory, name) for name in names):
            try:
                if path.is_file() and not path.is_symlink() and path != but and needle in path.read_bytes():
                    found.append(str(path))
            except OSError:
                continue  # gone meanwhile
    return found


def command_lines() -> bytes:
    """Of every process that runs now."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    return b"\n".join(lines)
