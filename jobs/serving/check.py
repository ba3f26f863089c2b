"""One inference on a policy server, timed: the proof that it serves what was pulled.

The first inference of an OpenPI server compiles for as long as a minute, during which its event loop answers no ping, and the client gives the
connection up after 40 s. The server goes on compiling, so it is simply asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agent.errors import SegueError
from jobs.serving.client import Gone, ask, connected

_AGAIN_S = 1.0


@dataclass(frozen=True)
class Checked:
    """``first_ms``: of the first inference, compilation included; ``latency_ms``: of the second. ``actions``: (horizon, dimensions)."""

    first_ms: float
    latency_ms: float
    actions: tuple[int, int]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def check(
    host: str,
    port: int,
    observe: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    limit_s: float,
    ready: Callable[[float], object],
) -> Checked:
    """Ask twice. ``observe``: from the server's metadata to an observation; ``ready`` waits so many seconds for the server to answer, and
    raises when it has died.

    Raises SegueError when it refuses, or does not answer within ``limit_s`` seconds.
    """
    began = time.monotonic()
    while True:
        try:
            left = limit_s - (time.monotonic() - began)
            if left <= 0:
                raise SegueError(
                    f"the policy server gave no answer to an observation within {limit_s:.0f} s; give it longer with --wait"
                )
            ready(left)
            with connected(host, port) as client:
                observation = observe(client.get_server_metadata())
                answer = ask(client, observation, left)
                first = time.monotonic()
                ask(client, observation, left)
                second = time.monotonic()
            horizon, dimensions = answer["actions"].shape
            return Checked(
                round((first - began) * 1000, 3), round((second - first) * 1000, 3), (int(horizon), int(dimensions))
            )
        except Gone:
            time.sleep(_AGAIN_S)
