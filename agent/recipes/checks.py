"""Checks that speak in the first seconds of a job, before the trainer does.

Each stands for a failure that cost somebody a day in the queue: it costs a file look-up here and says what to do.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from agent.errors import BadInput, SegueError
from agent.recipes.base import Start
from agent.recipes.environment import LEROBOT_HOME, ca_bundle


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


def check_program(word: str, directory: Path, path: str | None) -> None:
    """SegueError unless this user can run a program that is started in ``directory`` with this PATH (None: the job's)."""
    if os.sep in word:
        program = directory / word
    else:
        found = shutil.which(word, path=path)
        if found is None:
            where = "the PATH of run.toml's trainer.env" if path is not None else "this job's PATH"
            raise SegueError(
                f"{word}: no such program in {where}; name one of the image in run.toml's trainer.python, or one of the "
                f"code that travels by its path (./{word})"
            )
        program = Path(found)
    if program.is_file() and os.access(program, os.X_OK):
        return
    if not os.path.lexists(program):
        raise SegueError(
            f"{program}: no such file; run.toml's trainer.python names it (a relative path begins where the code lies)"
        )
    if program.is_file() and os.access(program, os.R_OK):
        raise SegueError(
            f"{program}: is no program: make it executable (chmod +x), or name its interpreter in trainer.python"
        )
    raise SegueError(
        f"{program}: user {os.getuid()} cannot run this program ({_blocked(str(program))}): jobs are not root (docs/images.md)"
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
