"""Imported by the server from which workers are forked, so that lerobot and torch are imported once and not by each of them."""

from __future__ import annotations

import contextlib
import logging

logging.getLogger().setLevel(logging.ERROR)

# What does not import is said, in a sentence, by the worker that needs it.
with contextlib.suppress(Exception):
    import lerobot.datasets.lerobot_dataset  # noqa: F401

    import jobs.convert.episode_job  # noqa: F401
