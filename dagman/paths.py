"""One way to write a path, wherever a command was typed: job.json, W&B's id and the fingerprint must not depend on it."""

from __future__ import annotations

from pathlib import Path

from agent.errors import BadInput


def absolute(path: Path) -> Path:
    """The path from the root, `~` filled in. Links stay as the user wrote them, unless `..` makes it necessary to follow them.

    BadInput for the home of a user whom this machine does not know.
    """
    try:
        path = path.expanduser().absolute()
    except RuntimeError:
        raise BadInput(f"{path}: this machine knows no such user") from None
    return path.resolve() if ".." in path.parts else path


def beside(directory: Path, text: str) -> Path:
    """A path of run.toml, which is relative to the directory of run.toml; absolute. BadInput as above."""
    path = Path(text)
    return absolute(path if text.startswith("~") else directory / path)
