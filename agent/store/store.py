"""The store of one run, as the agent, the jobs and the command line see it; the format is docs/format.md.

It never starts a process, never waits for anything but the disk, and keeps no state of its own but the claim that it made:
the directory is the truth, so that any call may be the last.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from agent.store import claims, names
from agent.store.budget import Budget, Room, require_room, rooms
from agent.store.claims import Claim, Claimant, ClaimRecord
from agent.store.copying import Pace, never
from agent.store.errors import (
    IN_SCRATCH,
    BadArchive,
    CommitGone,
    NoGoodCommit,
    NoRoom,
    ReadFailed,
    StoreError,
    StoreUnavailable,
    Superseded,
    no_room,
    speaking,
)
from agent.store.fs import FileSystem, PosixFileSystem, rename_once
from agent.store.listing import best_commit, highest_committed_epoch, list_commits
from agent.store.manifest import Manifest, read_manifest
from agent.store.names import Commit
from agent.store.publish import WORKERS, Metadata, Plan, acknowledge, already_there, as_commit, plan, write_commit
from agent.store.restore import Restored, check_commit, only_this_commit, twice, unpack
from agent.store.retention import (
    FEWEST,
    Retention,
    leftover_bytes,
    prune_commits,
    set_aside_files,
    sweep_commits,
    sweep_leftovers,
)


def _token() -> str:
    return secrets.token_hex(6)


def latest(root: Path, fs: FileSystem | None = None) -> Commit | None:
    """The commit that a restore would try first: one directory listing and one stat. Raises StoreUnavailable."""
    with speaking("listing", str(root)):
        return best_commit(fs or PosixFileSystem(), str(root))


class Store:
    """One run's checkpoints.

    ``root``: ``<staging>/segue/<run>``. ``budget`` bounds the run; ``quotas`` is the text that ``get_quotas`` printed, where
    it could be asked. ``workers``: threads that copy; 0 copies without threads. All methods raise StoreError subclasses.
    """

    def __init__(
        self,
        root: Path,
        fs: FileSystem | None = None,
        *,
        budget: Budget | None = None,
        quotas: str | None = None,
        workers: int = WORKERS,
        clock: Callable[[], float] = time.time,
        token: Callable[[], str] = _token,
    ) -> None:
        self.root = root
        self.fs: FileSystem = fs or PosixFileSystem()
        self.budget = budget or Budget()
        self._quotas = quotas
        self._workers = workers
        self._clock = clock
        self._token = token
        self._root = str(root)
        self._claim: Claim | None = None

    # Owning the run

    def claim(self, claimant: Claimant, fingerprint: Mapping[str, str], accept: Sequence[str] = ()) -> Claim:
        """Own the run from now on; the first claim makes its directories. ``accept`` names deliberate changes.

        Raises FingerprintChanged, NewerFormat, StoreUnavailable, NoRoom.
        """
        try:
            with speaking("claiming the run in", self._root):
                for path in (self._root, f"{self._root}/{names.EPOCHS}", f"{self._root}/{names.CHECKPOINTS}"):
                    self._make_directory(path)
                self._claim = claims.make_claim(
                    self.fs,
                    self._root,
                    claimant,
                    fingerprint,
                    accept,
                    self._clock,
                    self._token,
                    lambda: highest_committed_epoch(self.fs, self._root),
                )
        except NoRoom as error:
            # Only the owner may remove them, and without a claim there is none: the last one may be alive.
            left = self.leftover_bytes()
            if not left:
                raise
            raise NoRoom(
                f"{error}; {left} bytes are of publishes that were killed: when no job of this run is alive, "
                f"{self.leftovers_removal}"
            ) from error
        return self._claim

    def _make_directory(self, path: str, *, of_runs: bool = False) -> None:
        """Make it if it is absent, and make its name durable in any case: who made it may have died before its sync.

        Staging itself must be there: making it would hide a mount that is missing.
        """
        above = str(Path(path).parent)
        if path == self._root:
            self._make_directory(above, of_runs=True)
        try:
            self.fs.stat(path)
        except FileNotFoundError:
            with suppress(FileExistsError):
                self.fs.mkdir(path)
        try:
            self.fs.sync_directory(above)
        except PermissionError:
            if not of_runs:  # staging may be a directory that one may pass through but not open
                raise

    def current_epoch(self) -> int:
        """The epoch that owns the run, 0 before the first claim."""
        with speaking("listing the claims in", self._root):
            return claims.highest_epoch(self.fs, self._root)

    def owns(self, claim: Claim) -> bool:
        """Whether no later attempt has claimed the run."""
        return self.current_epoch() <= claim.epoch

    def heartbeat(self, claim: Claim) -> None:
        """Show that this attempt lives (modification time of its claim)."""
        with speaking("touching the claim in", self._root):
            claims.heartbeat(self.fs, self._root, claim)

    def records(self) -> list[ClaimRecord]:
        """The claims that can be read, oldest first."""
        with speaking("reading the claims in", self._root):
            found = (claims.read_record(self.fs, self._root, one) for one in claims.epochs_in(self.fs, self._root))
            return [one for one in found if one is not None]

    def require_own(self, claim: Claim) -> None:
        """Raise Superseded, with what the newer claim says of itself, when ``claim`` does not own the run any more."""
        try:
            claims.require_own(claim, self.current_epoch())
        except Superseded as error:
            with suppress(OSError, StoreError):
                newer = claims.read_record(self.fs, self._root, error.owner)
                if newer is not None:
                    error.machine, error.job = newer.machine, newer.job
            raise

    # Reading

    def commits(self) -> list[Commit]:
        """All commits in readers' order: the one to restore first stands first."""
        with speaking("listing the commits in", self._root):
            return list_commits(self.fs, self._root)

    def manifest(self, commit: Commit) -> Manifest:
        """What a commit says about itself. Raises BadArchive, NewerFormat, StoreUnavailable."""
        with speaking("reading", str(commit.path)):
            fd = self.fs.open(str(commit.path))
            try:
                return read_manifest(self.fs, commit.name, fd)[0]
            finally:
                self.fs.close(fd)

    def verify(self, commit: Commit, *, pace: Pace | None = None) -> list[str]:
        """Read every byte; what is wrong with it, empty when it is good. Raises CommitGone, NewerFormat, StoreUnavailable."""
        with speaking("verifying", str(commit.path)):
            try:
                twice(lambda: check_commit(self.fs, commit, pace or Pace(), self._workers))
            except BadArchive as error:
                return error.problems
            except FileNotFoundError as error:
                raise CommitGone(commit.name) from error
            except ReadFailed as error:
                if only_this_commit(error):
                    return [f"it cannot be read: {error.strerror}"]
                raise
            self._mark_verified(commit)
            return []

    def _mark_verified(self, commit: Commit) -> None:
        with suppress(OSError):
            self.fs.set_attribute(str(commit.path), names.VERIFIED, f"{self._clock():.0f}".encode())

    def restore(
        self, destination: Path, report: Callable[[str], None] = print, *, pace: Pace | None = None
    ) -> Restored | None:
        """Put the newest good commit into the directory ``destination``; None when the run has no commit.

        A bad one is passed over for the next older. When that one reads well, the bad one is reported, and set aside if this store made
        the claim that owns the run: before, it may be the machine that reads badly.
        Raises NewerFormat, NoRoom (scratch is full), NoGoodCommit, StoreUnavailable (also when nothing could be read at all).
        """
        skipped: dict[str, Commit] = {}
        bad: dict[str, BadArchive] = {}
        unread: dict[str, ReadFailed] = {}
        second_chance = False
        with speaking("listing the commits in", self._root):
            found = list_commits(self.fs, self._root, marks=False)
        while todo := [one for one in found if one.name not in skipped]:
            commit = todo[0]
            try:
                with speaking("restoring into", str(destination), IN_SCRATCH):
                    try:
                        if unread and not second_chance:
                            # The disk reads again. Was it the file that failed, or the disk for a while? Taking an older
                            # commit for the second would lose what was acknowledged.
                            twice(lambda one=commit: check_commit(self.fs, one, pace or Pace(), self._workers))  # type: ignore[misc]
                            second_chance = True
                            for name in unread:
                                del skipped[name]
                            continue
                        manifest = twice(lambda one=commit: self._unpack(one, destination, pace))  # type: ignore[misc]
                    except ReadFailed as error:
                        if not only_this_commit(error):
                            self._unreadable(commit, error)
                        report(f"{commit.name} cannot be read ({error.strerror}); taking the next older commit")
                        skipped[commit.name] = commit
                        unread[commit.name] = error
                        continue
                    except FileNotFoundError:
                        if self._is_there(commit):
                            raise
                        found = list_commits(self.fs, self._root, marks=False)
                        continue
            except BadArchive as error:
                skipped[commit.name] = commit
                bad[commit.name] = error
                continue
            for name, problem in bad.items():
                aside = self._set_aside(skipped[name])
                report(
                    f"{problem}; {f'set aside as {aside}' if aside else 'left where it is'}; taking the next older commit"
                )
            self._mark_verified(commit)
            return Restored(commit, manifest, tuple(skipped.values()))
        if unread:
            name, failure = next(iter(unread.items()))
            self._unreadable(skipped[name], failure)
        if bad:
            raise NoGoodCommit(self._root, list(bad.values()))
        return None

    def _unpack(self, commit: Commit, destination: Path, pace: Pace | None) -> Manifest:
        return unpack(self.fs, commit, str(destination), self._token(), pace or Pace(), self._workers)

    def _unreadable(self, commit: Commit, error: ReadFailed) -> None:
        with speaking("reading", str(commit.path)):
            raise OSError(error.errno, error.strerror) from error

    def _is_there(self, commit: Commit) -> bool:
        try:
            self.fs.stat(str(commit.path))
        except FileNotFoundError:
            return False
        return True

    def _set_aside(self, commit: Commit) -> str | None:
        """Give a bad commit a name that readers ignore; only the owner does so. The new name, None when nothing was done."""
        if self._claim is None or not self.owns(self._claim):
            return None
        name = names.set_aside_name(commit.name, self._claim.epoch)
        before, after = str(commit.path), f"{commit.path.parent}/{name}"
        try:
            rename_once(self.fs, before, after, self.fs.stat(before).inode)
        except OSError:
            return None
        return name

    def put_aside(self, commit: Commit) -> str | None:
        """Set a commit aside that a reader found bad; the new name, None when this store's claim does not own the run, or when no other
        commit reads well here: then it may be the machine that reads badly.
        """
        others = (one for one in self.commits() if one.name != commit.name)
        return self._set_aside(commit) if any(not self.verify(one) for one in others) else None

    def withdraw(self, claim: Claim, step: int) -> str:
        """Set aside one's own commit of this step, of which its publisher found that the trainer had not finished it; the new name, empty
        when there is none. Raises Superseded, StoreUnavailable.
        """
        with speaking("withdrawing a commit in", self._root):
            self.require_own(claim)
            commit = names.commit_name(step, claim.epoch)
            directory, name = f"{self._root}/{names.CHECKPOINTS}", names.set_aside_name(commit, claim.epoch)
            before = f"{directory}/{commit}"
            try:
                rename_once(self.fs, before, f"{directory}/{name}", self.fs.stat(before).inode)
            except FileNotFoundError:
                return ""
            self.fs.sync_directory(directory)
            return name

    def leftover_bytes(self) -> int:
        """Room that publishes take which were killed or are under way; 0 where that cannot be seen."""
        return leftover_bytes(self.fs, self._root)

    @property
    def leftovers_removal(self) -> str:
        """The command with which a person gets that room back."""
        return f"rm {shlex.quote(f'{self._root}/{names.CHECKPOINTS}')}/.[0-9]*"

    def set_aside(self) -> list[Path]:
        """Commits that were found bad; never read, never removed by segue on its own."""
        with speaking("listing the commits in", self._root):
            return [Path(path) for path in set_aside_files(self.fs, self._root)]

    def remove_set_aside(self) -> list[Path]:
        """Remove what was set aside, on a person's word; the paths."""
        found = self.set_aside()
        for path in found:
            with speaking("removing", str(path)), suppress(FileNotFoundError):
                self.fs.unlink(str(path))
        return found

    # Writing

    def publish(
        self,
        claim: Claim,
        snapshot: Path,
        metadata: Metadata,
        *,
        seen: str | None = None,
        retention: Retention | None = None,
        bytes_per_second: float | None = None,
        cancelled: Callable[[], bool] = never,
        progress: Callable[[int], None] | None = None,
    ) -> Commit:
        """Make everything in the directory ``snapshot`` a commit; when this returns, it is durable. ``seen``: what ``snapshot`` returned.

        With ``retention``, a commit that does not fit makes room by it first. Raises Superseded, NoRoom, BadCheckpoint,
        SnapshotUnreadable, Cancelled, StoreUnavailable; then nothing was committed, and what was committed before stays.
        """
        with speaking("publishing to", self._root):
            self.require_own(claim)
            job = plan(self.fs, self._root, snapshot, claim.epoch, metadata, self._clock(), seen)
            if already_there(self.fs, job.final):
                acknowledge(self.fs, job)
                return as_commit(self.fs, job)
            self._make_room(claim, job.layout.total, retention)
            try:
                self._write(claim, job, Pace(bytes_per_second, cancelled, progress))
            except OSError as error:
                # A quota that no look shows beforehand: NFS, or one of a whole group.
                if not (no_room(error) and self._free(claim, retention)):
                    raise
                if already_there(self.fs, job.final):  # it was the sync of its name that found no room
                    acknowledge(self.fs, job)
                else:
                    self._write(claim, job, Pace(bytes_per_second, cancelled, progress))
            return as_commit(self.fs, job)

    def _write(self, claim: Claim, job: Plan, pace: Pace) -> None:
        try:
            write_commit(self.fs, job, self._token(), pace, self._workers, lambda: self.require_own(claim))
        except FileNotFoundError:
            self.require_own(claim)  # a newer owner has swept the temporary name
            raise

    def rooms(self) -> list[Room]:
        """What each bound leaves free, the most trusted first."""
        with speaking("asking for the room in", self._root):
            return rooms(self.fs, self._root, self.budget, self._quotas)

    def _make_room(self, claim: Claim, needed: int, retention: Retention | None) -> None:
        try:
            require_room(self.rooms(), self._root, needed)
        except NoRoom:
            self._free(claim, retention)
            spare = len(list_commits(self.fs, self._root, marks=False)) > FEWEST
            require_room(self.rooms(), self._root, needed, prunable=spare)

    def _free(self, claim: Claim, retention: Retention | None) -> bool:
        """Remove what a killed publisher left and what the retention does not keep; whether there was anything."""
        self.require_own(claim)
        swept = sweep_commits(self.fs, self._root, claim.epoch)
        pruned = self.prune(claim, retention) if retention is not None else []
        return bool(swept or pruned)

    def prune(self, claim: Claim | None, retention: Retention, dry_run: bool = False) -> list[Commit]:
        """Remove what the retention does not keep, oldest first; the removed (``dry_run``: to be removed) commits.

        ``claim`` None: a person asks. Either way the newest two good commits stay. Raises Superseded, StoreUnavailable.
        """

        def may_go_on() -> None:
            if claim is not None:
                self.require_own(claim)

        with speaking("pruning", self._root):
            may_go_on()
            return prune_commits(self.fs, self._root, retention, dry_run, may_go_on)

    def sweep(self, claim: Claim) -> list[str]:
        """Remove temporary names of epochs up to this one and all but the newest claims; their paths."""
        with speaking("sweeping", self._root):
            self.require_own(claim)
            return sweep_leftovers(self.fs, self._root, claim.epoch)


__all__ = ["Store", "StoreUnavailable", "latest"]
