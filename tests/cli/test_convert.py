"""`segue convert --python`: the program of another environment is found from here, understood, and never outlives the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cli.main import main

ANSWER = '{"dataset": "x", "format": "v2.1", "episodes": 1, "frames": 2, "skipped": []}'
LIMIT_S = 60.0


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("below", "named"), [(".", "env/bin/python"), ("env/bin", "./python")])
def test_interpreter_is_named_from_where_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], below: str, named: str
) -> None:
    program(tmp_path / "env" / "bin" / "python", f"echo '{ANSWER}'")
    monkeypatch.chdir(tmp_path / below)

    code = main(["convert", ".", "--repo-id", "x", "--out", "out", "--python", named])

    out, said = capsys.readouterr()
    assert (code, said) == (0, "")
    assert out == "x: LeRobot v2.1, 1 episodes, 2 frames, 0 left out\n"


@pytest.mark.parametrize("text", ["true", "echo hello"])
def test_program_that_is_no_python_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    other = program(tmp_path / "tool", text)

    code = main(["convert", str(tmp_path), "--repo-id", "x", "--out", str(tmp_path / "out"), "--python", str(other)])

    out, said = capsys.readouterr()
    assert (code, out) == (2, "")
    assert said.startswith(f"segue: error: --python {other}: does not answer as a Python does")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_conversion_ends_with_the_command_however_that_ends(tmp_path: Path, number: signal.Signals) -> None:
    # The real program around a conversion that takes long; -c stands where -m was, so options and pipe are the third and fourth word.
    source, temporary = tmp_path / "source", tmp_path / "tmp"
    (source / "ep000000").mkdir(parents=True)
    temporary.mkdir()
    python = program(
        tmp_path / "python",
        f"exec {sys.executable} -c 'import sys, time, jobs.convert.conversion as module\n"
        f'module.convert = lambda options: (open("{tmp_path}/began", "w").close(), time.sleep(600))\n'
        "from jobs.convert.__main__ import main\n"
        'sys.exit(main())\' "$3" "$4"',
    )
    words = ["convert", str(source), "--repo-id", "x", "--out", str(tmp_path / "out"), "--python", str(python)]
    started = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *words],
        env={**os.environ, "TMPDIR": str(temporary)},
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
    assert started.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    assert "Traceback" not in said
    assert "segue: interrupted; run the same command again" in said
    gone, left = psutil.wait_procs(family, timeout=LIMIT_S)
    assert gone and not left
    assert number == signal.SIGKILL or list(temporary.iterdir()) == []


def test_program_that_passes_no_open_files_on_converts_all_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # As a wrapper that is a Python program itself: what it starts has stdin, stdout and stderr alone.
    inner = (
        "import sys, time, jobs.convert.conversion as module\n"
        "class Result:\n"
        f"    dump = lambda self: {ANSWER!r}\n"
        "module.convert = lambda options: (time.sleep(0.5), Result())[1]\n"
        "from jobs.convert.__main__ import main\n"
        "sys.exit(main())"
    )
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport subprocess, sys\n"
        f"sys.exit(subprocess.run([sys.executable, '-c', {inner!r}, *sys.argv[3:]]).returncode)\n"
    )
    python.chmod(0o755)

    code = main(["convert", str(tmp_path), "--repo-id", "x", "--out", str(tmp_path / "out"), "--python", str(python)])

    out, said = capfd.readouterr()
    assert (code, said) == (0, "")
    assert out == "x: LeRobot v2.1, 1 episodes, 2 frames, 0 left out\n"


def test_ctrl_c_reaches_no_python_that_is_still_starting(tmp_path: Path) -> None:
    # A Python answers SIGINT with a traceback until it has come to our own lines.
    text = f"trap 'echo Traceback >&2' INT\ntouch {tmp_path}/began\ncat /dev/fd/$4\nexit 130"
    python = program(tmp_path / "python", text)
    words = ["convert", str(tmp_path), "--repo-id", "x", "--out", str(tmp_path / "out"), "--python", str(python)]
    started = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + LIMIT_S
    while not (tmp_path / "began").exists():
        assert started.poll() is None and time.monotonic() < end
        time.sleep(0.02)

    os.killpg(started.pid, signal.SIGINT)  # as a terminal does

    assert started.communicate(timeout=LIMIT_S)[1] == ""
    assert started.returncode == 130


def test_nothing_that_the_conversion_started_goes_on_after_the_command(tmp_path: Path) -> None:
    # As the server of its workers, which imports lerobot for seconds.
    text = f"sleep 600 >/dev/null 2>&1 &\necho $! >{tmp_path}/new && mv {tmp_path}/new {tmp_path}/began\ncat /dev/fd/$4\nexit 130"
    python = program(tmp_path / "python", text)
    words = ["convert", str(tmp_path), "--repo-id", "x", "--out", str(tmp_path / "out"), "--python", str(python)]
    started = subprocess.Popen([sys.executable, "-m", "cli.main", *words], stderr=subprocess.DEVNULL)
    end = time.monotonic() + LIMIT_S
    while not (tmp_path / "began").exists():
        assert started.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    left = psutil.Process(int((tmp_path / "began").read_text()))

    started.send_signal(signal.SIGINT)

    try:
        assert started.wait(LIMIT_S) == 130
        assert not psutil.wait_procs([left], timeout=LIMIT_S / 10)[1]
    finally:
        if left.is_running():
            left.kill()
