"""`python -m jobs.reference.serve`: a trained policy behind the websocket protocol of OpenPI's policy server.

So a robot's program that speaks to OpenPI's server speaks to this one unchanged: the first frame describes the policy, each frame from the robot
is one observation, each answer `{"actions": (1, A), "server_timing": …}`; an observation that cannot be used is answered with one sentence as
a text frame, and the connection is closed. `GET /healthz` says OK. It listens on this machine alone unless told otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import http
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import BadInput, SegueError
from jobs.reference import wire
from jobs.reference.command_line import run_main

if TYPE_CHECKING:
    from jobs.reference.policy import Actor

PORT = 8000
_HIGHEST_PORT = 65535
_LARGEST_MESSAGE = 16 * 2**20


class Served:
    """A policy as the server sees it. ``metadata`` is what a client is told first; what an observation must hold is part of it."""

    def __init__(self, actor: Actor, step: int) -> None:
        self._actor = actor
        config = actor.config
        shapes = {"state": [config.state]}
        if config.image:
            shapes["image"] = [config.image, config.image, 3]
        self._needed: dict[str, dict[str, Any]] = {
            name: {"shape": shape, "dtype": "uint8" if name == "image" else "float32"} for name, shape in shapes.items()
        }
        self.metadata: dict[str, Any] = {
            "policy": "segue reference",
            "step": step,
            "observation": self._needed,
            "actions": [1, config.actions],
        }

    def infer(self, observation: Any) -> dict[str, Any]:
        """``{"actions": (1, A) float32}``. Raises BadInput when the observation is not what the metadata asks for."""
        import numpy as np

        if not isinstance(observation, dict):
            raise BadInput(f"an observation is a map with {self._wanted()}; this is a {type(observation).__name__}")
        found = {}
        for name, asked in self._needed.items():
            if name not in observation:
                there = ", ".join(map(str, observation)) or "nothing"
                raise BadInput(f"the observation has no {name!r} (there: {there}); needed is {self._wanted()}")
            value = np.asarray(observation[name])
            if list(value.shape) != asked["shape"] or value.dtype.kind not in "biuf":
                raise BadInput(
                    f"{name!r} is {value.dtype}{list(value.shape)} in the observation; needed is {self._wanted()}"
                )
            if name == "image" and value.dtype != np.uint8:
                raise BadInput(f"'image' is {value.dtype} in the observation; needed is {self._wanted()}")
            if not np.isfinite(value).all():
                raise BadInput(f"{name!r} of the observation holds a value that is not finite")
            found[name] = value
        return {"actions": np.asarray(self._actor(found["state"], found.get("image")), np.float32)[None]}

    def warm_up(self) -> None:
        """Compile, so that the first observation of a robot does not wait for it."""
        import numpy as np

        self.infer({name: np.zeros(asked["shape"], asked["dtype"]) for name, asked in self._needed.items()})

    def _wanted(self) -> str:
        return " and ".join(f"{name!r} {asked['dtype']}{asked['shape']}" for name, asked in self._needed.items())


def read_policy(checkpoint: Path, untrained: bool) -> Served:
    """The policy of a checkpoint, or one with its shape before the first step. Raises BadInput, SegueError when there is none."""
    from jobs.reference import policy
    from jobs.reference.checkpoints import read_config, read_parameters
    from jobs.reference.sources import opened
    from jobs.reference.train import prepare_jax

    prepare_jax(1)
    with opened(checkpoint) as directory:
        step, config = int(directory.name) if directory.name.isdigit() else 0, read_config(directory)
        parameters = None if untrained else read_parameters(directory)
    if parameters is None:
        step, parameters = 0, policy.untrained(config)
    served = Served(policy.Actor(config, parameters), step)
    served.warm_up()
    return served


async def serve(served: Served, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; prints one JSON line when it listens. Raises SegueError when the port cannot be had."""
    from websockets.asyncio.server import serve as listen

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)

    async def speak(connection: Any) -> None:
        await _speak(connection, served)

    try:
        server = await listen(
            speak, host, port, compression=None, max_size=_LARGEST_MESSAGE, process_request=_health, close_timeout=2
        )
    except OSError as error:
        raise SegueError(_no_port(host, port, error)) from error
    async with server:
        bound = next(iter(server.sockets)).getsockname()[1]
        print(json.dumps({"ready": True, "host": host, "port": bound, **served.metadata}), flush=True)
        await ended.wait()


def _no_port(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken by another program; give --port another number"
    return f"cannot listen on {host}, port {port} ({error.strerror or error}); give another --host or --port"


async def _speak(connection: Any, served: Served) -> None:
    from websockets.exceptions import ConnectionClosed

    before: float | None = None
    try:
        await connection.send(wire.encode(served.metadata))
        async for message in connection:
            began = time.monotonic()
            if isinstance(message, str):
                raise BadInput("an observation is a binary frame of msgpack; this is a text frame")
            answer = await asyncio.to_thread(_answer, served, message)
            if before is not None:
                answer["server_timing"]["prev_total_ms"] = before
            await connection.send(wire.encode(answer))
            before = (time.monotonic() - began) * 1000
    except BadInput as error:
        print(f"serve: {error}", file=sys.stderr, flush=True)
        try:
            await connection.send(str(error))
        except ConnectionClosed:
            return
        await connection.close(1011, "the sentence before this says why")
    except ConnectionClosed:
        return


def _answer(served: Served, message: bytes) -> dict[str, Any]:
    observation = wire.decode(message)
    began = time.monotonic()
    answer = served.infer(observation)
    return {**answer, "server_timing": {"infer_ms": (time.monotonic() - began) * 1000}}


def _health(connection: Any, request: Any) -> Any:
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end; exit 0 then."""
    parser = argparse.ArgumentParser(prog="python -m jobs.reference.serve", description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a checkpoint's directory, a commit, or an archive of final/"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=PORT, help="0: any free one, told in the line on stdout")
    parser.add_argument("--untrained", action="store_true", help="the same network before its first step")
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= _HIGHEST_PORT:
        raise BadInput(f"--port {options.port}: a port is a number from 0 to {_HIGHEST_PORT}")
    try:
        import msgpack
        import websockets

        del msgpack, websockets
    except ImportError as error:
        raise SegueError(
            f"the policy server needs a package that is not installed ({error}); pip install 'segue[serve]'"
        ) from error
    asyncio.run(serve(read_policy(options.checkpoint, options.untrained), options.host, options.port))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
