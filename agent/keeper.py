"""The trainer's parent: a small process that starts it in a session of its own and lets nothing of it survive.

HTCondor may kill the agent without a word. The keeper then reads the end of its control pipe and kills the trainer with everything
below it, sub-reaped orphans included. When the keeper itself is killed, the trainer dies by its parent-death signal and the
agent, a sub-reaper too, inherits and kills the rest. Only the keeper signals and reaps the trainer, so no reused process id is ever hit.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.loop import Loop, forget_signals
from agent.processes import (
    become_subreaper,
    descendants,
    die_with_parent,
    kill_below,
    reap,
    signal_all,
    signal_in_turn,
)

_TERMINATE, _ABORT, _KILL = b"T", b"A", b"K"
_REMNANT_S = 10.0
_LOOK_MS = 50
_STACK_S, _STACKS_S = 1.0, 3.0
"""How long is waited for the stack of one process, and for all: less than the agent's grace before SIGKILL."""
NOT_STARTED = 127
"""The shell's exit code for a program that could not be started, told of a trainer that never ran."""


@dataclass(frozen=True)
class Ended:
    """How the trainer ended. ``exit_code`` is None after a signal, ``signal`` None after an exit; ``lost``: keeper killed as well."""

    exit_code: int | None
    signal: int | None
    lost: bool = False

    @property
    def text(self) -> str:
        if self.signal is not None:
            try:
                return f"killed by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"killed by signal {self.signal}"
        return f"exit code {self.exit_code}"


class Keeper:
    """The agent's side. ``ended`` is set, and ``on_end`` called, once the trainer and all below it are gone."""

    def __init__(
        self,
        loop: Loop,
        argv: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        output: int,
        on_end: Callable[[Ended], None],
    ) -> None:
        self._loop = loop
        self._on_end = on_end
        self._buffer = b""
        self._status: int | None = None
        self.ended: Ended | None = None
        self.trainer: int | None = None
        """The trainer's process id, which is its process group and session too; None until it runs."""
        self.problem = ""
        """Why it could not be started, empty otherwise; ``problem_errno`` is the system's number for it."""
        self.problem_errno = 0
        agent = os.getpid()
        control, self._control = os.pipe()
        self._results, results = os.pipe()
        os.set_blocking(self._results, False)
        self.pid = os.fork()
        if self.pid == 0:
            _keep(agent, control, results, output, list(argv), dict(environment), directory)
        os.close(control)
        os.close(results)
        loop.watch(self._results, self._readable)

    def terminate(self) -> None:
        """SIGTERM to the trainer's process group."""
        self._send(_TERMINATE)

    def abort(self) -> None:
        """SIGABRT to every process of the trainer in turn, itself first: faulthandler writes their stacks."""
        self._send(_ABORT)

    def kill(self) -> None:
        """SIGKILL to the trainer and all below it."""
        self._send(_KILL)

    def _send(self, command: bytes) -> None:
        if self.ended is None:
            try:
                os.write(self._control, command)
            except BrokenPipeError:
                return

    def _readable(self) -> None:
        try:
            data = os.read(self._results, 1 << 12)
        except BlockingIOError:
            return
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._hear(json.loads(line))
        if not data:
            self._over()

    def _hear(self, message: dict[str, Any]) -> None:
        self.trainer = message.get("pid", self.trainer)
        self.problem = message.get("problem", self.problem)
        self.problem_errno = message.get("errno", self.problem_errno)
        self._status = message.get("status", self._status)

    def _over(self) -> None:
        self._loop.forget(self._results)
        os.close(self._results)
        os.close(self._control)
        if self.problem:
            self.ended = Ended(NOT_STARTED, None)
        elif self._status is None:
            self.ended = Ended(None, signal.SIGKILL, lost=True)
        elif os.WIFSIGNALED(self._status):
            self.ended = Ended(None, os.WTERMSIG(self._status))
        else:
            self.ended = Ended(os.WEXITSTATUS(self._status), None)
        self._on_end(self.ended)


def _keep(
    agent: int, control: int, results: int, output: int, argv: list[str], environment: dict[str, str], directory: Path
) -> None:
    """The keeper's whole life; never returns."""
    try:
        forget_signals()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        become_subreaper()
        noticed, notice = os.pipe()
        os.set_blocking(notice, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(notice, warn_on_full_buffer=False)
        _close_others({control, results, output, noticed, notice})
        if os.getppid() != agent:
            os._exit(1)

        def say(message: dict[str, Any]) -> None:
            os.write(results, json.dumps(message).encode() + b"\n")

        trainer = _start(output, argv, environment, directory, say)
        os.close(output)
        if trainer is not None:
            say({"pid": trainer})
            status = _watch(control, noticed, trainer)
            kill_below(os.getpid(), seconds=_REMNANT_S)
            if status is not None:
                say({"status": status})
    except BrokenPipeError:
        kill_below(os.getpid(), seconds=_REMNANT_S)
    finally:
        os._exit(0)


def _close_others(kept: set[int]) -> None:
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = max(low, fd + 1)
    os.closerange(low, 4096)


def _start(
    output: int, argv: list[str], environment: dict[str, str], directory: Path, say: Callable[[dict[str, Any]], None]
) -> int | None:
    """Fork and execute the trainer; None when it cannot be executed. A close-on-exec pipe tells which."""
    keeper = os.getpid()
    trouble, tell = os.pipe()
    try:
        trainer = os.fork()
    except OSError as error:
        say({"problem": f"{argv[0]}: {os.strerror(error.errno or 0)}", "errno": error.errno})
        return None
    if trainer == 0:
        try:
            forget_signals()
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, programs expect it
            os.setsid()
            die_with_parent(keeper)
            _no_core_dumps()
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(directory)
            os.execvpe(argv[0], argv, environment)
        except OSError as error:
            where = directory if error.filename in (str(directory), directory) else argv[0]
            os.write(tell, f"{error.errno or 0} {where}: {os.strerror(error.errno or 0)}".encode())
        finally:
            os._exit(127)
    os.close(tell)
    problem = os.read(trouble, 4096)
    os.close(trouble)
    if problem:
        os.waitpid(trainer, 0)
        number, _, text = problem.decode(errors="replace").partition(" ")
        say({"problem": text, "errno": int(number)})
        return None
    return trainer


def _no_core_dumps() -> None:
    """A dump of a training process would fill the scratch disk."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _watch(control: int, noticed: int, trainer: int) -> int | None:
    """Serve commands until the trainer has ended (its wait status) or the agent has (None).

    Of one that was told to end its whole process group counts: a shell dies of SIGTERM at once, and what runs in it may still save.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(noticed, select.POLLIN)
    status, told = None, False
    while True:
        status = reap().get(trainer, status)
        if status is not None and not (told and _group_lives(trainer)):
            return status
        for fd, _ in poll.poll(None if status is None else _LOOK_MS):
            if fd == noticed:
                os.read(noticed, 512)
                continue
            commands = os.read(control, 64)
            if not commands:
                return None
            told = _KILL not in commands  # what outlasts SIGKILL is not waited for
            if _KILL in commands:
                signal_all(([trainer] if status is None else []) + descendants(os.getpid()), signal.SIGKILL)
            elif _ABORT in commands:
                # Stacks that are written at once run into each other, and a trainer that sees a worker die would tell of that.
                signal_in_turn(descendants(os.getpid()), signal.SIGABRT, _STACK_S, _STACKS_S)
            else:
                _signal_group(trainer, signal.SIGTERM)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True


def _signal_group(group: int, number: int) -> None:
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        try:
            os.killpg(group, number)
            return
        except ProcessLookupError:  # between fork and setsid
            time.sleep(0.01)
        except PermissionError:
            return
