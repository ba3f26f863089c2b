"""A robot's side of the websocket: openpi-client, with errors as sentences and every wait bounded.

openpi-client itself waits for ever, for a server that is not there and for an answer that does not come; so the port is asked first, and a
timer closes the connection.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from agent.errors import SegueError

POLL_S = 0.2
_ASK_S = 2.0


class Gone(SegueError):
    """The connection ended during an inference; the server may still be there."""


def answers(host: str, port: int) -> bool:
    """Whether a policy server answers `GET /healthz` there now."""
    connection = http.client.HTTPConnection(host, port, timeout=_ASK_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def connected(host: str, port: int, wait_s: float = 0.0) -> Iterator[Any]:
    """openpi-client's WebsocketClientPolicy on a server that answers within ``wait_s`` seconds; closed afterwards.

    Raises SegueError when there is no server, or no openpi-client in this Python.
    """
    policy_class = client_class()
    deadline = time.monotonic() + wait_s
    while not answers(host, port):
        if time.monotonic() >= deadline:
            raise SegueError(
                f"no policy server answers on {host}, port {port}: start one with `segue serve`, or give --host and --port"
            )
        time.sleep(POLL_S)
    try:
        with warnings.catch_warnings():
            # websockets 17 wants its connections in a `with`; openpi-client keeps one in an attribute.
            warnings.simplefilter("ignore", DeprecationWarning)
            client = policy_class(f"[{host}]" if ":" in host else host, port)
    except Exception as error:  # websockets and msgpack have many kinds
        raise SegueError(f"{host}, port {port}: a server answers, but not as a policy server does ({error})") from error
    try:
        yield client
    finally:
        close(client)


def close(client: Any) -> None:
    """End the connection. openpi-client has no way to say goodbye; the connection is its private attribute."""
    with contextlib.suppress(Exception):
        client._ws.close()


def ask(client: Any, observation: Mapping[str, Any], limit_s: float = 60.0) -> dict[str, Any]:
    """One inference, ``limit_s`` seconds at most.

    Raises SegueError with the server's own words when it refuses, Gone when the connection ends or the time is over.
    """
    import numpy as np
    from websockets.exceptions import WebSocketException

    timer = threading.Timer(limit_s, close, [client])
    timer.daemon = True
    timer.start()
    try:
        answer: Any = client.infer(dict(observation))
    except RuntimeError as error:
        raise SegueError(f"the policy server refused the observation: {_last_line(str(error))}") from error
    except (OSError, EOFError, WebSocketException) as error:
        raise Gone(f"the policy server went away during an inference ({error})") from error
    finally:
        timer.cancel()
    actions = answer.get("actions") if isinstance(answer, dict) else None
    if actions is None or np.ndim(actions) != 2:
        raise SegueError("the policy server's answer has no actions (horizon, dimensions)")
    found: dict[str, Any] = answer
    return found


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no message"


def client_class() -> Any:
    """openpi-client's class. Raises SegueError when it is not installed."""
    try:
        from openpi_client.websocket_client_policy import WebsocketClientPolicy
    except ImportError as error:
        raise SegueError(
            f"openpi-client is not in this Python ({error}); pip install 'segue[serve]', and pip install --no-deps openpi-client"
        ) from error
    return WebsocketClientPolicy
