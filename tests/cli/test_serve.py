"""`segue serve`: the server is started, asked once, and serves until told to end; what is missing is one sentence."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from agent.errors import BadInput
from cli.main import main
from dagman import served
from jobs.serving.client import answers, ask, connected

pytestmark = pytest.mark.forks

ROOT = Path(__file__).resolve().parents[2]
# Stands in for OpenPI's checkout: the same command line, the same protocol, no metadata about observations, as OpenPI has none.
SERVER = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from jobs.reference import serve
Path("asked.json").write_text(json.dumps(sys.argv[1:]))
words = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
if words["policy.config"] == "broken":
    print("loading the model")
    sys.exit("ValueError: no such leaf in params/")
served = serve.read_policy(Path(words["policy.dir"]), False)
served.metadata = {{}}
asyncio.run(serve.serve(served, "127.0.0.1", int(words["port"])))
"""
CONFIGS = """
from types import SimpleNamespace
from openpi.policies.arm_policy import ArmInputs
class Strange: pass
def get_config(name):
    inputs = {"pi0_arm": (Strange(), ArmInputs()), "pi0_strange": (Strange(),)}[name]
    data = SimpleNamespace(create=lambda assets, model: SimpleNamespace(data_transforms=SimpleNamespace(inputs=inputs)))
    return SimpleNamespace(data=data, assets_dirs=None, model=None)
"""
ARM = """
import numpy as np
class ArmInputs: pass
def make_arm_example():
    return {"state": np.ones(10, dtype=np.float32), "prompt": "reach"}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two steps on made-up numbers."""
    here = tmp_path_factory.mktemp("trained")
    random = np.random.default_rng(0)
    rows = {"state": random.normal(size=(64, 10)), "actions": random.normal(size=(64, 2)), "episode": np.zeros(64)}
    np.savez(here / "data.npz", **rows)
    words = ["--data", "data.npz", "--steps", "2", "--hidden", "16", "--checkpoints", "c"]
    subprocess.run(
        [sys.executable, "-m", "jobs.reference.train", *words],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(here)},
        check=True,
        capture_output=True,
    )
    return here / "c" / "2"


@pytest.fixture
def laptop(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with run.toml of the reference trainer and what `segue pull` left."""
    place = tmp_path / "checkpoints" / "arm"
    place.mkdir(parents=True)
    (place / "1").mkdir()  # not a policy: nothing is in it
    (place / "2").symlink_to(trained)
    write_run(tmp_path, 'recipe = "reference"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENPI_DIR", raising=False)
    return tmp_path


def write_run(directory: Path, trainer: str, top: str = "") -> None:
    text = f'name = "arm"\nsite = "local"\nsteps = 2\n{top}\n[trainer]\n{trainer}\n'
    (directory / "run.toml").write_text(text)


@pytest.fixture
def checkout(laptop: Path, trained: Path) -> Path:
    """The stand-in of an OpenPI checkout, with an environment of its own, and a pulled policy of the config pi0_arm."""
    place = laptop / "openpi"
    for path, text in (
        ("scripts/serve_policy.py", SERVER.format(root=str(ROOT))),
        ("openpi/__init__.py", ""),
        ("openpi/training/__init__.py", ""),
        ("openpi/training/config.py", CONFIGS),
        ("openpi/policies/__init__.py", ""),
        ("openpi/policies/arm_policy.py", ARM),
        (".venv/bin/python", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'),
    ):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    (place / ".venv/bin/python").chmod(0o755)
    for config in ("pi0_arm", "pi0_strange", "broken"):
        (laptop / "checkpoints" / config / "arm").mkdir(parents=True)
        (laptop / "checkpoints" / config / "arm" / "1").symlink_to(trained)
    use_config(laptop, "pi0_arm")
    return place


def use_config(laptop: Path, config: str, code: str = "openpi") -> None:
    write_run(laptop, f'recipe = "openpi"\noptions = {{ config = "{config}" }}', f'code = "{code}"' if code else "")


def serve(*words: str) -> int:
    return main(["serve", "run.toml", "--port", str(free_port()), *words])


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    assert serve(*words) == code
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    assert output.out == ""
    last = output.err.splitlines()[-1]
    assert last.startswith("segue: error: ")
    return last


@pytest.mark.parametrize("option", ["--dir", "--openpi"])
def test_home_of_nobody_is_one_sentence(laptop: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    use_config(laptop, "pi0_arm")
    assert "~nosuch/x: " in refused(capsys, 2, option, "~nosuch/x")
    with pytest.raises(BadInput, match="--python ~nosuch/x: is not a program"):
        served.python_of(laptop, Path("~nosuch/x"))


def test_the_newest_pulled_step_is_served_and_asked_once(laptop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert main(["serve", "run.toml", "--port", str(port), "--check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["policy"] == str(laptop / "checkpoints" / "arm" / "2")
    assert (told["run"], told["port"], told["actions"]) == ("arm", port, [1, 2])
    assert told["first_ms"] > 0
    assert told["latency_ms"] > 0
    assert not answers("127.0.0.1", port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_serves_robots_until_it_is_told_to_end_or_killed(laptop: Path, number: signal.Signals) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve", "run.toml", "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert f"arm: served on ws://127.0.0.1:{port}" in process.stdout.readline()
        with connected("127.0.0.1", port) as robot:
            assert ask(robot, {"state": np.zeros(10, np.float32)})["actions"].shape == (1, 2)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert "Traceback" not in said
    deadline = time.monotonic() + 30
    while answers("127.0.0.1", port) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not answers("127.0.0.1", port)


def test_openpis_own_server_is_started_in_the_users_checkout(
    laptop: Path, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert main(["serve", "run.toml", "--port", str(port), "--check"]) == 0
    output = capsys.readouterr()
    assert "first inference" in output.out
    assert json.loads((checkout / "asked.json").read_text()) == [
        f"--port={port}",
        "policy:checkpoint",
        "--policy.config=pi0_arm",
        f"--policy.dir={laptop}/checkpoints/pi0_arm/arm/1",
    ]


def test_a_config_without_an_example_takes_an_observation_from_a_file(
    laptop: Path, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_config(laptop, "pi0_strange")
    assert "give one with --observation FILE" in refused(capsys, 2, "--check")
    np.savez(laptop / "o.npz", state=np.ones(10, np.float32))
    assert serve("--check", "--observation", "o.npz") == 0
    capsys.readouterr()
    np.savez(laptop / "o.npz", state=np.ones(4, np.float32))
    said = refused(capsys, 1, "--check", "--observation", "o.npz")
    assert "the policy server refused the observation: 'state' is float32[4]" in said


def test_a_server_that_dies_is_quoted(laptop: Path, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use_config(laptop, "broken")
    said = refused(capsys, 1, "--check")
    assert "ended with exit code 1; its last lines: loading the model | ValueError: no such leaf in params/" in said


def test_a_taken_port_is_said_before_anything_starts(
    laptop: Path, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        said = refused(capsys, 1, "--port", str(other.getsockname()[1]))
    assert "is taken by another program; give --port another number" in said
    assert not (checkout / "asked.json").exists()


def test_what_was_not_pulled_is_said_with_the_command_that_pulls(
    laptop: Path, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_config(laptop, "pi0_other")
    said = refused(capsys, 2)
    looked = f"{laptop}/checkpoints/pi0_other/arm, {laptop}/openpi/checkpoints/pi0_other/arm"
    assert f"{looked}: no pulled policy is there: run `segue pull run.toml` first" in said
    assert "no such file or directory" in refused(capsys, 2, "--dir", "nowhere")
    assert "holds no policy" in refused(capsys, 2, "--dir", "openpi")
    assert serve("--dir", "checkpoints/pi0_arm/arm", "--check", "--openpi", "openpi", "--observation", "gone.npz") == 2
    assert "gone.npz: cannot be read (No such file or directory)" in capsys.readouterr().err


def test_policy_that_was_pulled_into_the_checkout_is_found(laptop: Path, checkout: Path, trained: Path) -> None:
    use_config(laptop, "pi0_other")
    pulled = checkout / "checkpoints" / "pi0_other" / "arm" / "2"
    pulled.parent.mkdir(parents=True)
    pulled.symlink_to(trained)
    # A directory with the run.toml stands for it.
    run = served.asked(str(laptop))
    found = served.pulled(run, "run.toml", None, served.places(run, None, {}, laptop))
    assert found == served.Policy("openpi", pulled, "pi0_other")


def test_a_missing_checkout_is_one_sentence(
    laptop: Path, checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_config(laptop, "pi0_arm", code="")
    assert "name it with --openpi DIR, OPENPI_DIR, or `code` in run.toml" in refused(capsys, 2)
    monkeypatch.setenv("OPENPI_DIR", str(laptop))
    assert "is no checkout of OpenPI (it has no scripts/serve_policy.py)" in refused(capsys, 2)
    (checkout / ".venv" / "bin" / "python").unlink()
    monkeypatch.setenv("PATH", str(laptop))
    assert "has no .venv, and uv is not on PATH" in refused(capsys, 2, "--openpi", "openpi")
    assert "is not a program that can be run" in refused(capsys, 2, "--openpi", "openpi", "--python", "python9")


def test_recipes_that_segue_does_not_serve_are_named(laptop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(laptop, 'recipe = "lerobot"')
    assert "segue serves what the recipes openpi, openpi-pytorch, reference train" in refused(capsys, 2)
