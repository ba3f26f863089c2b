"""What `get_quotas` says on an access point: the word on quotas where CephFS does not show its own."""

from __future__ import annotations

import shutil
import subprocess

_PATIENCE_S = 10.0


def asked() -> str | None:
    """The text that `get_quotas` prints here; None where there is no such command, or it fails or does not answer in time."""
    command = shutil.which("get_quotas")
    if command is None:
        return None
    try:
        done = subprocess.run([command], capture_output=True, text=True, timeout=_PATIENCE_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None
