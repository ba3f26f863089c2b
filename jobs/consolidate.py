"""`jobs.pyz consolidate --config job.json`: from a complete run's last commit to one archive that a robot can use.

Verifies every byte of the commit, unpacks what inference needs, restores it as the trainer's own server would, writes
`final/<run>-<step>.tar` (temporary name, fsync, rename) and prunes the commits to the retention asked for. Running it again finds the
archive and does nothing twice. A damaged commit is set aside and the next older one taken, where that has all steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent import exit_codes
from agent.config import JobConfig, load
from agent.errors import BadInput, SegueError
from agent.store import Claimant
from agent.store.errors import BadArchive
from jobs.archives import pack, unpack
from jobs.consolidate_kinds import kind_of
from jobs.staging import require_staging

if TYPE_CHECKING:
    from agent.store import Commit, Store
    from agent.store.manifest import Manifest


_AGAIN = "SEGUE_CONSOLIDATE_AGAIN"


class NotComplete(SegueError):
    """The run has not reached its last step: nothing to consolidate, and no retry of this node changes that."""

    exit_code = exit_codes.PERMANENT


class Damaged(SegueError):
    """A commit's bytes are not those of its manifest."""


def final_path(job: JobConfig, step: int) -> Path:
    """Where the result of a run lies."""
    return job.store_root / "final" / f"{job.run}-{step:09d}.tar"


def last_commit(job: JobConfig, store: Store) -> Commit:
    """The commit to consolidate. Raises NotComplete when the newest is not of the last step."""
    commits = store.commits()
    if not commits:
        raise NotComplete(f"run {job.run} has no commit in {job.store_root}: train it first (segue submit)")
    if commits[0].step < job.steps:
        raise NotComplete(
            f"run {job.run} is at step {commits[0].step} of {job.steps} and all its segments are used: `segue submit` "
            "goes on from there with new ones"
        )
    return commits[0]


def _written(path: Path) -> Manifest | None:
    """The manifest of the final archive when it is there and good."""
    if not path.is_file():
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="segue-") as nowhere:
            return unpack(path, Path(nowhere), lambda manifest, name: False)
    except SegueError as error:
        print(f"consolidate: {error}; it is written again", file=sys.stderr)
        return None


def make_final(job: JobConfig, commit: Commit, scratch: Path) -> Manifest:
    """Unpack, restore, write. ``scratch`` must have room for the parameters. Raises SegueError with what is wrong with the commit."""
    kind = kind_of(job)
    with tempfile.TemporaryDirectory(prefix="consolidate-", dir=scratch) as temporary:
        root = Path(temporary)
        try:
            manifest = unpack(commit.path, root, lambda about, name: kind.wanted(about.label, name))
        except (BadArchive, BadInput) as error:
            raise Damaged(str(error)) from error
        print(f"consolidate: {commit.name}: every byte is verified", file=sys.stderr)
        kind.prepare(root / manifest.label)
        about = replace(manifest, parent=commit.name, versions={**manifest.versions, **kind.versions()})
        written = pack(root, sorted(path.name for path in root.iterdir()), about, final_path(job, commit.step))
        _make_writable(root)
    return written


def _make_writable(root: Path) -> None:
    """So that a directory that travelled read-only can be removed."""
    for path in root.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)


def prune(job: JobConfig, store: Store) -> list[str]:
    """Apply the run's retention to its commits; names of what was removed. A failure is said and changes nothing."""
    from agent.store import Retention
    from agent.store.errors import StoreError

    try:
        claim = store.claim(Claimant(socket.gethostname(), "consolidate"), job.fingerprint, accept=job.accept_change)
        store.sweep(claim)
        rule = job.retention
        return [commit.name for commit in store.prune(claim, Retention(rule.keep, rule.every, rule.best))]
    except StoreError as error:
        print(f"consolidate: warning: nothing was pruned: {error}", file=sys.stderr)
        return []


def put_aside(job: JobConfig, store: Store, commit: Commit, error: Damaged) -> None:
    """Give a damaged commit a name that readers ignore, so that an older one is taken and `segue submit` can go on from it.

    It is read once more first. Raises SegueError when it is good now (this machine read it wrong), or cannot be set aside.
    """
    if not store.verify(commit):
        raise SegueError(
            f"{error}: read again it is good: the disk or the network of {socket.gethostname()} fails"
        ) from error
    store.claim(Claimant(socket.gethostname(), "consolidate"), job.fingerprint, accept=job.accept_change)
    name = store.put_aside(commit)
    if name is None:
        raise SegueError(
            f"{error}: it stays where it is, because no other commit reads well on this machine: another machine may read both; if "
            f"`segue verify` says the same of it, remove {commit.path}"
        ) from error
    print(f"consolidate: warning: {error}; set aside as {name}", file=sys.stderr)


def consolidate(job: JobConfig, scratch: Path) -> dict[str, object]:
    """The whole node; what it did, as plain data."""
    from agent.store import PosixFileSystem, Store

    if not job.checkpoint_exit:
        require_staging(job)
    store = Store(job.store_root, fs=PosixFileSystem())
    while True:
        commit = last_commit(job, store)
        path = final_path(job, commit.step)
        manifest = _written(path)
        again = manifest is not None
        try:
            manifest = manifest or make_final(job, commit, scratch)
            break
        except Damaged as error:
            put_aside(job, store, commit, error)
    pruned = prune(job, store)
    return {
        "final": str(path),
        "step": commit.step,
        "bytes": path.stat().st_size,
        "files": sum(entry.kind == "file" for entry in manifest.entries),
        "was_there": again,
        "pruned": pruned,
    }


def go_on_with_orbax(job: JobConfig) -> None:
    """Where this Python has no orbax, go on in the trainer's, which has: an image's `python3` need not be the one with its packages."""
    from importlib.util import find_spec

    from agent.recipes.environment import python

    if find_spec("orbax") is not None or os.environ.get(_AGAIN):
        return
    words = [python(job), *sys.orig_argv[1:]] if sys.argv[0] != "-c" else []
    if words and words[0] != sys.executable and shutil.which(words[0]):
        print(f"consolidate: no orbax in {sys.executable}: going on with {words[0]}", file=sys.stderr, flush=True)
        os.execve(shutil.which(words[0]) or words[0], words, {**os.environ, _AGAIN: "1"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Consolidate; JSON on stdout."""
    parser = argparse.ArgumentParser(prog="jobs.pyz consolidate", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("job.json"))
    options = parser.parse_args(arguments)
    job = load(options.config)
    if job.recipe == "openpi":
        go_on_with_orbax(job)
    scratch = Path(os.environ.get("_CONDOR_SCRATCH_DIR") or Path.cwd())
    print(json.dumps(consolidate(job, scratch)))
    return exit_codes.OK


if __name__ == "__main__":
    from jobs.main import main as jobs_main

    sys.exit(jobs_main(["consolidate", *sys.argv[1:]]))
