"""How every command behaves: data on stdout, messages on stderr, JSON that parses, any directory, pipes, interrupts, colour."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.store import Claimant, Metadata, Store
from cli.main import main
from tests.cli.conftest import RUN, as_ordinary_user
from tests.conftest import _fresh
from tests.dagman.eventlog import EventLog
from tests.store.trees import make_checkpoint

MACHINE = "gpu4004.a-department-with-a-long-name.wisc.edu"
SEGUE = [sys.executable, "-m", "cli.main"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A generated run that looks as if it were running, with two commits."""
    for made in _fresh("c-"):
        (made / "staging").mkdir()
        (made / "run.toml").write_text(RUN)
        assert main(["dag", str(made / "run.toml")]) == 0
        store = Store(made / "staging" / "segue" / "run")
        claim = store.claim(Claimant(), {})
        for step in (10, 20):
            store.publish(claim, make_checkpoint(made / str(step), step), Metadata(step, str(step)))
        log = (
            EventLog()
            .submit(2, 1, "stage")
            .execute(2, 2)
            .end(2, 3)
            .submit(3, 4, "segment_000")
            .execute(3, 5, MACHINE)
            .evict(3, 60)
        )
        (made / "run" / "events.log").write_text(log.text)
        (made / "run" / "run.dag.dagman.log").write_text(EventLog().submit(1, 0).execute(1, 0, None).text)
        yield made


def segue(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*SEGUE, *words], cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("command", ["plan", "status", "commits", "verify"])
def test_json_is_one_object_on_stdout_and_nothing_else_is(place: Path, command: str) -> None:
    done = segue(command, "run.toml", "--json", cwd=place)
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["run"] == "run"


@pytest.mark.parametrize("command", ["plan", "status", "commits", "verify"])
def test_for_people_data_is_on_stdout_and_the_next_command_on_stderr(place: Path, command: str) -> None:
    done = segue(command, "run.toml", cwd=place)
    assert done.returncode == 0 and done.stdout
    assert "next: " not in done.stdout and "\x1b" not in done.stdout + done.stderr
    if command != "verify":
        assert done.stderr.splitlines()[-1].startswith("next: ")


def test_status_is_readable(place: Path) -> None:
    done = segue("status", "run.toml", cwd=place)
    lines = done.stdout.splitlines()
    assert lines[0] == "run: running, step 20 of 100 (20%)"
    assert any(line.split()[:5] == ["segment_000", "short", "queued", "1", "1"] for line in lines)
    assert any(line.split()[-1:] == [MACHINE] for line in lines), "a table in a pipe is not cut to a terminal's width"
    assert "  not yet submitted: 1-2" in lines
    assert any("newest commit 000000020.e000001.tar" in line and line.endswith("old") for line in lines)
    assert done.stderr == "next: segment_000 waits for a machine\n"


def test_no_colour_without_a_terminal_nor_with_no_color(place: Path) -> None:
    # On a terminal of its own, as `script` gives one.
    words = " ".join([*SEGUE, "status", "run.toml"])
    for environment, coloured in (({"NO_COLOR": "1"}, False), ({}, True)):
        known = {key: value for key, value in ENVIRONMENT.items() if key != "NO_COLOR"}
        done = subprocess.run(
            ["script", "-qec", words, "/dev/null"], cwd=place, env={**known, "TERM": "xterm", **environment},
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "step 20 of 100" in done.stdout
        assert ("\x1b[3" in done.stdout) is False if not coloured else True


@pytest.mark.parametrize(
    "words", [["status", "run.toml"], ["plan", "run.toml"], ["dag", "run.toml", "--dry-run"], ["--help"]]
)
def test_reader_that_leaves_is_no_error(place: Path, words: list[str]) -> None:
    child = subprocess.Popen(
        [*SEGUE, *words], cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.close()
    _, errors = child.communicate(timeout=60)
    said = errors.decode()
    assert "Traceback" not in said and "Exception" not in said and "error" not in said
    assert child.returncode == 0


def test_exit_code_stands_where_nobody_reads_the_message(place: Path) -> None:
    child = subprocess.Popen([*SEGUE, "plan", "no.toml"], cwd=place, env=ENVIRONMENT, stderr=subprocess.PIPE)
    assert child.stderr is not None
    child.stderr.close()
    assert child.wait(timeout=60) == 2


def _writer(pipe: Path) -> int:
    """Opened for writing once somebody reads, which a plain open would wait for without end."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_interrupt_ends_with_130_and_a_word(place: Path) -> None:
    # Given a command that waits: its run.toml is a pipe in which nobody writes,
    pipe = place / "pipe.toml"
    os.mkfifo(pipe)
    with subprocess.Popen(
        [*SEGUE, "plan", "pipe.toml"], cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            # and an interrupt: it is on its way when the pipe ends, so that one which meets Python just before its read is not left waiting.
            with os.fdopen(_writer(pipe), "wb"):
                child.send_signal(signal.SIGINT)
            out, errors = child.communicate(timeout=60)
        finally:
            child.kill()
            pipe.unlink()
    assert (child.returncode, out, errors) == (130, b"", b"\nsegue: interrupted\n"), (
        "on a line of its own, after the terminal's ^C"
    )


def test_commands_work_from_any_directory_with_relative_paths(place: Path) -> None:
    elsewhere = place / "else" / "where"
    elsewhere.mkdir(parents=True)
    made = segue("init", "../new", "--site", "local", cwd=elsewhere)
    assert made.stdout == "../new/run.toml\n" and (place / "else" / "new" / "run.toml").exists()
    assert made.stderr == "next: edit it, then segue plan ../new/run.toml\n"
    assert segue("plan", "../../run.toml", "--json", cwd=elsewhere).returncode == 0
    made = segue("dag", "../../run.toml", "--to", "flow", cwd=elsewhere)
    assert made.stdout == f"{elsewhere / 'flow' / 'run.dag'}\n", "absolute, for condor_submit_dag from any directory"
    for name in ("run.dag", "segment.sub", "stage.sub", "consolidate.sub"):
        text = (elsewhere / "flow" / name).read_text()
        assert str(elsewhere / "flow") in text and "../" not in text
    assert json.loads((elsewhere / "flow" / "job.json").read_text())["staging"] == str(place / "staging")
    assert segue("status", "flow", "--json", cwd=elsewhere).returncode == 0


def test_run_toml_in_a_directory_that_cannot_be_written_is_generated_elsewhere(place: Path) -> None:
    shared = place / "shared"
    (shared / "data").mkdir(parents=True)
    (shared / "data" / "episodes").write_text("x")
    (shared / "run.toml").write_text(
        RUN.replace('"staging"', f'"{place / "staging"}"').replace('"run"', '"other"') + '[data]\ndataset = "data"'
    )
    shared.chmod(0o555)
    try:
        done = as_ordinary_user(["dag", "shared/run.toml", "--to", "mine"], place)
    finally:
        shared.chmod(0o755)
    assert (done.code, done.out) == (0, f"{place / 'mine' / 'other.dag'}\n"), done.err
    assert sorted(path.name for path in shared.iterdir()) == ["data", "run.toml"]


def test_dry_run_prints_and_writes_nothing(place: Path) -> None:
    done = segue("dag", "run.toml", "--to", "dry", "--dry-run", cwd=place)
    assert done.returncode == 0 and "JOB segment_000" in done.stdout and not (place / "dry").exists()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not on PATH")
def test_dry_run_prints_a_diff_that_is_not_utf_8_as_it_is(place: Path) -> None:
    code = place / "latin"
    code.mkdir()
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.edu", "-C", str(code)]
    (code / "train.py").write_bytes(b"# caf\xe9\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    (code / "train.py").write_bytes(b"# th\xe9\n")
    run = RUN.replace("[trainer]", 'code = "latin"\n[trainer]').replace('"run"', '"latin-run"')
    (place / "latin.toml").write_text(run)
    done = subprocess.run(
        [*SEGUE, "dag", "latin.toml", "--dry-run"], cwd=place, capture_output=True,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\n-# caf\xe9\n+# th\xe9\n" in done.stdout


def test_generating_twice_changes_nothing_and_leaves_no_temporary_file(place: Path) -> None:
    first = segue("dag", "run.toml", "--to", "twice", cwd=place)
    before = {path.name: path.read_bytes() for path in (place / "twice").iterdir() if path.is_file()}
    again = segue("dag", "run.toml", "--to", "twice", cwd=place)
    after = {path.name: path.read_bytes() for path in (place / "twice").iterdir() if path.is_file()}
    assert first.stdout == again.stdout and before == after
    assert not [name for name in after if name.startswith(".")]


def test_help_is_quick_because_nothing_heavy_is_imported(place: Path) -> None:
    heavy = ("htcondor2", "pydantic", "jax", "rich")
    program = f"import sys; from cli.main import main; main(['--help']); print(set({heavy}) & sys.modules.keys(), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, cwd=place, capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
