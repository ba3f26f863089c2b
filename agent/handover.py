"""The small record that a segment sends back when it ends (docs/architecture.md): data here, one atomic write to disk."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
_ROOM = 512 << 10


@dataclass
class Handover:
    """Fields and units as in docs/architecture.md; filled in while the attempt goes on."""

    run: str
    segment: int
    queue_class: str
    steps: int
    epoch: int = 0
    state: str = "running"
    exit_code: int | None = None
    reason: str = ""
    machine: str = ""
    slot: str = ""
    job_id: str = ""
    began: float = 0.0
    ended: float | None = None
    restored: dict[str, Any] | None = None
    step: int = 0
    commit: str | None = None
    commits: list[dict[str, Any]] = field(default_factory=list)
    redone_steps: int = 0
    starts: int = 0
    pace: dict[str, float] = field(default_factory=dict)
    goodput: dict[str, float] = field(default_factory=dict)
    failure: dict[str, Any] | None = None
    last_lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    format: int = FORMAT

    def as_json(self) -> dict[str, Any]:
        """With the keys of the contract."""
        fields = asdict(self)
        fields["class"] = fields.pop("queue_class")
        return fields


def _room(path: Path) -> Path:
    return path.with_name(f".{path.name}.room")


def reserve(path: Path) -> None:
    """Keep room for the record from the start: a trainer that fills the scratch disk is just what it has to tell of."""
    with suppress(OSError):
        _room(path).write_bytes(bytes(_ROOM))


def known_commit(path: Path) -> str:
    """Name of the newest commit that the workflow knew when this job was submitted, from the placeholder that travels under the handover's
    name; empty when it knew of none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("known")
    except (OSError, ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""


def write(handover: Handover, path: Path) -> None:
    """Write the record under its name in one step, so that nobody ever reads half of it. What no text can hold, of the name of a
    file that is not in UTF-8, becomes a question mark.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = json.dumps(handover.as_json(), indent=1, ensure_ascii=False) + "\n"
    with suppress(OSError):
        _room(path).unlink(missing_ok=True)
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
