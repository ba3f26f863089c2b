"""Loop, errands and the keeper, with real processes: nothing is lost, nothing survives."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.config import JobConfig, Pace
from agent.errand import Errand, Outcome, Report, running
from agent.hang import Hang
from agent.keeper import Ended, Keeper
from agent.loop import Loop
from agent.output import Log, Output
from agent.pacing import StepClock
from agent.processes import become_subreaper, descendants, family, has_ended, kill_below, reap, signal_in_turn
from tests.agent.support import wait_for

DEADLINE_S = 20.0
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.forks


def reaped() -> None:
    reap()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    made.on_child = reaped
    yield made
    made.close()
    kill_below(os.getpid())


def wait(loop: Loop, done: Callable[[], object]) -> None:
    assert loop.run_until(lambda: bool(done()), time.monotonic() + DEADLINE_S), "the event did not come"


def test_timers_and_signals_are_served_in_one_thread(loop: Loop) -> None:
    seen: list[str] = []
    loop.on_signal = lambda number: seen.append(signal.Signals(number).name)
    timer = loop.every(0.01, lambda: seen.append("tick"))
    loop.after(0.02, lambda: os.kill(os.getpid(), signal.SIGTERM))
    wait(loop, lambda: "SIGTERM" in seen and seen.count("tick") >= 3)
    timer.cancel()
    assert not loop.run_until(lambda: False, time.monotonic() + 0.01)


def run_errand(
    loop: Loop, work: Callable[[Report], dict[str, object]], **options: object
) -> tuple[Outcome, list[object]]:
    outcomes: list[Outcome] = []
    reports: list[object] = []
    Errand(loop, work, outcomes.append, report=reports.append, **options)  # type: ignore[arg-type]
    wait(loop, lambda: outcomes)
    return outcomes[0], reports


def test_an_errand_reports_and_returns(loop: Loop) -> None:
    def work(report: Report) -> dict[str, object]:
        report({"half": 1})
        return {"pid": os.getpid(), "nice": os.nice(0)}

    outcome, reports = run_errand(loop, work, low_priority=False)
    assert outcome.ok and outcome.value["pid"] != os.getpid()
    assert reports == [{"half": 1}]


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no scheduler autogroups")
def test_a_publish_gives_way_to_a_trainer_in_a_session_of_its_own(loop: Loop) -> None:
    """Where the kernel shares the processor among sessions first, a process's nice counts only within its session."""

    def work(report: Report) -> dict[str, object]:
        return {"group": Path("/proc/self/autogroup").read_text(), "nice": os.nice(0)}

    before = Path("/proc/self/autogroup").read_text()
    outcome, _ = run_errand(loop, work)
    assert outcome.value["nice"] >= 15
    group = outcome.value["group"]
    assert group.endswith(" nice 15\n")
    assert (
        not before or group.split()[0] != before.split()[0]
    )  # a process of the first session has no autogroup: an empty file
    assert Path("/proc/self/autogroup").read_text() == before, "the agent's own stays as it is"


def test_an_errand_that_fails_says_how(loop: Loop) -> None:
    """What the disk refused has one name, whichever of Python's classes it is."""

    def work(report: Report) -> dict[str, object]:
        raise PermissionError(13, "no")

    outcome, _ = run_errand(loop, work, low_priority=False)
    assert (outcome.ok, outcome.error) == (False, "OSError")
    assert "no" in outcome.message


def test_a_hung_errand_is_killed_and_the_loop_goes_on(loop: Loop) -> None:
    outcome, _ = run_errand(loop, lambda report: time.sleep(1000) or {}, silent_s=0.2, low_priority=False)
    assert outcome.error == "Hung"
    wait(loop, lambda: not descendants(os.getpid()))


def test_a_fork_that_fails_is_an_outcome_like_any_other(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never an exception for whoever wanted to publish beside a healthy training; told later, as everybody expects."""

    def no_more() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    outcomes: list[Outcome] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", no_more)
        made = Errand(loop, lambda report: {}, outcomes.append)
        given_up = Errand(loop, lambda report: {}, outcomes.append)
    assert not made.finished and not outcomes and not running
    given_up.cancel()
    wait(loop, lambda: len(outcomes) == 2)
    assert [one.error for one in outcomes] == ["Cancelled", "OSError"]
    assert "no process" in outcomes[1].message and "unavailable" in outcomes[1].message
    assert run_errand(loop, lambda report: {"again": 1})[0].ok


def test_a_killed_errand_is_noticed(loop: Loop) -> None:
    outcome, _ = run_errand(loop, lambda report: os.kill(os.getpid(), signal.SIGKILL) or {}, low_priority=False)
    assert outcome.error == "Killed"


def start(loop: Loop, tmp_path: Path, *argv: str) -> tuple[Keeper, list[Ended], list[str]]:
    log = Log(tmp_path / "log")
    lines: list[str] = []
    ended: list[Ended] = []
    output = Output(loop, log, lines.append)
    keeper = Keeper(loop, argv, dict(os.environ), tmp_path, output.writer, ended.append)
    output.started()
    return keeper, ended, lines


def test_a_trainer_runs_in_a_session_of_its_own_and_its_exit_code_is_known(loop: Loop, tmp_path: Path) -> None:
    code = "import os, sys; print(os.getsid(0) == os.getpid(), os.getcwd(), flush=True); sys.exit(7)"
    _, ended, lines = start(loop, tmp_path, sys.executable, "-c", code)
    wait(loop, lambda: ended and lines)
    assert (ended[0].exit_code, ended[0].signal, ended[0].lost) == (7, None, False)
    assert lines == [f"True {tmp_path}"]


def test_a_program_that_does_not_exist_is_named(loop: Loop, tmp_path: Path) -> None:
    keeper, ended, _ = start(loop, tmp_path, "/nowhere/python9")
    wait(loop, lambda: ended)
    assert "/nowhere/python9" in keeper.problem
    assert keeper.problem_errno == errno.ENOENT
    assert ended[0].text == "exit code 127", "nothing was killed"


def test_what_the_machine_says_to_a_program_is_passed_on(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "execvpe", failing)
    keeper, ended, _ = start(loop, tmp_path, sys.executable)
    wait(loop, lambda: ended)
    assert (keeper.problem, keeper.problem_errno) == (f"{sys.executable}: {os.strerror(errno.EIO)}", errno.EIO)


def test_a_trainer_that_cannot_be_forked_is_told_apart_from_one_that_was_killed(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fork, [0]

    def fork() -> int:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return real()

    monkeypatch.setattr(os, "fork", fork)
    keeper, ended, _ = start(loop, tmp_path, sys.executable)
    wait(loop, lambda: ended)
    assert keeper.problem_errno == errno.EAGAIN and not ended[0].lost


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
told, tell = os.pipe()
between = os.fork()
if between == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(tell, b"x")
        signal.pause()
    os._exit(0)
os.waitpid(between, 0)
os.read(told, 1)
print("ready", flush=True)
signal.pause()
"""
"""Once it says "ready", exactly two processes stay: itself and a daemon that is no longer its child."""


def test_kill_takes_a_daemonised_grandchild_too(loop: Loop, tmp_path: Path) -> None:
    keeper, ended, lines = start(loop, tmp_path, sys.executable, "-c", STUBBORN)
    wait(loop, lambda: lines)
    below = descendants(keeper.pid)
    assert len(below) == 2
    assert sorted(family(keeper.pid)) == sorted(below)
    keeper.terminate()
    assert not loop.run_until(lambda: bool(ended), time.monotonic() + 0.3)
    keeper.kill()
    wait(loop, lambda: ended)
    assert ended[0].signal == signal.SIGKILL
    assert all(not alive(pid) for pid in below)


SAVES_AT_NOTICE = """
import os, signal, sys, time
def bye(number, frame):
    print("told", flush=True)
    while not os.path.exists("go"):
        time.sleep(0.01)
    open("saved", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


def test_the_grace_is_given_to_a_trainer_whose_shell_dies_at_once(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SAVES_AT_NOTICE, encoding="utf-8")
    keeper, ended, lines = start(loop, tmp_path, "sh", "-c", f"{sys.executable} train.py; echo over")
    wait(loop, lambda: "ready" in lines)
    keeper.terminate()
    wait(loop, lambda: "told" in lines and keeper.trainer is not None)
    wait_for(lambda: not alive(keeper.trainer or 0), "the end of the shell")
    (tmp_path / "go").touch()
    wait(loop, lambda: ended)
    assert (tmp_path / "saved").exists()
    assert ended[0].signal == signal.SIGTERM


def test_the_grace_of_such_a_trainer_ends_too(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SAVES_AT_NOTICE, encoding="utf-8")
    keeper, ended, lines = start(loop, tmp_path, "sh", "-c", f"{sys.executable} train.py; echo over")
    wait(loop, lambda: "ready" in lines)
    keeper.terminate()
    wait(loop, lambda: "told" in lines and keeper.trainer is not None)
    wait_for(lambda: not alive(keeper.trainer or 0), "the end of the shell")
    keeper.kill()
    wait(loop, lambda: ended)
    assert not (tmp_path / "saved").exists()
    assert ended[0].signal == signal.SIGTERM


def test_the_end_of_the_trainer_is_the_end_of_its_workers(loop: Loop, tmp_path: Path) -> None:
    code = "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nprint('x', flush=True)"
    keeper, ended, _ = start(loop, tmp_path, sys.executable, "-c", code)
    wait(loop, lambda: ended)
    assert ended[0].exit_code == 0
    assert descendants(keeper.pid) == []
    wait(loop, lambda: not descendants(os.getpid()))


def test_stacks_of_all_processes_are_written_on_abort(loop: Loop, tmp_path: Path) -> None:
    code = """
import faulthandler, signal
faulthandler.enable()
def waiting_here():
    print("ready", flush=True)
    signal.pause()
waiting_here()
"""
    keeper, ended, lines = start(loop, tmp_path, sys.executable, "-c", code)
    wait(loop, lambda: lines)
    keeper.abort()
    wait(loop, lambda: ended)
    assert ended[0].signal == signal.SIGABRT
    assert any("in waiting_here" in line for line in lines)


def test_when_the_keeper_is_killed_the_sub_reaper_inherits_the_workers(loop: Loop, tmp_path: Path) -> None:
    become_subreaper()
    keeper, ended, lines = start(loop, tmp_path, sys.executable, "-c", STUBBORN)
    wait(loop, lambda: lines)
    below = descendants(keeper.pid)
    os.kill(keeper.pid, signal.SIGKILL)
    wait(loop, lambda: ended)
    assert ended[0].lost
    kill_below(os.getpid())
    assert all(not alive(pid) for pid in below)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_survives_sigkill_of_the_agent(tmp_path: Path) -> None:
    """The agent's part is played by a small program around a real Keeper."""
    program = tmp_path / "agent_part.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import os, signal, sys
            signal.alarm(30)
            from pathlib import Path
            from agent.keeper import Keeper
            from agent.loop import Loop
            from agent.processes import become_subreaper, descendants
            become_subreaper()
            loop = Loop()
            trainer = {STUBBORN!r}
            Keeper(loop, [sys.executable, "-c", trainer], dict(os.environ), Path("."), 1, print)
            loop.every(0.02, lambda: None)
            loop.run_until(lambda: len(descendants(os.getpid())) >= 3)
            print(*descendants(os.getpid()), flush=True)
            loop.run_until(lambda: False)
            """
        )
    )
    agent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert agent.stdout is not None
    pids: list[int] = []
    while len(pids) < 3:
        words = agent.stdout.readline().split()
        pids = [int(word) for word in words if word.isdigit()]
    agent.kill()
    agent.wait()
    until = time.monotonic() + DEADLINE_S
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.01)
    assert [pid for pid in pids if alive(pid)] == []
    agent.stdout.close()


def test_the_first_traceback_is_kept_when_threads_stumble_over_the_end(loop: Loop, tmp_path: Path) -> None:
    code = """
for word in ("early", "root cause", "noise"):
    print("Traceback (most recent call last)")
    print(*(f"{word} {number}" for number in range(60)), sep="\\n")
    print(word, "is over", flush=True)
"""
    _, ended, lines = start(loop, tmp_path, sys.executable, "-c", code)
    wait(loop, lambda: ended and "noise is over" in lines)
    log = Log(tmp_path / "other")
    for line in lines:
        log.hear(line)
        if line == "early is over":
            log.calm(time.time())
    kept = log.last_lines()
    assert len(kept) == 50
    assert kept[:2] == ["Traceback (most recent call last)", "root cause 0"]
    assert kept[20] == "…" and kept[-1] == "noise is over"
    assert not any("early" in line for line in kept)


def test_progress_bars_and_lines_are_told_apart(loop: Loop, tmp_path: Path) -> None:
    code = "print('step 1\\rstep 2\\rstep 3\\nlast', end='', flush=True)"
    _, ended, lines = start(loop, tmp_path, sys.executable, "-c", code)
    wait(loop, lambda: ended and "last" in lines)
    assert lines == ["step 1", "step 2", "step 3", "last"]
    assert (tmp_path / "log").read_bytes() == b"step 1\rstep 2\rstep 3\nlast"


def test_a_grace_does_not_pass_while_the_job_is_suspended(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = 0.0
    monkeypatch.setattr("agent.loop.time.monotonic", lambda clock=time.monotonic: clock() + ahead)
    called: list[bool] = []
    loop.after(0.5, lambda: called.append(True))
    ahead = 7200.0
    loop.once(0.0)
    assert not called, "nobody could use those hours"
    assert loop.run_until(lambda: bool(called)), "what is left of it passes as ever"


def test_a_suspended_agent_takes_nothing_for_silent(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an errand that says nothing for a moment, and a clock that went on by hours before the next event
    ahead = 0.0
    monkeypatch.setattr("agent.loop.time.monotonic", lambda clock=time.monotonic: clock() + ahead)
    outcomes: list[Outcome] = []

    def work(report: Report) -> dict[str, object]:
        time.sleep(0.2)
        return {"went": "well"}

    before = loop.awake()
    Errand(loop, work, outcomes.append, silent_s=60.0)
    ahead = 7200.0
    # When the watchdogs are due at once
    assert loop.run_until(lambda: bool(outcomes))
    # Then it is heard in the end, and the loop's own clock has not seen those hours
    assert outcomes[0].ok
    assert loop.awake() - before < 60
    # and no trainer hangs for them
    hang = Hang(JobConfig("r", "/staging", 10, "command", hang_min_s=60.0), Pace(startup_s=0.0), 0)
    training: Any = SimpleNamespace(last_sign=before, clock=StepClock(), stopped_by_agent=False, reports_every=None)
    attempt: Any = SimpleNamespace(loop=loop)
    hang.look(training, attempt)
    assert not hang.hung


def test_stacks_of_a_trainer_and_its_workers_do_not_run_into_each_other(tmp_path: Path) -> None:
    # Given a trainer with three workers that all write their stacks to the same pipe
    worker = "import faulthandler, time\nfaulthandler.enable()\ndef waits_for_ever():\n    print('here', flush=True)\n    time.sleep(600)\n"
    trainer = (
        f"{worker}import subprocess, sys\n"
        f"below = [subprocess.Popen([sys.executable, '-c', {worker + 'waits_for_ever()'!r}]) for _ in range(3)]\n"
        "waits_for_ever()\n"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", trainer], stdout=writer, stderr=writer)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as said:
        assert [said.readline() for _ in range(4)] == ["here\n"] * 4
        everyone = [process.pid, *descendants(process.pid)]
        assert len(everyone) == 4
        # When they are told one after another
        signal_in_turn(everyone, signal.SIGABRT, 20.0, 60.0)
        # Then each stack is whole
        assert [pid for pid in everyone if not has_ended(pid)] == []
        text = said.read()
    assert process.wait() == -signal.SIGABRT
    assert text.split("Fatal Python error: Aborted\n")[0] == ""
    stacks = text.split("Fatal Python error: Aborted\n")[1:]
    assert len(stacks) == 4 and all('File "<string>", line 5 in waits_for_ever\n' in stack for stack in stacks)


def test_one_that_outlasts_the_signal_holds_up_the_others_for_its_share_only() -> None:
    deaf = "import signal, time\nsignal.signal(signal.SIGABRT, signal.SIG_IGN)\nprint('here', flush=True)\ntime.sleep(600)\n"
    both = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        for program in (deaf, deaf.replace("SIG_IGN", "SIG_DFL"))
    ]
    try:
        for each in both:
            assert each.stdout is not None and each.stdout.readline() == b"here\n"
        signal_in_turn([each.pid for each in both], signal.SIGABRT, 0.05, 60.0)
        assert both[1].wait() == -signal.SIGABRT
        assert both[0].poll() is None and not has_ended(both[0].pid)
    finally:
        for each in both:
            each.kill()
            each.communicate()
