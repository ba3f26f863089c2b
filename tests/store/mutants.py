"""Deliberate breakages of the store, to check the checker: each must be noticed by the histories.

A mutant is a context manager that replaces one step of the store for as long as it is entered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agent.store import budget, claims, names, publish, restore, retention
from agent.store import store as front
from agent.store.copying import Pace
from agent.store.errors import NoGoodCommit
from agent.store.fs import FileSystem


@contextmanager
def _replaced(*changes: tuple[Any, str, object]) -> Iterator[None]:
    before = [(place, name, getattr(place, name)) for place, name, _ in changes]
    for place, name, broken in changes:
        setattr(place, name, broken)
    try:
        yield
    finally:
        for place, name, whole in before:
            setattr(place, name, whole)


def _nothing(*_arguments: object, **_more: object) -> None:
    return None


@contextmanager
def no_fsync_of_the_file() -> Iterator[None]:
    with _replaced((publish, "make_durable", _nothing)):
        yield


@contextmanager
def no_fsync_of_the_directory() -> Iterator[None]:
    with _replaced((publish, "acknowledge", _nothing), (front, "acknowledge", _nothing)):
        yield


@contextmanager
def a_failed_fsync_is_taken_for_done() -> Iterator[None]:
    def careless(fs: FileSystem, fd: int) -> None:
        with suppress(OSError):
            fs.sync(fd)

    with _replaced((publish, "make_durable", careless)):
        yield


@contextmanager
def rename_before_fsync() -> Iterator[None]:
    def write_commit(
        fs: FileSystem, job: publish.Plan, token: str, pace: Pace, workers: int, may_commit: Callable[[], None]
    ) -> None:
        fd = fs.create(job.temporary(token))
        try:
            publish.write_archive(fs, fd, job, pace, workers)
            may_commit()
            fs.rename(job.temporary(token), job.final)
            fs.sync(fd)
        finally:
            fs.close(fd)
        publish.acknowledge(fs, job)

    with _replaced((front, "write_commit", write_commit)):
        yield


@contextmanager
def written_under_the_final_name() -> Iterator[None]:
    with _replaced((publish.Plan, "temporary", lambda self, _token: self.final)):
        yield


@contextmanager
def prune_before_commit() -> Iterator[None]:
    whole = front.write_commit

    def write_commit(fs: FileSystem, job: publish.Plan, *rest: Any) -> None:
        # The commit that is about to be written is counted as if it were there.
        for commit, _ in retention.good_commits(fs, str(Path(job.directory).parent))[1:]:
            fs.unlink(str(commit.path))
        whole(fs, job, *rest)

    with _replaced((front, "write_commit", write_commit)):
        yield


@contextmanager
def step_before_epoch() -> Iterator[None]:
    with _replaced((names, "readers_order", lambda step, epoch: (step, epoch))):
        yield


@contextmanager
def no_check_of_the_epoch() -> Iterator[None]:
    with _replaced((claims, "require_own", _nothing)):
        yield


@contextmanager
def claim_by_looking_first() -> Iterator[None]:
    def link(fs: FileSystem, _root: str, temporary: str, final: str, _record: object) -> bool:
        try:
            fs.stat(final)
        except FileNotFoundError:
            fs.rename(temporary, final)
            return True
        return False

    with _replaced((claims, "link_exclusively", link)):
        yield


@contextmanager
def prune_keeps_one() -> Iterator[None]:
    with _replaced((retention, "kept", lambda good, _rule: {commit.name for commit, _ in good[:1]})):
        yield


@contextmanager
def every_means_exact_steps() -> Iterator[None]:
    def exact(steps: Sequence[int], every: int | None) -> list[int]:
        return [step for step in steps if every and step % every == 0]

    with _replaced((retention, "first_at_each", exact)):
        yield


@contextmanager
def restore_trusts_the_data() -> Iterator[None]:
    whole = restore._check_file

    def check(*arguments: Any) -> None:
        *rest, _problems, buffer = arguments
        whole(*rest, [], buffer)

    with _replaced((restore, "_check_file", check)):
        yield


@contextmanager
def a_bad_commit_ends_the_restore() -> Iterator[None]:
    whole = front.list_commits

    def newest(*arguments: Any, **more: Any) -> Sequence[names.Commit]:
        return whole(*arguments, **more)[:1]

    with _replaced((front, "list_commits", newest)):
        yield


@contextmanager
def fingerprint_ignored() -> Iterator[None]:
    with _replaced((claims, "differences", lambda _before, _now: [])):
        yield


@contextmanager
def budget_ignored() -> Iterator[None]:
    with _replaced((front, "require_room", _nothing), (budget, "require_room", _nothing)):
        yield


@contextmanager
def claim_directories_not_synced() -> Iterator[None]:
    def make(store: front.Store, path: str) -> None:
        above = str(Path(path).parent)
        for one in (above, path):
            with suppress(FileExistsError):
                store.fs.mkdir(one)

    with _replaced((front.Store, "_make_directory", make)):
        yield


class _Unsynced:
    """A file system whose directory syncs do nothing."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> Any:
        return _nothing if name == "sync_directory" else getattr(self._fs, name)


@contextmanager
def prune_trusts_names_that_are_not_durable() -> Iterator[None]:
    """Too rare for random histories: test_histories.py plays the one that matters."""
    whole = retention.prune_commits

    def prune(fs: FileSystem, *rest: Any) -> list[names.Commit]:
        return whole(_Unsynced(fs), *rest)  # type: ignore[arg-type]

    with _replaced((front, "prune_commits", prune)):
        yield


class _UnsyncedAfterRename(_Unsynced):
    """A file system whose directory syncs do nothing once something was renamed."""

    def __getattr__(self, name: str) -> Any:
        whole = getattr(self._fs, name)
        if name == "rename":
            self.renamed = True
        return _nothing if name == "sync_directory" and "renamed" in vars(self) else whole


@contextmanager
def data_goes_before_its_name_is_durably_gone() -> Iterator[None]:
    whole = retention.prune_commits

    def prune(fs: FileSystem, *rest: Any) -> list[names.Commit]:
        return whole(_UnsyncedAfterRename(fs), *rest)  # type: ignore[arg-type]

    with _replaced((front, "prune_commits", prune)):
        yield


@contextmanager
def swept_before_its_name_is_durably_gone() -> Iterator[None]:
    """Too rare for random histories, like the one above: test_histories.py plays the one that matters."""
    whole = retention.sweep_leftovers

    with _replaced((front, "sweep_leftovers", lambda fs, *rest: whole(_Unsynced(fs), *rest))):
        yield


@contextmanager
def a_commit_that_is_there_counts_without_a_sync() -> Iterator[None]:
    with _replaced((front, "acknowledge", _nothing)):
        yield


@contextmanager
def a_bad_read_is_a_bad_commit() -> Iterator[None]:
    with _replaced((front, "twice", lambda attempt: attempt())):
        yield


@contextmanager
def an_ill_disk_is_an_empty_one() -> Iterator[None]:
    whole = front.list_commits

    def listed(*arguments: Any, **more: Any) -> Sequence[names.Commit]:
        try:
            return whole(*arguments, **more)
        except OSError:
            return []

    with _replaced((front, "list_commits", listed)):
        yield


@contextmanager
def no_good_commit_is_no_commit() -> Iterator[None]:
    whole = front.Store.restore

    def careless(store: front.Store, *arguments: Any, **more: Any) -> restore.Restored | None:
        try:
            return whole(store, *arguments, **more)
        except NoGoodCommit:
            return None

    with _replaced((front.Store, "restore", careless)):
        yield


@contextmanager
def set_aside_before_an_older_one_was_read() -> Iterator[None]:
    whole = front.Store.restore

    def hasty(store: front.Store, *arguments: Any, **more: Any) -> restore.Restored | None:
        try:
            return whole(store, *arguments, **more)
        except NoGoodCommit:
            for commit in store.commits():
                store._set_aside(commit)
            raise

    with _replaced((front.Store, "restore", hasty)):
        yield


MUTANTS = (
    no_fsync_of_the_file,
    no_fsync_of_the_directory,
    a_failed_fsync_is_taken_for_done,
    rename_before_fsync,
    written_under_the_final_name,
    prune_before_commit,
    step_before_epoch,
    no_check_of_the_epoch,
    claim_by_looking_first,
    prune_keeps_one,
    every_means_exact_steps,
    restore_trusts_the_data,
    a_bad_commit_ends_the_restore,
    fingerprint_ignored,
    budget_ignored,
    claim_directories_not_synced,
    data_goes_before_its_name_is_durably_gone,
    a_commit_that_is_there_counts_without_a_sync,
    a_bad_read_is_a_bad_commit,
    an_ill_disk_is_an_empty_one,
    no_good_commit_is_no_commit,
    set_aside_before_an_older_one_was_read,
)


def caught_by(mutant: Callable[[], Any], seeds: Sequence[int]) -> tuple[int, str] | None:
    """(seed, violation) of the first history that notices the mutant, None when none does."""
    from tests.store.history import play

    for seed in seeds:
        found = play(seed, mutant).violations
        if found:
            return seed, found[0]
    return None
