"""Whether a trainer leaves a checkpoint alone once it has its name.

Where nothing but the name tells that a checkpoint is finished, nobody else would notice a trainer that writes under the final name: what was
linked and published of it would be a part. So each is looked at again: soon, and then at ages that double, because a slow writer pauses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from stat import S_ISDIR

from agent.recipes.base import Finished

SECOND_LOOK_S = 0.2
_DOUBT_S = 1.0
_WATCHED_S = 600.0


class Watched:
    """A checkpoint as it was at first sight; ``gone`` when there is nothing left to look at."""

    def __init__(self, finished: Finished, now: float) -> None:
        self.step = finished.step
        self.path = str(finished.root / finished.paths[0])  # what lies beside may change
        self.since = now
        self.due = now + SECOND_LOOK_S
        self.gone = False
        self._inode = 0
        self._later = False
        self._seen: dict[str, tuple[int, int]] = {}
        self.doubtful = False
        """It looks as if it was written after it got its name. File systems' clocks are coarse, so a small file that was renamed at once looks like
        that too: this is no proof."""
        try:
            top = os.lstat(self.path)
            self._inode = top.st_ino
            self._seen = dict(_entries(self.path, top))
        except OSError:
            self.gone = True
            return
        # A rename changes the time of the inode's change; so does a link, so this is looked at before there is one.
        newest = max((modified for _, modified in self._seen.values()), default=0)
        self._later = newest > top.st_ctime_ns
        self.doubtful = self._later or (newest == top.st_ctime_ns and not S_ISDIR(top.st_mode))

    @property
    def settled_at(self) -> float:
        """When it may be taken for finished."""
        return self.since + (_DOUBT_S if self._later else SECOND_LOOK_S)

    @property
    def killed_before(self) -> float:
        """It may not when its trainer was killed before this: nobody could see whether it went on writing."""
        return self.since + SECOND_LOOK_S if self.doubtful else 0.0

    def look(self, now: float) -> str:
        """A sentence on what was added or written since the first sight, empty when nothing was. A trainer may delete it, or put another in
        its place.
        """
        try:
            top = os.lstat(self.path)
            self.gone = top.st_ino != self._inode
            for path, entry in () if self.gone else _entries(self.path, top):
                if self._seen.get(path) != entry:
                    inside = path[len(self.path) + 1 :]
                    return (
                        f"{inside} was written after {self.path} had its name"
                        if inside
                        else f"{path} was written after it had its name"
                    )
        except OSError:  # it is being deleted
            self.gone = not os.path.lexists(self.path)
        self.due = now + max(SECOND_LOOK_S, now - self.since)
        self.gone = self.gone or now - self.since > _WATCHED_S
        return ""


def _entries(path: str, found: os.stat_result) -> Iterator[tuple[str, tuple[int, int]]]:
    """Everything at and below ``path``, with size and time of modification; of directories only that they are there."""
    if not S_ISDIR(found.st_mode):
        yield path, (found.st_size, found.st_mtime_ns)
        return
    yield path, (0, 0)
    with os.scandir(path) as entries:
        for entry in entries:
            yield from _entries(entry.path, entry.stat(follow_symlinks=False))
