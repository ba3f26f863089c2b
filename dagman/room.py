"""What a run occupies in staging at its fullest, and whether that fits (invariant I5: said before submission when it does not).

The retention's checkpoints and one on its way, and the inputs. The size of a checkpoint is known from the newest commit, else from run.toml.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import SegueError
from agent.pack import archive_size, members
from dagman.inputs import read_record, same_source
from dagman.prepare import Asked, record_path, requests

_GB = 1e9
# Claims, manifests, logs of attempts and directories: what a store has beside its commits.
_OTHER_ITEMS = 50


@dataclass(frozen=True)
class Need:
    """``checkpoints``: so many at once; ``checkpoint_bytes``: of each, None when nobody knows; ``known_by``: where that is from;
    ``inputs_bytes``: of those whose size is known; ``limit_bytes``, ``limit_items``: None without one; ``limit``: whose they are.
    """

    checkpoints: int
    checkpoint_bytes: int | None
    known_by: str
    inputs: int
    inputs_bytes: int
    limit_bytes: int | None
    limit_items: int | None
    limit: str

    @property
    def bytes(self) -> int | None:
        """All of it, None when the size of a checkpoint is not known."""
        return None if self.checkpoint_bytes is None else self.checkpoints * self.checkpoint_bytes + self.inputs_bytes


def need(asked: Asked, newest_bytes: int | None = None) -> Need:
    """``newest_bytes``: size of the run's newest commit, None where there is none or it cannot be seen."""
    spec, site = asked.spec, asked.site
    keep = spec.retention
    checkpoints = keep.keep + 1 + (spec.steps // keep.every if keep.every else 0) + (1 if keep.best else 0)
    given = spec.budget.checkpoint_gb
    told = None if given is None else int(given * _GB)
    sizes = _inputs(asked)
    own = spec.budget.gb
    return Need(
        checkpoints,
        told if newest_bytes is None else newest_bytes,
        "budget.checkpoint_gb" if newest_bytes is None else "the newest one",
        len(sizes),
        sum(sizes),
        int(own * _GB) if own is not None else site.staging.bytes or None,
        spec.budget.items or site.staging.items or None,
        "budget.gb" if own is not None else f"the usual quota of {site.title}",
    )


def _inputs(asked: Asked) -> list[int]:
    """Bytes of the inputs' archives, as far as they are here or recorded."""
    try:
        record, found = read_record(record_path(asked.run_toml)), []
        for one in requests(asked.spec, asked.run_toml):
            known = record.get(one.name)
            if one.source.exists():
                found.append(archive_size(members(one.source)))
            elif known is not None and same_source(known, one.source):
                found.append(known.bytes)
    except (SegueError, OSError):
        return []  # what is wrong with them is said among the refusals
    return found


def too_much(asked: Asked, wanted: Need) -> list[str]:
    """One sentence for each bound that the run will not keep."""
    found = []
    if wanted.bytes is not None and wanted.limit_bytes is not None and wanted.bytes > wanted.limit_bytes:
        own = asked.spec.budget.gb is not None
        remedy = "give more" if own else "ask for a larger quota and say it as budget.gb"
        retention = asked.spec.retention
        if retention.keep > 2 or retention.every or retention.best:
            remedy += ", or keep fewer checkpoints ([retention])"
        many, most = _apart(wanted.bytes, wanted.limit_bytes)
        found.append(
            f"{'budget.gb' if own else 'budget'}: {told(wanted)} are {many} in staging, more than "
            f"{wanted.limit} ({most}): {remedy}; else a checkpoint will find "
            "no room, and the run cannot go on from it"
        )
    items = wanted.checkpoints + wanted.inputs + _OTHER_ITEMS
    if wanted.limit_items is not None and items > wanted.limit_items:
        found.append(
            f"retention: about {items} files and directories will lie in staging, more than the {wanted.limit_items} that are allowed: "
            "keep fewer checkpoints (`every`, `keep`), or give more as budget.items"
        )
    return found


def _gb(count: int, digits: int = 2) -> str:
    """With more than ``digits`` decimals where those would show nothing."""
    while count and not round(count / _GB, digits):
        digits += 1
    text = f"{count / _GB:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.')} GB"


def _apart(many: int, few: int) -> tuple[str, str]:
    """Two different sizes in so many decimals that the difference shows."""
    digits = 2
    while _gb(many, digits) == _gb(few, digits):
        digits += 1
    return _gb(many, digits), _gb(few, digits)


def told(wanted: Need) -> str:
    """What takes the room, for sentences."""
    size = "" if wanted.checkpoint_bytes is None else f" of {_gb(wanted.checkpoint_bytes)} ({wanted.known_by})"
    inputs = f" and inputs of {_gb(wanted.inputs_bytes)}" if wanted.inputs else ""
    return f"{wanted.checkpoints} checkpoints{size}{inputs}"
