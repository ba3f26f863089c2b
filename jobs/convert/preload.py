"""Imported by the server from which workers are forked, so that lerobot and torch are imported once and not by each of them."""

from __future__ import annotations

import contextlib
import logging
import os

_ASKED = os.getppid()
logging.getLogger().setLevel(logging.ERROR)

# What does not import is said, in a sentence, by the worker that needs it.
with contextlib.suppress(Exception):
    import lerobot.datasets.lerobot_dataset  # noqa: F401

    import jobs.convert.episode_job  # noqa: F401

# Interrupted meanwhile: a worker that was asked for would find nothing of ours any more, and say so at length.
if os.getppid() != _ASKED:
    os._exit(0)
