"""Which commits stay, and how the others go: un-referenced, made durable, only then removed (invariant I1).

Nothing here deletes one of the newest two good commits, whatever a caller asks for.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from agent.store import names
from agent.store.claims import CLAIMS_KEPT, epochs_in
from agent.store.errors import BadArchive, NewerFormat
from agent.store.fs import FileSystem
from agent.store.listing import list_commits
from agent.store.manifest import Manifest, read_manifest
from agent.store.multiples import first_at_each
from agent.store.names import Commit

FEWEST = 2


@dataclass(frozen=True)
class Retention:
    """Keep the newest ``keep`` good commits (never fewer than 2), the first at or after each multiple of ``every``, and the best.

    ``best`` names a metric of the manifest: ``loss`` or ``min:loss`` (the smaller the better), ``max:reward``.
    """

    keep: int = FEWEST
    every: int | None = None
    best: str | None = None


Good = Sequence[tuple[Commit, Manifest]]


def kept(good: Good, retention: Retention) -> set[str]:
    """Names of the commits that stay. ``good`` stands in readers' order."""
    stay = {commit.name for commit, _ in good[: max(FEWEST, retention.keep)]}
    if retention.every:
        of_step: dict[int, str] = {}
        for commit, _ in good:
            of_step.setdefault(commit.step, commit.name)  # of two attempts the newer one's
        stay |= {of_step[step] for step in first_at_each(sorted(of_step), retention.every)}
    best = _best(good, retention.best) if retention.best else None
    if best is not None:
        stay.add(best.name)
    return stay


def _best(good: Good, wanted: str) -> Commit | None:
    order, _, metric = wanted.rpartition(":")
    sign = -1 if order == "max" else 1
    rated = [
        (sign * value, place, commit)
        for place, (commit, manifest) in enumerate(good)
        if isinstance(value := manifest.metrics.get(metric), (int, float)) and value == value
    ]
    return min(rated, key=lambda one: one[:2])[2] if rated else None


def good_commits(fs: FileSystem, root: str) -> list[tuple[Commit, Manifest]]:
    """Commits whose manifest is whole and whose size is what it implies, in readers' order.

    One that has gone, or that the disk fails to read (EIO), is none of them: neither counted nor deleted.
    """
    good = []
    for commit in list_commits(fs, root, marks=False):
        try:
            fd = fs.open(str(commit.path))
            try:
                manifest, _ = read_manifest(fs, commit.name, fd)
            finally:
                fs.close(fd)
        except (BadArchive, NewerFormat, FileNotFoundError):
            continue
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            continue
        if (manifest.step, manifest.epoch) == (commit.step, commit.epoch):
            good.append((commit, manifest))
    return good


def prune_commits(
    fs: FileSystem, root: str, retention: Retention, dry_run: bool, may_go_on: Callable[[], None]
) -> list[Commit]:
    """Remove what the retention does not keep, oldest first, and return it; also what a prune left that was killed. ``may_go_on`` raises
    when the run is lost.

    Two syncs guard I1: names that count as kept are durable before anything goes, and a commit is un-referenced
    durably before its data goes.
    """
    directory = f"{root}/{names.CHECKPOINTS}"
    if not list_commits(fs, root, marks=False):
        return []
    left: list[str] = []
    if not dry_run:
        left = [name for name in fs.names(directory) if names.is_pruned(name)]
        fs.sync_directory(directory)
    good = good_commits(fs, root)
    stay = kept(good, retention)
    goes = [commit for commit, _ in reversed(good) if commit.name not in stay]
    if dry_run or not (goes or left):
        return goes
    may_go_on()
    for commit in goes:
        with suppress(FileNotFoundError):  # another prune was faster, or a network file system has repeated the request
            fs.rename(str(commit.path), f"{directory}/{names.pruned_name(commit.name)}")
    if goes:
        fs.sync_directory(directory)
    for name in left:
        with suppress(FileNotFoundError):
            fs.unlink(f"{directory}/{name}")
    gone = []
    for commit in goes:
        with suppress(FileNotFoundError):
            fs.unlink(f"{directory}/{names.pruned_name(commit.name)}")
            gone.append(commit)
    return gone


def sweep_leftovers(fs: FileSystem, root: str, epoch: int) -> list[str]:
    """Remove temporary and un-referenced names of epochs up to ``epoch`` and all claims but the newest; return their paths."""
    removed = sweep_commits(fs, root, epoch)
    removed += _sweep(fs, f"{root}/{names.EPOCHS}", names.claim_leftover_epoch, epoch)
    removed += _sweep(fs, root, names.run_leftover_epoch, epoch)
    for old in epochs_in(fs, root)[:-CLAIMS_KEPT]:
        path = f"{root}/{names.EPOCHS}/{names.claim_name(old)}"
        with suppress(FileNotFoundError):
            fs.unlink(path)
            removed.append(path)
    return removed


def sweep_commits(fs: FileSystem, root: str, epoch: int) -> list[str]:
    """Of these, the names in ``checkpoints/``: the only ones that are large. The prune that un-referenced one may have died before its sync."""
    directory = f"{root}/{names.CHECKPOINTS}"
    found = fs.names(directory)
    if any(map(names.is_pruned, found)):
        fs.sync_directory(directory)
    return _remove(fs, directory, found, names.leftover_epoch, epoch)


def leftover_bytes(fs: FileSystem, root: str) -> int:
    """How much room those names take; 0 where that cannot be seen."""
    total = 0
    with suppress(OSError):
        for name in fs.names(f"{root}/{names.CHECKPOINTS}"):
            if names.leftover_epoch(name) is not None:
                total += fs.stat(f"{root}/{names.CHECKPOINTS}/{name}").size
    return total


def _sweep(fs: FileSystem, folder: str, epoch_of: Callable[[str], int | None], epoch: int) -> list[str]:
    return _remove(fs, folder, fs.names(folder), epoch_of, epoch)


def _remove(
    fs: FileSystem, folder: str, found: Sequence[str], epoch_of: Callable[[str], int | None], epoch: int
) -> list[str]:
    removed = []
    for name in found:
        made_by = epoch_of(name)
        if made_by is not None and made_by <= epoch:
            with suppress(FileNotFoundError):
                fs.unlink(f"{folder}/{name}")
                removed.append(f"{folder}/{name}")
    return removed


def set_aside_files(fs: FileSystem, root: str) -> list[str]:
    """Paths of commits that were found bad and set aside."""
    directory = f"{root}/{names.CHECKPOINTS}"
    try:
        return sorted(f"{directory}/{name}" for name in fs.names(directory) if names.is_set_aside(name))
    except FileNotFoundError:
        return []
