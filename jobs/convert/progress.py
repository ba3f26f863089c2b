"""How far a conversion is: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 30
_INTERVAL_S = 0.1


class Progress:
    """``Progress("convert", 120)``, then ``step()`` for each episode, and ``close()``."""

    def __init__(self, what: str, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        self._what, self._total, self._done, self._first = what, total, done, done
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._began = time.monotonic()
        self._last = 0.0

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        if self._shown and (now - self._last >= _INTERVAL_S or self._done == self._total):
            self._last = now
            self._draw(now)

    def close(self) -> None:
        """Leave the line."""
        if self._shown and self._last:
            self._stream.write("\n")
            self._stream.flush()

    def _draw(self, now: float) -> None:
        filled = _WIDTH * self._done // max(1, self._total)
        rate = (self._done - self._first) / max(1e-9, now - self._began)
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        self._stream.write(
            f"\r{self._what:<8} {'━' * filled}{'╌' * (_WIDTH - filled)} {self._done}/{self._total} episodes, {left:.0f} s left   "
        )
        self._stream.flush()
