"""How numbers are shown to people: durations, sizes, ages; and a table that is plain text off a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

_NO_EDGE = 10_000


def duration(seconds: float) -> str:
    """12 s, 3 min, 2.5 h, 1.2 d."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"


def size(count: float) -> str:
    """Bytes in decimal units, as quotas count them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def console() -> Console:
    """Output for people: colour on a terminal only, NO_COLOR respected, no wrapping in a pipe."""
    # A table is cut to the width even so, and off a terminal rich takes 80 columns for it.
    return Console(highlight=False, soft_wrap=True, markup=False, width=None if sys.stdout.isatty() else _NO_EDGE)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without frame."""
    made = Table(*titles, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    return made
