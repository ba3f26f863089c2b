"""HTCondor's event logs as plain data: the log that all node jobs share, DAGMan's node log (skips), and DAGMan's own job log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUBMIT, EXECUTE, EVICTED, TERMINATED, SHADOW_EXCEPTION, ABORTED, HELD, RELEASED = 0, 1, 4, 5, 7, 9, 12, 13
DISCONNECTED, RECONNECTED, RECONNECT_FAILED, PRESKIP, FILE_TRANSFER = 22, 23, 24, 34, 40

_NODE = re.compile(r'(?:DAG Node: *|\bDAGNodeName *= *")([^\s"]+)')


@dataclass(frozen=True)
class Event:
    """One event: HTCondor's number of its kind, the job's cluster, Unix seconds, and the event's own attributes."""

    kind: int
    cluster: int
    at: float
    facts: Mapping[str, Any]

    def text(self, *keys: str) -> str | None:
        """The first of these attributes that says something, on one line."""
        for key in keys:
            said = " ".join(str(self.facts.get(key) or "").split())
            if said:
                return said
        return None

    @property
    def node(self) -> str | None:
        """The DAG node that a submit or skip event names: `DAG Node: x` up to HTCondor 24, an ad with DAGNodeName since."""
        for key in ("LogNotes", "SkipEventLogNotes", "SkipNote"):
            match = _NODE.search(str(self.facts.get(key) or ""))
            if match is not None:
                return match[1]
        return None


def read_events(path: Path) -> list[Event]:
    """All events written so far; empty when the log does not exist yet. A half-written last event is left for the next read."""
    if not path.exists():
        return []
    import htcondor2

    found = []
    with htcondor2.JobEventLog(str(path)) as log:
        try:
            for entry in log.events(stop_after=0):
                found.append(
                    Event(
                        int(entry.type),
                        int(entry.cluster),
                        float(entry.timestamp),
                        {key: entry[key] for key in entry},
                    )
                )
        except (htcondor2.HTCondorException, OSError, ValueError):
            # The rest of a damaged log cannot be told apart from rubbish; what was read before stands.
            pass
    return found
