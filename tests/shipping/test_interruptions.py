"""A person at a terminal: asked once, shown how far it is, free to interrupt."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest

from tests.shipping.conftest import Run
from tests.shipping.server import HOST
from tests.shipping.test_stage import begin, names, wait_for

PHRASE = "correct horse"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interrupted_upload_ends_everything_and_can_be_resumed(
    run: Run, slow: Callable[[], None], number: signal.Signals
) -> None:
    (run.toml.parent / "data" / "episode.bin").write_bytes(os.urandom(4_000_000))
    with begin(run, "stage") as process:
        wait_for(
            300_000,
            lambda: next(iter(run.inputs.glob(".*.partial")) if run.inputs.exists() else iter(()), None),
            process,
        )
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert said.splitlines()[1:] == (["", "segue: interrupted"] if number == signal.SIGINT else [])
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert names(run.toml.parent) == ["data", "run.toml"]
    slow()
    assert run.json("stage")["inputs"][0]["from_bytes"] > 0


@pytest.mark.skipif(shutil.which("setsid") is None, reason="setsid (util-linux) is not on PATH")
def test_a_person_is_asked_once_and_sees_how_far_it_is(run: Run) -> None:
    # given a key with a passphrase, and no agent
    key = run.toml.parent.parent / "key"
    make = [run.server.programs.keygen, "-q", "-t", "ed25519", "-N", PHRASE, "-C", "", "-f", key]
    subprocess.run(make, check=True)
    with (run.server.root / "authorized_keys").open("a") as authorized:
        authorized.write(key.with_suffix(".pub").read_text())
    config = run.toml.parent.parent / "ssh_config"
    own = (run.server.root / "ssh_config").read_text()
    config.write_text(f"Host {HOST}\nBatchMode no\nIdentityFile {key}\n" + own.replace("user_key", "no_key"))
    ours, theirs = pty.openpty()
    command = ["setsid", "--ctty", "--wait", sys.executable, "-m", "cli.main", "stage", str(run.toml)]
    environment = {**os.environ, "SEGUE_SSH": f"{run.server.programs.ssh} -F {config}", "TERM": "xterm"}
    # when it is staged at a terminal
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while data := read(ours):
            before, shown = shown.count(b"passphrase for"), shown + data
            if shown.count(b"passphrase for") > before:
                os.write(ours, f"{PHRASE}\n".encode())
    os.close(ours)
    # then ssh has asked once, and a bar was shown
    text = shown.decode(errors="replace")
    assert process.returncode == 0, text
    assert text.count("passphrase for") == 1
    assert "uploading dataset" in text or "packing dataset" in text
    assert len(names(run.inputs)) == 1


def read(terminal: int) -> bytes:
    """What is printed next; empty when the other side has closed."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""
