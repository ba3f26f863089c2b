"""One Weights & Biases run over all segments and attempts: the trainer's WANDB_* variables, and the key that nobody else sees.

The key arrives as a file of mode 0600 in the scratch directory (or from HTCondor's credential store), is read once, removed before
training starts, and given to the trainer's process alone. It is never logged, and no command line carries it.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent.config import Wandb
from agent.place import Place

if TYPE_CHECKING:
    from agent.recipes.base import Start

_PROBE_S = 1.5
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
WANDB_FILES = "wandb-files"
LEROBOT_OUTPUT = "lerobot"
"""LeRobot gives its own output directory to the client."""
KEPT_BELOW = "wandb"
"""The directory that the client makes in the one it is given, and that holds its runs in a kept archive."""
OFFLINE_RUN = "offline-run-*"
DEFAULT_URL = "https://api.wandb.ai"


def take_key(wandb: Wandb, place: Place) -> str | None:
    """The key, or None. The file is removed."""
    if wandb.key_file:
        path = place.scratch / Path(wandb.key_file).name
        try:
            key = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            key = ""
        with suppress(OSError):  # it may not be there; without it the client writes offline
            path.unlink()
        if key:
            return key
    return _from_credentials(place.credentials)


def leave_key(wandb: Wandb, place: Place, key: str) -> None:
    """Put the file back, mode 0600, for an execution that follows in this sandbox (exit 85): HTCondor brings the job's inputs once only.

    Raises OSError where it cannot be written; the next execution then writes offline.
    """
    if not wandb.key_file:
        return
    path = place.scratch / Path(wandb.key_file).name
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(f"{key}\n")


def _from_credentials(directory: Path | None) -> str | None:
    """From `$_CONDOR_CREDS/wandb.use`: the bare key, or JSON as an OAuth service writes it."""
    if directory is None:
        return None
    try:
        text = (directory / "wandb.use").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not text.startswith("{"):
        return text or None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    for name in ("access_token", "api_key", "key", "token"):
        if isinstance(found.get(name), str) and found[name]:
            return str(found[name])
    return None


def run_id(wandb: Wandb, checkpoint_root: Path) -> str:
    """The id fixed by the run; a trainer's own `wandb_id.txt` (OpenPI) in a restored checkpoint goes before it."""
    try:
        text = (checkpoint_root / "wandb_id.txt").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return wandb.id
    return text if _ID.fullmatch(text) else wandb.id


def offline_directory(place: Place) -> Path:
    """WANDB_DIR: the client makes `wandb/` in it."""
    return place.scratch / WANDB_FILES


def environment(wandb: Wandb, key: str | None, identity: str, online: bool, directory: Path) -> dict[str, str]:
    """What the trainer's process is told. Without a key nothing can be sent, whatever the mode."""
    told = {
        "WANDB_RUN_ID": identity,
        "WANDB_RESUME": "allow",
        "WANDB_PROJECT": wandb.project,
        "WANDB_DIR": str(directory),
        "WANDB_MODE": "online" if online and key else "offline",
    }
    if wandb.entity:
        told["WANDB_ENTITY"] = wandb.entity
    if wandb.group:
        told["WANDB_RUN_GROUP"] = wandb.group
    if wandb.tags:
        told["WANDB_TAGS"] = ",".join(wandb.tags)
    if wandb.name:
        told["WANDB_NAME"] = wandb.name
    if key:
        told["WANDB_API_KEY"] = key
    return told


def reachable(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether W&B's server takes a connection (through the proxy where one is set); for an errand, it may take a second or two."""
    url = environ.get("WANDB_BASE_URL") or DEFAULT_URL
    proxy = environ.get("HTTPS_PROXY") or environ.get("https_proxy")
    parts = urlsplit(proxy if proxy and url.startswith("https") else url)
    if not parts.hostname:
        return False
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_PROBE_S).close()
    except OSError:
        return False
    return True


def offline_runs(scratch: Path) -> list[Path]:
    """What the client wrote without a network, to be sent by `segue wandb sync`."""
    found = [path for name in (WANDB_FILES, LEROBOT_OUTPUT) for path in (scratch / name / KEPT_BELOW).glob(OFFLINE_RUN)]
    return sorted((path for path in found if path.is_dir()), key=lambda path: path.name)


def as_told(start: Start, told: Mapping[str, str]) -> Start:
    """The start with the mode that the trainer's environment has, for recipes whose trainer wants it as an argument too."""
    wandb, mode = start.job.wandb, told.get("WANDB_MODE")
    if wandb is None or mode is None:
        return start
    return replace(start, job=replace(start.job, wandb=replace(wandb, mode=mode)))
