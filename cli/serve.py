"""`segue serve`: the pulled policy behind OpenPI's websocket protocol, checked with one inference before anybody relies on it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import click

from agent.errors import BadInput


@click.command("serve")
@click.argument("run")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="The pulled step.  [default: newest below ./checkpoints, where `segue pull` leaves it, or below the checkout's]",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; OpenPI's own server listens on all."
)
@click.option(
    "--openpi",
    type=click.Path(path_type=Path),
    help="Checkout of OpenPI that serves.  [default: $OPENPI_DIR, then `code` of run.toml]",
)
@click.option(
    "--python",
    "interpreter",
    type=click.Path(path_type=Path),
    help="Its interpreter.  [default: its .venv, then `uv run`]",
)
@click.option(
    "--observation",
    type=click.Path(path_type=Path),
    help="Observation to check with, .json or .npz.  [default: what server or config say]",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    help="Seconds for loading, and again for the first inference.",
)
@click.option("--check", "only_check", is_flag=True, help="End after the inference.")
@click.option("--json", "as_json", is_flag=True, help="The result of the check as JSON.")
def command(
    run: str,
    directory: Path | None,
    port: int,
    host: str,
    openpi: Path | None,
    interpreter: Path | None,
    observation: Path | None,
    wait_s: float,
    only_check: bool,
    as_json: bool,
) -> int:
    """Serve the policy of RUN (a run.toml or its workflow directory) that `segue pull` brought here.

    The server is started, asked for one inference, and serves until Ctrl-C.
    """
    from dagman import served
    from jobs.serving.check import check
    from jobs.serving.client import client_class
    from jobs.serving.observation import from_file, from_metadata, from_openpi
    from jobs.serving.server import Server, check_port, to_stderr

    asked = served.asked(run)
    policy = served.pulled(asked, run, directory, served.places(asked, openpi, os.environ, Path.cwd()))
    given = None if observation is None else from_file(observation)
    client_class()  # its absence is said before anything is loaded
    example: Callable[[], Mapping[str, Any] | None]
    if policy.recipe == "reference":
        place, words = None, served.reference_server(sys.executable, policy, host, port)
        example = dict[str, Any]
    else:
        place = served.checkout(asked, openpi, os.environ)
        python = served.python_of(place, interpreter)
        words = served.openpi_server(python, place, policy, port)
        where = place

        @cache  # asked once, though the check may connect again
        def example() -> Mapping[str, Any] | None:
            return from_openpi(python, where, policy.config)

        click.echo("segue: OpenPI's server listens on all addresses of this machine; mind the firewall", err=True)

    def observe(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        found = given or from_metadata(metadata) or example()
        if not found:
            raise BadInput(
                f"{policy.config or run}: neither server nor config say what an observation looks like; give one with --observation FILE"
            )
        return found

    check_port(host, port)
    environment = {} if policy.recipe != "reference" else _own_packages()
    with _ended_by_signals():
        try:
            with Server(words, place, environment, to_stderr) as server:
                loaded_s = server.until_answering(host, port, wait_s)
                result = check(host, port, observe, wait_s, lambda left: server.until_answering(host, port, left))
                told = {
                    "run": asked.run,
                    "policy": str(policy.path),
                    "host": host,
                    "port": port,
                    "loaded_s": round(loaded_s, 3),
                    **result.as_json(),
                }
                click.echo(json.dumps(told) if as_json else _sentence(told))
                sys.stdout.flush()
                if not only_check:
                    click.echo("segue: serving until Ctrl-C", err=True)
                    server.until_ended()
        except KeyboardInterrupt:
            click.echo("segue: the server has ended", err=True)
    return 0


def _sentence(told: Mapping[str, Any]) -> str:
    horizon, dimensions = told["actions"]
    return (
        f"{told['run']}: served on ws://{told['host']}:{told['port']} from {told['policy']}: loaded in {told['loaded_s']:.1f} s, "
        f"first inference {told['first_ms']:.0f} ms, then {told['latency_ms']:.1f} ms, actions {horizon} × {dimensions}"
    )


def _own_packages() -> dict[str, str]:
    """The child finds the packages that this program came from, wherever it is run."""
    import jobs

    here = str(Path(next(iter(jobs.__path__))).parent)
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{here}{os.pathsep}{before}" if before else here}


class _ended_by_signals:
    """Inside, SIGTERM and SIGHUP end the program as Ctrl-C does, so that no server is left behind."""

    def __enter__(self) -> None:
        def interrupt(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        self._before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}

    def __exit__(self, *reason: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


__all__ = ["command"]
