"""What can go wrong with the store, as sentences that say what, where and what to do.

The agent decides by class: a superseded attempt ends, a store out of reach is tried again elsewhere, no room lets the
training go on with the last commit.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from agent.errors import ReadDamaged, SegueError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REMEDIES = {
    errno.EROFS: "it is mounted read-only here; run on another machine or ask the site's staff",
    errno.EACCES: "permission is denied; check owner and mode of the directory",
    errno.EPERM: "permission is denied; check owner and mode of the directory",
    errno.ENOENT: "it does not exist; check the path and that the file system is mounted here",
    errno.ENOTDIR: "a part of the path is not a directory; check the path",
    errno.EIO: "the file system reports an I/O error; try another machine, then ask the site's staff",
    errno.ESTALE: "the file handle is stale (the server changed under the mount); try another machine",
    errno.ENOTCONN: "the file system is not connected; try another machine",
    errno.ETIMEDOUT: "the file system does not answer; try again later",
    errno.EMLINK: "the file system allows no more links to a file",
}


class StoreError(SegueError):
    """Anything that the store refuses or cannot do."""


class StoreUnavailable(StoreError):
    """The file system failed a call; what was committed before stays. ``errno`` says which failure, 0 when none was given."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.errno = number


class RunGone(StoreError):
    """The run's directory, or all that was in it, has gone from a staging that is there itself: nothing is begun in its place."""


class Superseded(StoreError):
    """A higher epoch owns the run: this attempt must stop its trainer and exit. ``machine`` and ``job`` are the owner's, empty when
    its claim cannot be read.
    """

    def __init__(self, mine: int, owner: int, machine: str = "", job: str = "") -> None:
        super().__init__(f"epoch {mine} is superseded: epoch {owner} owns the run; this attempt must end")
        self.mine = mine
        self.owner = owner
        self.machine = machine
        self.job = job


class NoRoom(StoreError):
    """A commit does not fit; the last one stays. Missing amounts are 0 where that resource is not what lacks. ``own_budget``: the
    run's own budget is the bound, and retention has nothing left to give: waiting does not help.
    """

    def __init__(
        self,
        message: str,
        *,
        needed: int = 0,
        missing_bytes: int = 0,
        missing_items: int = 0,
        own_budget: bool = False,
    ) -> None:
        super().__init__(message)
        self.needed = needed
        self.missing_bytes = missing_bytes
        self.missing_items = missing_items
        self.own_budget = own_budget


class ReadFailed(OSError):
    """Reading failed, not writing: the caller must know which of two file systems is at fault."""


class BadArchive(StoreError):
    """An archive is not what its manifest says, or its manifest is none; ``problems`` lists each finding."""

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        super().__init__(f"{name}: {'; '.join(problems)}")
        self.name = name
        self.problems = list(problems)


class NoGoodCommit(StoreError, ReadDamaged):
    """Commits are there and none reads well on this machine: its memory or network may be at fault, so nothing was touched."""

    def __init__(self, root: str, problems: Sequence[BadArchive]) -> None:
        super().__init__(
            f"{root}: none of its {len(problems)} commits reads well on this machine ({problems[0]}); they stay as they are, another "
            "machine may read them; if `segue verify` finds all of them bad, remove them and the run begins anew"
        )


class CommitGone(StoreError):
    """A commit was there when it was listed and is no more: a live owner pruned it because better ones are there."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: it was pruned meanwhile; newer commits are there")


class NewerFormat(StoreError):
    """Written by a newer segue: nothing is wrong with it, but this one must not touch it."""


class BadCheckpoint(StoreError):
    """What the trainer wrote cannot become a commit: it is empty, or has members that a restore would refuse or nobody can read."""


class CheckpointChanged(BadCheckpoint):
    """It vanished or changed while it was read: was it still being written, or deleted already? Another look may find it whole."""


class SnapshotUnreadable(StoreError):
    """The scratch disk failed while a snapshot was read: nothing is wrong with the checkpoint or with staging."""


class Cancelled(StoreError):
    """The caller asked to stop; nothing was committed."""

    def __init__(self) -> None:
        super().__init__("cancelled")


class FingerprintChanged(StoreError):
    """The configuration differs from the one that the run began with. ``differences``: (field, before, now)."""

    def __init__(self, run: str, differences: Sequence[tuple[str, str | None, str | None]]) -> None:
        lines = [f"run {run} was begun with another configuration; it must not be resumed under this one:"]
        for field, before, now in differences:
            lines.append(f"  {field}: was {_shown(before)}, is now {_shown(now)}")
        names = " ".join(f"--accept-change {field}" for field, _, _ in differences)
        lines.append(f"choose another run name, put the old values back, or say that it is deliberate: {names}")
        super().__init__("\n".join(lines))
        self.differences = list(differences)


def _shown(value: str | None) -> str:
    return "absent" if value is None else repr(value)


def no_room(error: OSError) -> bool:
    """Whether the file system says that it is full or a quota is reached."""
    return error.errno in _NO_ROOM


IN_STAGING = "remove data from staging or prune the run (segue prune)"
IN_SCRATCH = "the job's disk is full; raise request_disk"


@contextmanager
def speaking(doing: str, path: str, more_room: str = IN_STAGING) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError with a sentence: ``doing`` is a gerund, ``path`` where, ``more_room`` what helps
    when that disk is full.
    """
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number) if number else str(error)
        if number in _NO_ROOM:
            what = "quota reached" if number == errno.EDQUOT else "no space left"
            raise NoRoom(f"{doing} {path}: {what} ({reason}); {more_room}") from error
        remedy = _REMEDIES.get(number, "see the file system's own log")
        raise StoreUnavailable(f"{doing} {path}: {reason}: {remedy}", number) from error
