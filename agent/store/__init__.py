"""The checkpoint store: claims, commits, restores on plain files that survive any crash (docs/format.md).

Names are imported on first use, because the agent's start must not pay for parts that it may not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.store.budget import Budget as Budget
    from agent.store.claims import Claim as Claim
    from agent.store.claims import Claimant as Claimant
    from agent.store.claims import ClaimRecord as ClaimRecord
    from agent.store.errors import BadArchive as BadArchive
    from agent.store.errors import BadCheckpoint as BadCheckpoint
    from agent.store.errors import Cancelled as Cancelled
    from agent.store.errors import CommitGone as CommitGone
    from agent.store.errors import FingerprintChanged as FingerprintChanged
    from agent.store.errors import NoRoom as NoRoom
    from agent.store.errors import StoreError as StoreError
    from agent.store.errors import StoreUnavailable as StoreUnavailable
    from agent.store.errors import Superseded as Superseded
    from agent.store.fs import FileSystem as FileSystem
    from agent.store.fs import PosixFileSystem as PosixFileSystem
    from agent.store.manifest import Manifest as Manifest
    from agent.store.names import Commit as Commit
    from agent.store.priority import lower_priority as lower_priority
    from agent.store.publish import Metadata as Metadata
    from agent.store.restore import Restored as Restored
    from agent.store.retention import Retention as Retention
    from agent.store.store import Store as Store
    from agent.store.store import latest as latest
    from agent.store.tree import snapshot as snapshot

_HOMES = {
    "Budget": "budget",
    "Claim": "claims",
    "Claimant": "claims",
    "ClaimRecord": "claims",
    "BadArchive": "errors",
    "BadCheckpoint": "errors",
    "Cancelled": "errors",
    "CommitGone": "errors",
    "FingerprintChanged": "errors",
    "NoRoom": "errors",
    "StoreError": "errors",
    "StoreUnavailable": "errors",
    "Superseded": "errors",
    "FileSystem": "fs",
    "PosixFileSystem": "fs",
    "Manifest": "manifest",
    "Commit": "names",
    "lower_priority": "priority",
    "Metadata": "publish",
    "Restored": "restore",
    "Retention": "retention",
    "Store": "store",
    "latest": "store",
    "snapshot": "tree",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'agent.store' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"agent.store.{_HOMES[name]}"), name)
