"""`segue image sif` that is told to end takes the builder with it, and what that had made."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

LIMIT_S = 60.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_builder_ends_with_the_command(tmp_path: Path, number: signal.Signals) -> None:
    if os.geteuid() == 0 and (
        shutil.which("unshare") is None or subprocess.run(["unshare", "--user", "--mount", "true"]).returncode != 0
    ):
        pytest.skip("as root a build needs user namespaces, and there are none here")
    tools, made = tmp_path / "bin", tmp_path / "made"
    tools.mkdir()
    (tools / "apptainer").write_text(f"#!/bin/sh\nsleep 600 &\ntouch {tmp_path}/began\nwait\n")
    (tools / "apptainer").chmod(0o755)
    definition = tmp_path / "one.def"
    definition.write_text("Bootstrap: scratch\n")
    started = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "image", "sif", "--definition", str(definition), "--to", str(made / "one")],
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + LIMIT_S
    while not (tmp_path / "began").exists():
        assert started.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    family = psutil.Process(started.pid).children(recursive=True)

    started.send_signal(number)

    said = started.communicate(timeout=LIMIT_S)[1]
    assert started.returncode == 128 + number and "Traceback" not in said
    gone, left = psutil.wait_procs(family, timeout=LIMIT_S)
    assert gone and not left
    assert [path.name for path in made.iterdir()] == ["one.log"]
