"""`python -m jobs.reference.drive`: the arm in the simulator, driven through the websocket by whatever policy server answers.

This is the robot's side: it sends what the arm senses and sees, plays the actions that come back, and counts how often the fingertip ends at
its target. It knows nothing of checkpoints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from agent.errors import BadInput, SegueError
from jobs.reference.command_line import natural, run_main

_HOST, _PORT = "127.0.0.1", 8000
_WAIT_S = 30.0


def wants_camera(metadata: dict[str, Any]) -> bool:
    """Whether the served policy sees. Raises SegueError when it is no policy for this arm."""
    try:
        shapes = {name: asked["shape"] for name, asked in metadata["observation"].items()}
    except (KeyError, TypeError, AttributeError):
        shapes = {}
    from jobs.reference.reacher import IMAGE, PROPRIOCEPTION

    if shapes == {"state": [len(PROPRIOCEPTION)], "image": [IMAGE, IMAGE, 3]}:
        return True
    if shapes == {"state": [10]}:
        return False
    raise SegueError(f"the policy served is not one for the Reacher arm (its metadata: {str(metadata)[:200]})")


class Driver:
    """Acts by asking the server. Chunks of several actions are played to their end before it is asked again."""

    def __init__(self, client: Any, camera: bool) -> None:
        self._client = client
        self._camera = camera
        self._pending: list[Any] = []
        self.latencies_ms: list[float] = []

    def forget(self) -> None:
        """A new episode begins: what is left of a chunk belongs to the old one."""
        self._pending.clear()

    def __call__(self, arm: Any) -> Any:
        """Torques (2,) for the arm as it is now."""
        from jobs.serving.client import ask

        if not self._pending:
            observation = {"state": arm.state(self._camera)}
            if self._camera:
                observation["image"] = arm.image()
            began = time.monotonic()
            answer = ask(self._client, observation)
            self.latencies_ms.append((time.monotonic() - began) * 1000)
            self._pending = list(answer["actions"])
        return self._pending.pop(0)


def drive(host: str, port: int, episodes: int, seed: int, beside: bool, wait_s: float = _WAIT_S) -> dict[str, Any]:
    """Success rates from 0 to 1; ``beside``: the expert's on the same episodes too."""
    from jobs.reference.reacher import Arm, expert, success_rate
    from jobs.serving.client import connected

    with connected(host, port, wait_s) as client:
        metadata = client.get_server_metadata()
        camera = wants_camera(metadata)
        with Arm(camera) as arm:
            driver = Driver(client, camera)
            rate = success_rate(arm, driver, episodes, seed, driver.forget)
            rates = {"policy": rate, **({"expert": success_rate(arm, expert, episodes, seed)} if beside else {})}
    return {
        **rates,
        "episodes": episodes,
        "seed": seed,
        "step": metadata.get("step"),
        "latency_ms": round(statistics.median(driver.latencies_ms), 3),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Drive; JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m jobs.reference.drive", description=__doc__)
    parser.add_argument("--host", default=_HOST)
    parser.add_argument("--port", type=int, default=_PORT)
    parser.add_argument("--episodes", type=natural, default=100)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--expert", action="store_true", help="the expert's rate on the same episodes too")
    parser.add_argument(
        "--wait", type=float, default=_WAIT_S, help="seconds to wait for a server that is not there yet"
    )
    options = parser.parse_args(arguments)
    if options.seed < 0:
        raise BadInput(f"--seed {options.seed}: a seed is 0 or greater")
    print(json.dumps(drive(options.host, options.port, options.episodes, options.seed, options.expert, options.wait)))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
