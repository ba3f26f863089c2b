"""Exit codes of the agent: the whole contract with DAGMan and HTCondor (docs/architecture.md)."""

from __future__ import annotations

OK = 0
"""The segment's time is used, or the run is complete; the handover says which."""

TEMPORARY = 75
"""Staging unreachable, GPU lost, node fault: DAGMan's RETRY runs the segment again, on another machine."""

PERMANENT = 78
"""No retry can help: RETRY ... UNLESS-EXIT 78 fails the node at once."""

CHECKPOINT = 85
"""A checkpoint for HTCondor to transfer, where a site has no mounted staging (checkpoint_exit_code)."""
