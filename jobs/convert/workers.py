"""The processes that decode, resize and encode: one episode each at a time, forked from a server that has imported lerobot once.

A worker ends when the process that asked for it is gone, however that ended.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from typing import Any, TypeVar

from agent.errors import SegueError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """``count`` processes, for use in a ``with`` statement."""

    def __init__(self, count: int, preload: Sequence[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        _start_server()
        self._count = count
        self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._end()  # nobody waits for the episodes in progress
        self._pool.shutdown(wait=True, cancel_futures=True)

    def each(self, call: Callable[..., Result], items: Sequence[Item], *arguments: Any) -> Iterator[tuple[int, Result]]:
        """``call(item, *arguments)`` for all items, in the order in which they end: (place, result).

        Never more than two a worker are on their way. The first error ends it. Raises SegueError when a worker dies.
        """
        waiting = iter(enumerate(items))
        running: dict[Future[Result], int] = {}
        try:
            while True:
                while len(running) < 2 * self._count and (following := next(waiting, None)) is not None:
                    place, item = following
                    running[self._pool.submit(call, item, *arguments)] = place
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise SegueError(
                "a worker process died, most often for want of memory; run the same command again with fewer --workers, it goes on where it stopped"
            ) from error
        finally:
            for future in running:
                future.cancel()

    def one(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """``call(*arguments)`` in a worker."""
        for _, result in self.each(_applied, [call], *arguments):
            found: Result = result
        return found

    def _end(self) -> None:
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            process.terminate()


def _start_server() -> None:
    """With SIGINT blocked, which it inherits: until it has imported what is preloaded, Ctrl-C would end it with a traceback."""
    resource_tracker.ensure_running()  # else the server starts it, and that unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _applied(call: Callable[..., Result], *arguments: Any) -> Result:
    return call(*arguments)


def _begin() -> None:
    """Ctrl-C is the parent's affair; its end is ours too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
