"""Whether this machine sees staging at all: a mount that lacks is the machine's fault and no reason to end the run."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

from agent.config import JobConfig
from agent.store.errors import speaking


def require_staging(job: JobConfig) -> None:
    """StoreUnavailable (exit 75, so that another machine tries) where staging is no directory here."""
    with speaking("looking at", job.staging):
        if not stat.S_ISDIR(Path(job.staging).stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "is no directory")
