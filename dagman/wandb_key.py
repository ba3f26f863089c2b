"""Where the W&B key lies on the access point: a file of mode 0600, transferred into the sandbox; never an environment variable.

What `wandb login` left in ~/.netrc is copied to a file of its own name and copied anew whenever it changed; the key of `segue login` goes
before it.
"""

from __future__ import annotations

import netrc
import os
import stat
from pathlib import Path

from agent.errors import BadInput

HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
"""Under which W&B's client keeps its key, one service: the first since its version 0.31, which also looks for the second."""
NETRC_COPY = "wandb.netrc.key"


def key_path() -> Path:
    """The file that `segue login` writes."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "segue" / "wandb.key"


def write_key(key: str, path: Path | None = None) -> Path:
    """Keep a key where `segue login` does, or in ``path``; mode 0600 from its first byte on."""
    path = path or key_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key.strip() + "\n")
    temporary.replace(path)
    return path


def from_netrc() -> str | None:
    """The key that `wandb login` left in ~/.netrc."""
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        known = netrc.netrc(
            str(path)
        ).hosts  # not `authenticators`: any other host's "default" entry is no key of W&B's
    except (OSError, netrc.NetrcParseError):
        return None
    return next((known[host][2] for host in HOSTS if host in known and known[host][2]), None)


def key_file(keep: bool = True) -> Path | None:
    """The key file to transfer, None without a key. If only ~/.netrc has one, its copy, which is written if ``keep``.

    BadInput when others can read it.
    """
    path = key_path()
    if not path.exists():
        key = from_netrc()
        if key is None:
            return None
        path = path.with_name(NETRC_COPY)
        if keep and (not path.exists() or path.read_text(encoding="utf-8").strip() != key):
            write_key(key, path)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    if mode & 0o077:
        raise BadInput(f"{path}: others can read it (mode {mode:o}): chmod 600 {path}")
    return path
