"""What OpenPI and LeRobot need around them in a job: HOME and all caches below the scratch directory, certificates, their own Python."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from agent.config import JobConfig
from agent.recipes.base import Start
from agent.wandb_run import WANDB_FILES as WANDB_FILES

IMAGE_PYTHON = Path("/.venv/bin/python")
"""Where OpenPI's images have their environment."""
CACHE = ".cache"
HUGGING_FACE = f"{CACHE}/huggingface"
LEROBOT_HOME = f"{HUGGING_FACE}/lerobot"
OPENPI_HOME = f"{CACHE}/openpi"
JAX_CACHE = f"{CACHE}/jax"

_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, Alma, Rocky
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",
)
_DEFAULT_PYTHONS = ("python", "python3")


def caches(start: Start) -> dict[str, str]:
    """HOME and every cache below scratch: nothing else is writable in a job. What run.toml's env says goes before it."""
    scratch = start.scratch
    values = {
        "HOME": scratch,
        "XDG_CACHE_HOME": scratch / CACHE,
        "UV_CACHE_DIR": scratch / CACHE / "uv",
        "HF_HOME": scratch / HUGGING_FACE,
        "HF_DATASETS_CACHE": scratch / HUGGING_FACE / "datasets",
        "HF_LEROBOT_HOME": scratch / LEROBOT_HOME,
        "OPENPI_DATA_HOME": scratch / OPENPI_HOME,
        "WANDB_DIR": scratch / WANDB_FILES,
    }
    told = {name: str(value) for name, value in values.items()}
    bundle = ca_bundle(start)
    if bundle is not None:
        told["SSL_CERT_FILE"] = str(bundle)
    return yielding(start, told)


def yielding(start: Start, told: Mapping[str, str]) -> dict[str, str]:
    """The variables that run.toml's env does not set itself."""
    return {name: value for name, value in told.items() if name not in start.job.env}


def python(job: JobConfig) -> str:
    """The trainer's Python: the one of run.toml, else the image's environment where there is one, else `python3` of PATH."""
    if job.python in _DEFAULT_PYTHONS and os.path.lexists(IMAGE_PYTHON):
        return str(IMAGE_PYTHON)
    return job.python


def ca_bundle(start: Start) -> Path | None:
    """Certificates for https: what is set and readable, certifi beside the trainer's Python, or the system's bundle."""
    given = start.job.env.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_FILE", "")
    candidates = [Path(given)] if given else []
    prefix = Path(python(start.job)).parent.parent
    candidates += sorted(prefix.glob("lib/python3.*/site-packages/certifi/cacert.pem"))
    candidates += [Path(name) for name in _BUNDLES]
    default = ssl.get_default_verify_paths().cafile
    candidates += [Path(default)] if default else []
    return next((path for path in candidates if path.is_file() and os.access(path, os.R_OK)), None)
