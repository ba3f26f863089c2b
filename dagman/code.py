"""The user's checkout as one archive named by its digest: the code travels, the image stays.

What git tracks, with its uncommitted changes, and new files that git does not ignore; run.toml is no code. `git describe` and the diff are
kept beside the workflow, outside of the archive: a commit that changes no file changes no digest.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agent.config import InputArchive
from agent.errors import BadInput, SegueError
from agent.pack import Member, members
from agent.recipes import NAMES as RECIPES
from dagman.inputs import Recorded, examine, read_record, same_source, write_record
from dagman.toml import read_toml

NAME = "code"
TARGET = "code"
# A few MB are usual. More is a dataset or checkpoints that nobody meant to send with each job.
MOST_BYTES = 200_000_000

_STORE = re.compile(r"((?:.*/)?segue/)(?:_inputs|[^/]+/(?:epochs|checkpoints))/")
_OWN_NAME = re.compile(r"\.staged\.json$|(?:^|/)\.segue-(?:stage|pull)(?:/|$)")


@dataclass(frozen=True)
class Checkout:
    """What is sent: members, `git describe` of the commit (empty without git) and the uncommitted changes as a diff."""

    directory: Path
    entries: tuple[Member, ...]
    describe: str
    diff: str


def _git(directory: Path, *words: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            # The user names this directory; a shared checkout that belongs to somebody else is read all the same.
            ["git", "-c", "safe.directory=*", "-C", str(directory), *words],
            capture_output=True,
            env=environment,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.decode("utf-8", errors="surrogateescape") if done.returncode == 0 else None


def _is_checkout(path: Path) -> bool:
    """Not a link to one: it travels as git has it, and may lead back to where it stands."""
    return (path / ".git").exists() and not path.is_symlink()


def _listed(directory: Path) -> list[str] | None:
    """Paths that travel, relative to ``directory``, those of submodules and of checkouts inside it too; None without git."""
    listed = _git(directory, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is None:
        return None
    found = []
    entries = {entry.rstrip("/"): None for entry in listed.split("\0") if entry}
    for name in entries:
        path = directory / name
        if any(str(parent) in entries and (directory / parent).is_symlink() for parent in PurePosixPath(name).parents):
            continue  # tracked where a link stands now, and the link travels
        if _is_checkout(path):
            below = _listed(path)
            if below is None:
                raise BadInput(
                    f"code: {path}: is a git checkout inside the checkout, and git cannot read it: mend it (git submodule update --init, or "
                    "git worktree repair), or remove its .git"
                )
            found += [f"{name}/{entry}" for entry in below]
        elif os.path.lexists(path):
            found.append(name)
    return found


def _untracked(directory: Path, below: str = "") -> str:
    """Lines that stand before the diff: files that travel although no commit and no diff has them, of submodules too."""
    names = (_git(directory, "ls-files", "-z", "--others", "--exclude-standard") or "").split("\0")
    tracked = (_git(directory, "ls-files", "-z", "--cached") or "").split("\0")
    own = "".join(f"# not tracked by git, sent as it is: {below}{name}\n" for name in names if name)
    inside = [name for name in tracked if name and _is_checkout(directory / name)]
    return own + "".join(_untracked(directory / name, f"{below}{name}/") for name in inside)


def _asks_for_a_run(entry: Member) -> bool:
    """Whether this is a run.toml, under whatever name. The job never reads it, and what it says of training is compared field by field: as
    part of the code, raising `steps` would be a change of the code, of the sister runs' beside it as well.
    """
    if entry.kind != "file" or not entry.name.endswith(".toml"):
        return False
    try:
        found = read_toml(entry.path)
    except BadInput:
        return False
    trainer = found.get("trainer")
    return "steps" in found and isinstance(trainer, dict) and trainer.get("recipe") in RECIPES


def _without_own(entries: Sequence[Member]) -> list[Member]:
    """Without run.toml and what segue itself makes beside one that lies in the checkout, and without empty directories.

    With it the code would change by being used: its digest could never be the same again. A workflow directory is told by job.json beside
    agent.pyz, a store by its claims or inputs.
    """
    names = {entry.name for entry in entries}
    own = {
        name.removesuffix("job.json")
        for name in names
        if name.endswith("job.json") and f"{name[:-8]}agent.pyz" in names
    }
    own |= {match[1] for name in names if (match := _STORE.match(name))}
    kept = [
        entry
        for entry in entries
        if not any(prefix and entry.name.startswith(prefix) for prefix in own)
        and not _OWN_NAME.search(entry.name)
        and not _asks_for_a_run(entry)
    ]
    used = {str(parent) for entry in kept if entry.kind != "directory" for parent in PurePosixPath(entry.name).parents}
    return [entry for entry in kept if entry.kind != "directory" or entry.name in used]


def read_checkout(directory: Path) -> Checkout:
    """Look at the checkout. BadInput when it is missing, empty, or far too large."""
    if not directory.is_dir():
        raise BadInput(f"code: {directory}: no such directory; name your checkout, relative to run.toml")
    names = _listed(directory)
    if names is None and (directory / ".git").exists():
        raise BadInput(
            f"code: {directory}: is a git checkout and git cannot read it: install git, or mend the checkout (git status)"
        )
    if not names:
        # No git, or a directory that the repository around it ignores.
        entries = _without_own(members(directory))
        describe, diff = "", ""
    else:
        entries = _without_own(members(directory, only=names))
        describe = (_git(directory, "describe", "--always", "--dirty", "--tags", "--long") or "").strip()
        plain = ("--relative", "--no-color", "--no-ext-diff", "--no-textconv")
        changes = _git(directory, "diff", "HEAD", "--submodule=diff", "--ignore-submodules=untracked", *plain) or ""
        diff = _untracked(directory) + changes
    total = sum(entry.size for entry in entries)
    if total > MOST_BYTES:
        largest = max(entries, key=lambda entry: entry.size)
        raise BadInput(
            f"code: {directory}: {total / 1e6:.0f} MB would travel with the run (at most {MOST_BYTES / 1e6:.0f} MB), the largest file is "
            f"{largest.name} with {largest.size / 1e6:.0f} MB: let git ignore what is no code, or stage it with data.assets"
        )
    return Checkout(directory, tuple(entries), describe, diff)


def resolve_code(directory: Path, record_path: Path, keep: bool = True) -> tuple[InputArchive, Checkout | None]:
    """The archive entry of a checkout, and the checkout, which then travels with each job from the workflow directory.

    Where the checkout is not on this machine, what `segue stage` has put into staging is used (second value None). BadInput as above.
    """
    record = read_record(record_path)
    if not directory.exists() and same_source(record.get(NAME), directory):
        return _entry(record[NAME], "", ""), None
    checkout = read_checkout(directory)
    found = examine(NAME, directory, checkout.entries, record, about=checkout.describe)
    if keep and record.get(NAME) != found:
        # Only a cache here: run.toml may lie where nothing can be written.
        with contextlib.suppress(SegueError):
            write_record(record_path, {**record, NAME: found})
    return _entry(found, str(directory), "plain"), checkout


def _entry(found: Recorded, source: str, travels: str) -> InputArchive:
    return InputArchive(NAME, found.archive, found.sha256, found.bytes, TARGET, source, travels, found.about)
