"""The embedded HTCondor: a real personal pool without root, started where it is needed (docs/pool.md)."""

from dagman.pool.embedded import EmbeddedPool, PoolFailed, PoolStatus

__all__ = ["EmbeddedPool", "PoolFailed", "PoolStatus"]
