"""Bytes from one descriptor to another, hashed on the way, by a few workers that each take whole files.

The shape that reaches the speed of a plain copy: hashlib and file calls release the interpreter's lock, so two or three
threads overlap reading, hashing and writing; 1 MiB buffers stay in the processor's cache between the three.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock, Thread
from threading import enumerate as enumerate_threads

from agent.store.errors import Cancelled, ReadFailed
from agent.store.fs import FileSystem, write_all

CHUNK = 1 << 20
EARLY = 8 << 20
"""Bytes after which the disk is told to begin: large enough for the disk, small enough to leave it no pause."""
EMPTY = hashlib.sha256().hexdigest()
_ZEROS = bytes(CHUNK)


def never() -> bool:
    """The answer of a caller who does not cancel."""
    return False


class Pace:
    """A limit on bytes a second, shared by all workers, and the place where a cancel is noticed."""

    def __init__(
        self,
        bytes_per_second: float | None = None,
        cancelled: Callable[[], bool] = never,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._rate = bytes_per_second
        self._cancelled = cancelled
        self._progress = progress
        self._lock = Lock()
        self._free_at = 0.0
        self._stopped = False
        self.bytes = 0

    def stop(self, stopped: bool = True) -> None:
        """End all workers at their next piece; False when none is left and others may come."""
        self._stopped = stopped

    def check(self) -> None:
        """Raise Cancelled when asked to stop."""
        if self._stopped or self._cancelled():
            raise Cancelled

    def passed(self, count: int) -> None:
        """Account for ``count`` bytes; wait as long as the rate demands, in slices that notice a cancel."""
        with self._lock:
            self.bytes += count
            if self._progress is not None:
                self._progress(self.bytes)
            if self._rate:
                self._free_at = max(self._free_at, time.monotonic()) + count / self._rate
            until = self._free_at
        while self._rate and (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.1))
        self.check()


def _all_zero(piece: memoryview) -> bool:
    """Cheap where it is not: most data shows in a few bytes, and what is compared is compared as memory."""
    count = len(piece)
    return not (piece[0] or piece[-1] or piece[count // 2]) and bytes(piece) == _ZEROS[:count]


def hash_through(
    fs: FileSystem,
    source: int,
    source_offset: int,
    size: int,
    buffer: memoryview,
    pace: Pace,
    target: int | None = None,
    target_offset: int = 0,
    holes: bool = False,
    write_early: bool = False,
) -> tuple[int, str]:
    """Read up to ``size`` bytes, write them to ``target`` if given, and return (bytes read, SHA-256 in hexadecimal).

    Pieces that are all zero are not written: the target must be fresh, where a hole reads as zeros; ``holes``: room was reserved
    for them, and they give it back. ``write_early``: the target will be synced, so the disk begins while the processor still
    hashes; where no sync follows it only costs processor time.
    """
    digest = hashlib.sha256()
    done = begun = 0
    while done < size:
        try:
            count = fs.read_into(source, buffer[: min(len(buffer), size - done)], source_offset + done)
        except OSError as error:
            raise ReadFailed(error.errno, error.strerror) from error
        if count == 0:
            break
        piece = buffer[:count]
        digest.update(piece)
        if target is not None:
            if not _all_zero(piece):
                write_all(fs, target, piece, target_offset + done)
            elif holes:
                fs.make_hole(target, target_offset + done, count)
        done += count
        if write_early and target is not None and done - begun >= EARLY:
            fs.start_writing(target, target_offset + begun, done - begun)
            begun = done
        pace.passed(count)
    return done, digest.hexdigest()


def each(tasks: Sequence[Callable[[memoryview], None]], workers: int, pace: Pace) -> None:
    """Run every task once, each with a buffer of its own worker; the first error ends all and is raised.

    ``workers`` 0 runs them here, one after the other, without a thread.
    """
    if workers <= 0:
        buffer = memoryview(bytearray(CHUNK))
        for task in tasks:
            pace.check()
            task(buffer)
        return
    todo = list(reversed(tasks))
    errors: list[BaseException] = []

    def work() -> None:
        buffer = memoryview(bytearray(CHUNK))
        try:
            while True:
                try:
                    task = todo.pop()
                except IndexError:
                    return
                pace.check()
                task(buffer)
        except BaseException as error:  # handed to the caller below
            errors.append(error)
            pace.stop()

    threads = [Thread(target=work, name="segue-copy", daemon=True) for _ in range(min(workers, len(todo)))]
    try:
        started = []
        with suppress(RuntimeError):  # the machine or the job may have no more threads; those that run take all tasks
            for thread in threads:
                thread.start()
                started.append(thread)
        if not started:
            work()
        for thread in started:
            thread.join()
    except BaseException:  # an interrupt: the caller will close what the workers write to
        pace.stop()
        # No join: CPython takes a thread for ended whose join was interrupted. One whose start was cut short runs in a moment, or never;
        # it must find the pace stopped, so that stays.
        until = time.monotonic() + 1.0
        while alive := [thread for thread in threads if thread in enumerate_threads()]:
            if time.monotonic() > until and not any(thread.ident for thread in alive):
                break
            time.sleep(0.001)
        raise
    pace.stop(False)
    if errors:
        raise errors[0]
