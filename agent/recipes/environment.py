"""What OpenPI and LeRobot need around them in a job: caches under the scratch directory, and checks that speak before the trainer does.

Every check stands for a failure that cost somebody a day in the queue: it costs a file look-up here and says what to do.
"""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from agent.config import JobConfig
from agent.errors import BadInput, SegueError
from agent.recipes.base import Finished, Start

T = TypeVar("T")

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


def option(job: JobConfig, key: str, kind: type[T], default: T) -> T:
    """One of the recipe's own options from run.toml's [trainer.options]; BadInput when it is of another type."""
    value: Any = job.options.get(key, default)
    if value is None or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value if value is not None else default
    raise BadInput(f"run.toml: trainer.options.{key} is {value!r}; it must be of type {kind.__name__}")


def only_known(job: JobConfig, known: tuple[str, ...]) -> None:
    """BadInput for an option that the recipe does not have: a misspelt one would be ignored in silence."""
    for key in job.options:
        if key not in known:
            raise BadInput(
                f"run.toml: trainer.options.{key} is unknown to recipe {job.recipe!r}; it has {', '.join(known)}"
            )


def leave_alone(job: JobConfig, taken: Mapping[str, str]) -> None:
    """BadInput for an argument that the recipe sets itself; ``taken``: flag -> where the user says it instead."""
    for flag, instead in taken.items():
        if named(job.args, flag) is not None:
            raise BadInput(f"run.toml: trainer.args: {flag} is set by the recipe; {instead or 'leave it out'}")


def named(args: tuple[str, ...], *names: str) -> str | None:
    """The value that the user's arguments give to one of these flags (`--x=1`, `--x 1`; - and _ alike), None when none does."""
    wanted = {name.replace("_", "-") for name in names}
    for number, word in enumerate(args):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") in wanted:
            return value if equals else "".join(args[number + 1 : number + 2])
    return None


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
        "WANDB_DIR": scratch / "wandb-files",
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


def check_python(word: str) -> None:
    """SegueError unless this user can run that Python."""
    path = shutil.which(word) if os.sep not in word else word
    if path is None:
        raise SegueError(
            f"{word}: no such program in this job's PATH; name the image's Python in run.toml's trainer.python"
        )
    if os.access(path, os.X_OK | os.R_OK) and Path(path).is_file():
        return
    if not os.path.lexists(path):
        raise SegueError(f"{path}: no such file; name the image's Python in run.toml's trainer.python")
    blocked = _blocked(path)
    raise SegueError(
        f"{path}: user {os.getuid()} cannot run this Python ({blocked}): jobs are not root; build the image with "
        "Python outside root's home and readable for everyone (docs/images.md)"
    )


def _blocked(path: str) -> str:
    """Where on the way to a program this user is stopped."""
    real = os.path.realpath(path)
    for parent in [*reversed(Path(real).parents), Path(real)]:
        try:
            parent.stat()
        except PermissionError:
            return f"it is {real}, and {parent.parent} may not be entered"
        except OSError:
            return f"it is a link to {real}, which is not there"
    return f"{real} is not readable and executable"


def check_home(start: Start) -> None:
    """SegueError unless HOME can be written to."""
    home = Path(start.job.env.get("HOME", str(start.scratch)))
    if not os.access(home, os.W_OK | os.X_OK):
        raise SegueError(
            f"HOME={home} is not writable for user {os.getuid()}: leave HOME out of run.toml's trainer.env"
        )


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


def check_certificates(start: Start) -> None:
    """SegueError when a run that reports to W&B has no certificates: it would fail at its first upload."""
    if start.job.wandb is not None and start.job.wandb.mode != "offline" and ca_bundle(start) is None:
        raise SegueError(
            "no CA certificates in this image, so W&B cannot be reached: install ca-certificates or certifi in it, "
            'set SSL_CERT_FILE in run.toml\'s trainer.env, or set wandb.mode = "offline"'
        )


def datasets(start: Start) -> list[Path]:
    """Where the job's LeRobot datasets were unpacked."""
    return [
        start.scratch / entry.target
        for entry in start.job.inputs
        if is_lerobot_dataset(start.job.recipe, entry.name, entry.target)
    ]


def is_lerobot_dataset(recipe: str, name: str, target: str) -> bool:
    """Whether an input must be one: those below the LeRobot home, and LeRobot's own. OpenPI can read others from elsewhere."""
    return Path(target).is_relative_to(LEROBOT_HOME) or (recipe == "lerobot" and name == "dataset")


def check_dataset(path: Path) -> None:
    """BadInput unless meta/info.json lies at the top of a LeRobot dataset."""
    if (path / "meta" / "info.json").is_file():
        return
    inner = sorted(path.glob("*/meta/info.json")) + sorted(path.glob("*/*/meta/info.json")) if path.is_dir() else []
    if inner:
        top = inner[0].parents[1].relative_to(path)
        raise BadInput(
            f"{path}: the dataset's top directory is wrong: meta/info.json lies in {top}/; name that directory itself as "
            "data.dataset in run.toml"
        )
    raise BadInput(f"{path}: no LeRobot dataset: meta/info.json is missing at its top (`segue convert` writes one)")


def numbered(root: Path) -> dict[int, str]:
    """Directories below ``root`` whose name is a number, by that number."""
    try:
        with os.scandir(root) as entries:
            return {int(entry.name): entry.name for entry in entries if entry.name.isdecimal() and entry.is_dir()}
    except FileNotFoundError:
        return {}


def remove(path: Path) -> None:
    """Remove a directory, file or link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def thin_out(start: Start, found: list[Finished], keep: int = 2) -> list[Finished]:
    """Remove older finished checkpoints of a trainer that never does: a full scratch disk ends the job.

    The newest ``keep`` stay, and steps that retention.every wants published. Returns those that stay.
    """
    every = start.job.retention.every
    staying = [one for one in found[:-keep] if every and one.step % every == 0 and one.step > start.resume_step]
    for one in found[:-keep]:
        if one not in staying:
            remove(one.root / one.label)
    return [*staying, *found[-keep:]]
