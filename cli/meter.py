"""How far a transfer is, on stderr and on a terminal only: one line that is written over and gone at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def meter() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function of what is done, bytes so far and bytes in all; off a terminal it does nothing."""
    if not sys.stderr.isatty():
        yield lambda doing, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    shown = Progress(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, TaskID] = {}

    def watch(doing: str, done: int, total: int) -> None:
        if doing not in tasks:
            for task in tasks.values():
                shown.remove_task(task)
            tasks.clear()
            tasks[doing] = shown.add_task(doing, total=total)
            shown.start()  # only now: before, ssh may ask for a password
        shown.update(tasks[doing], completed=done, total=max(total, done))

    try:
        yield watch
    finally:
        shown.stop()
