"""`retention.every`: of each multiple, the first checkpoint at or after it.

Not the exact step: OpenPI's label 5000 has 5001 updates, and an interval that the agent chose meets no multiple at all. The publisher, the recipes
that remove old checkpoints from scratch and the store's prune must mean the same ones; what the one drops the other cannot keep.
"""

from __future__ import annotations

from collections.abc import Iterable


def first_at_each(steps: Iterable[int], every: int | None, after: int = 0) -> list[int]:
    """Those of ``steps``, which rise, that no other step precedes since their multiple of ``every``; ``after`` is the step before the first one."""
    found: list[int] = []
    if not every:
        return found
    before = after
    for step in steps:
        if step // every > before // every:
            found.append(step)
        before = step
    return found
