"""What the trainer says, on its way into log, stdout and handover: without the key, in bounded lines, in files of bounded size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import keeping, output
from agent.keeping import shortened
from agent.loop import Loop, steady
from agent.output import Bounded, Log, Output
from tests.agent.support import DEADLINE_S, ROOT

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


class Said:
    """An output whose trainer is the test: ``say`` and it is read at once."""

    def __init__(self, loop: Loop, path: Path, secret: str = "") -> None:
        self.loop = loop
        self.log = Log(path)
        self.log.hide(secret)
        self.lines: list[str] = []
        self.output = Output(loop, self.log, self.lines.append)

    def say(self, data: bytes) -> None:
        os.write(self.output.writer, data)
        self.loop.once(DEADLINE_S)

    def end(self) -> bytes:
        self.output.started()
        self.output.finish()
        return self.log.path.read_bytes()


@pytest.mark.parametrize("cut", [0, 1, 7, len(KEY) // 2, len(KEY) - 1])
def test_the_key_is_hidden_wherever_a_read_cuts_it(cut: int, loop: Loop, tmp_path: Path) -> None:
    said = Said(loop, tmp_path / "log", KEY)
    said.say(f"a {KEY} b\nKEY={KEY[:cut]}".encode())
    said.say(f"{KEY[cut:]}\nafter 0123\n".encode())
    assert said.lines == ["a *** b", "KEY=***", "after 0123"]
    assert list(said.log.last) == said.lines
    assert said.end() == b"a *** b\nKEY=***\nafter 0123\n"


def test_only_what_may_be_the_keys_beginning_waits(loop: Loop, tmp_path: Path) -> None:
    said = Said(loop, tmp_path / "log", KEY)
    said.say(b"loading 9")
    assert said.log.path.read_bytes() == b"loading 9"
    said.say(b"01234")
    assert said.log.path.read_bytes() == b"loading 9"
    said.say(b"6 01")
    assert said.log.path.read_bytes() == b"loading 9012346 "
    assert said.end() == b"loading 9012346 01"
    assert said.lines == ["loading 9012346 01"]


def test_a_key_that_is_cut_by_the_trainers_end_is_not_shown_either(loop: Loop, tmp_path: Path) -> None:
    said = Said(loop, tmp_path / "log", KEY)
    said.say(f"KEY={KEY[:-1]}".encode())
    assert said.end() == b"KEY=***"
    assert said.lines == ["KEY=***"]


def test_what_the_agent_says_hides_the_key_and_a_word_is_no_key(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log(tmp_path / "log")
    log.hide("step")
    log.say("step 1")
    log.hide(KEY)
    log.say(f"no such file: {KEY}")
    assert capsys.readouterr().err == "segue: step 1\nsegue: no such file: ***\n"
    assert KEY not in log.path.read_text(encoding="utf-8")


def test_of_a_long_line_both_ends_are_kept(loop: Loop, tmp_path: Path) -> None:
    said = Said(loop, tmp_path / "log")
    said.say(b"ValueError: no " + b"\xff" * 30000 + b" space\nshort\n")
    assert len(said.lines[0]) > 30000
    first, second = said.log.last_lines()
    assert first.startswith("ValueError: no ") and first.endswith(" space") and len(first) < 2010
    assert second == "short"


def test_no_stack_of_a_hung_trainer_pushes_out_anothers(loop: Loop, tmp_path: Path) -> None:
    said = Said(loop, tmp_path / "log")
    said.log.stacks_follow()
    for who in ("trainer", "worker 1", "worker 2"):
        dump = "".join(f'  File "{who}.py", line {number} in f\n' for number in range(60))
        said.say(f"Fatal Python error: Aborted\n\nCurrent thread:\n{dump}".encode())
    kept = said.log.last_lines()
    assert {line.split('"')[1] for line in kept if '"' in line} == {"trainer.py", "worker 1.py", "worker 2.py"}
    assert len(kept) == 186
    # and the next start has no more room than before
    said.log.begin(steady() + 1)
    said.say(b"line\n" * 80)
    assert len(said.log.last_lines()) == 50


def test_colours_are_no_part_of_a_line(loop: Loop, tmp_path: Path) -> None:
    said = Said(loop, tmp_path / "log")
    said.say(
        b"\x1b[32mstep 12\x1b[0m loss \x1b[1;31m0.5\x1b[0m\n\x1b[1;35mOSError\x1b[0m: [Errno 28] no room\n\x1b[A\x1b[2K\n"
    )
    assert said.lines == ["step 12 loss 0.5", "OSError: [Errno 28] no room"]
    assert list(said.log.last) == said.lines
    assert b"\x1b[32mstep" in said.end()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_HEAD", 1000)
    monkeypatch.setattr(output, "_NEWEST", 500)
    monkeypatch.setattr(output, "_PIECE", 64)


def checked(data: bytes, said: bytes) -> None:
    """Beginning and end of what was said are there, and the line between them counts the rest exactly."""
    assert len(data) < 2100
    found = re.fullmatch(rb"(?s)(.{1000})\n\xe2\x80\xa6 (\d+) bytes left out \xe2\x80\xa6\n(.{500,})", data)
    assert found is not None
    assert said.startswith(found[1]) and said.endswith(found[3])
    assert len(found[1]) + int(found[2]) + len(found[3]) == len(said)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("flags", [os.O_APPEND, 0], ids=["appending", "at its place"])
def test_a_file_keeps_its_beginning_and_its_end(flags: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    said = b""
    for execution in range(2):  # HTCondor starts a job anew with the stdout of before
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
        os.lseek(fd, 0, os.SEEK_END)
        file = Bounded(fd)
        for number in range(400):
            line = b"%d: line %d\n" % (execution, number)
            file.write(line)
            said += line
            assert path.stat().st_size < 2100
        os.close(fd)
        checked(path.read_bytes(), said)


@pytest.mark.usefixtures("small")
def test_a_kept_log_counts_what_was_left_out_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_HEAD", 100)
    monkeypatch.setattr(keeping, "_TAIL", 400)
    log = Log(tmp_path / "log")
    for number in range(1000):
        log.write(b"line %04d\n" % number)
    kept = shortened(log.path)
    assert kept.startswith(b"line 0000\n") and kept.endswith(b"line 0999\n")
    assert f"\n… {10 * 1000 - 500} bytes left out …\n".encode() in kept


@pytest.mark.usefixtures("small")
def test_what_cannot_be_shortened_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Bounded) -> int:
        raise PermissionError(13, "no")

    monkeypatch.setattr(Bounded, "_shorten", refuse)
    log = Log(tmp_path / "log")
    for _ in range(50):
        log.write(b"x" * 100)
    assert log.path.stat().st_size == 5000


@pytest.mark.forks
@pytest.mark.parametrize("in_condor", [True, False])
def test_a_noisy_trainer_fills_neither_log_nor_the_jobs_stdout(in_condor: bool, tmp_path: Path) -> None:
    """Only HTCondor's stdout is bounded: the file of somebody who runs it by hand is left as it is."""
    code = """
from pathlib import Path
from agent import keeping, output
from agent.keeping import shortened
output._HEAD, output._NEWEST = 1000, 500
log = output.Log(Path("log"))
for number in range(500):
    line = b"line %d\\n" % number
    log.write(line)
    log.repeat(line)
"""
    environment = {"PYTHONPATH": str(ROOT)} | ({"_CONDOR_SCRATCH_DIR": str(tmp_path)} if in_condor else {})
    with (tmp_path / "stdout").open("wb") as stdout:
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=stdout, check=True)
    said = b"".join(b"line %d\n" % number for number in range(500))
    checked((tmp_path / "log").read_bytes(), said)
    if in_condor:
        checked((tmp_path / "stdout").read_bytes(), said)
    else:
        assert (tmp_path / "stdout").read_bytes() == said


@pytest.mark.forks
def test_a_reader_of_stderr_that_does_not_read_holds_up_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while os.write(writer, bytes(1 << 16)):
            pass
    os.set_blocking(writer, True)
    code = "from pathlib import Path; from agent.output import Log; Log(Path('log')).say('published step 10')"
    environment = {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=writer, check=True, timeout=DEADLINE_S
    )
    os.close(reader)
    os.close(writer)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "segue: published step 10\n"
