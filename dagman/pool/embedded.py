"""EmbeddedPool: a real personal HTCondor in one directory, up in seconds, gone without a trace.

htcondor2.personal.PersonalPool does the same for an ordinary user inside one Python process. It is not used here because it sets
CONDOR_CONFIG for the whole process, starts the master from PATH without a user namespace, forgets its daemons when its process is
killed, and leaves jobs that outlive their starter; the configuration written here follows its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from agent.errors import BadInput, SegueError
from dagman.paths import absolute
from dagman.pool import namespace, processes
from dagman.pool.fetch import cache_directory
from dagman.pool.installation import Installation, find
from dagman.pool.settings import DIRECTORIES, configuration, socket_directory

START_S = 60.0
STOP_S = 20.0

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
# The daemons whose ads must be in the collector before a job can run.
_NEEDED = {"Scheduler", "Negotiator", "Machine"}


class PoolFailed(SegueError):
    """The pool did not start or did not end; the message quotes its log."""


@dataclass(frozen=True)
class PoolStatus:
    """What `segue pool status` says. `daemons` are kinds of ads in the collector; counts are -1 when nothing answers."""

    directory: str
    running: bool
    ready: bool
    version: str
    source: str
    processes: int
    daemons: tuple[str, ...]
    jobs: int

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self))


def default_directory() -> Path:
    """`segue pool` without --directory."""
    return cache_directory() / "pool"


class EmbeddedPool:
    """A personal HTCondor in `directory`; as a context manager it ends with the block, or with this process.

    `config` adds or replaces HTCondor parameters. `suites` asks for a Debian suite's HTCondor instead of the one on PATH.
    """

    def __init__(
        self,
        directory: Path | str | None = None,
        config: Mapping[str, str] | None = None,
        *,
        suites: Sequence[str] | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        chosen = Path(directory) if directory is not None else default_directory()
        self.directory = absolute(chosen).resolve()
        self.config = dict(config or {})
        self._suites = suites
        self._report = report
        self._installation: Installation | None = None
        self._leash: subprocess.Popen[bytes] | None = None
        self._log_before = 0

    @property
    def installation(self) -> Installation:
        """HTCondor's programs: those that the pool was started with, else those it would be started with."""
        if self._installation is None:
            self._installation = self._recorded() or find(self._suites, self._report)
        return self._installation

    def __enter__(self) -> EmbeddedPool:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self, *, tied: bool = True) -> None:
        """Start the daemons and wait until a job can be matched.

        tied: the pool ends when this process does, however that dies. Raises SegueError: no HTCondor to be had, no user
        namespace, the directory under /tmp or in use, or a daemon that does not come up.
        """
        _refuse_temporary(self.directory)
        if self._alive():
            raise PoolFailed(
                f"a pool is running in {self.directory}: end it with `segue pool down --directory {shlex.quote(str(self.directory))}`"
            )
        namespace.check()
        self._installation = find(self._suites, self._report)
        self._prepare()
        started = time.monotonic()
        try:
            self._start_master()
            if tied:
                self._tie()
            self._wait_until_ready()
        except BaseException:
            self.down()
            raise
        self._report(f"HTCondor {self.installation.version} is up in {time.monotonic() - started:.1f} s")

    def down(self) -> None:
        """End everything that belongs to the pool; nothing to do is no error. The queue stays in the directory's spool."""
        master = self._master()
        if master is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(master, signal.SIGQUIT)
            _wait(lambda: not self._alive(), STOP_S)
        left = processes.end(self.directory)
        self._master()  # takes note of its end
        if left:
            raise PoolFailed(f"processes of the pool in {self.directory} do not end: {', '.join(map(str, left))}")
        if self._leash is not None:
            assert self._leash.stdin is not None
            self._leash.stdin.close()
            self._leash.wait()
            self._leash = None
        shutil.rmtree(socket_directory(self.directory), ignore_errors=True)
        (self.directory / "pool.json").unlink(missing_ok=True)

    def running(self) -> bool:
        """Whether the pool's master runs: cheap, asks no daemon."""
        return self._alive()

    def status(self) -> PoolStatus:
        """What runs, from /proc and the collector; starts nothing."""
        members = processes.of_pool(self.directory)
        installation = self._recorded()
        if not members or installation is None:
            return PoolStatus(str(self.directory), bool(members), False, "", "", len(members), (), -1)
        self._installation = installation
        kinds = self._ads().keys()
        queue = self.run(["condor_q", "-allusers", "-af", "ClusterId"], capture_output=True, text=True)
        jobs = len(queue.stdout.splitlines()) if queue.returncode == 0 else -1
        return PoolStatus(
            str(self.directory),
            self._alive(),
            kinds >= _NEEDED,
            installation.version,
            installation.source,
            len(members),
            tuple(sorted(kinds)),
            jobs,
        )

    def wrap(self, argv: Sequence[str]) -> list[str]:
        """The command as one of the pool's user: unchanged, or in a user namespace when we are root."""
        return namespace.wrap(argv)

    def environment(self) -> dict[str, str]:
        """What a tool of this pool needs on top of its environment: CONDOR_CONFIG and PATH."""
        return {
            "CONDOR_CONFIG": str(self.directory / "condor_config"),
            "PATH": self.installation.search_path(os.environ.get("PATH", os.defpath)),
        }

    def run(self, argv: Sequence[str], **subprocess_kwargs: Any) -> subprocess.CompletedProcess[Any]:
        """subprocess.run of a command against this pool; `env` replaces the process's environment, as there."""
        given = subprocess_kwargs.pop("env", None)
        environment = {**_without_condor(os.environ if given is None else given), **self.environment()}
        # The program is looked for on the pool's PATH, which subprocess would not do by itself.
        program = shutil.which(argv[0], path=environment["PATH"])
        if program is None:
            raise BadInput(f"there is no program {argv[0]} on the pool's PATH")
        return subprocess.run(self.wrap([program, *argv[1:]]), env=environment, **subprocess_kwargs)

    def _prepare(self) -> None:
        processes.end(self.directory)
        try:
            for name in DIRECTORIES:
                (self.directory / name).mkdir(parents=True, exist_ok=True)
            for name in ("passwords.d", "tokens.d", "system_tokens.d", "credentials"):
                (self.directory / name).chmod(0o700)
            for entry in (self.directory / "execute").iterdir():
                shutil.rmtree(entry, ignore_errors=True)
            for entry in (self.directory / "log").glob(".*_address*"):
                entry.unlink()
            sockets = socket_directory(self.directory)
            shutil.rmtree(sockets, ignore_errors=True)
            sockets.mkdir(mode=0o700)
            text = configuration(self.directory, self.installation, self.config)
            (self.directory / "condor_config").write_text(text)
        except OSError as error:
            raise PoolFailed(
                f"cannot write the pool's directory {self.directory}: {error.strerror}; choose another with --directory"
            ) from None

    def _start_master(self) -> None:
        log = self.directory / "log" / "MasterLog"
        self._log_before = len(log.read_text(errors="replace")) if log.exists() else 0
        environment = {**_without_condor(os.environ), **self.environment(), processes.MARK: str(self.directory)}
        argv = self.wrap([str(self.installation.sbin / "condor_master"), "-f"])
        program = shutil.which(argv[0]) or argv[0]
        # Not subprocess: the master may outlive this process, and a Popen object insists on being waited for.
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self.directory / "log" / "master.out"), _NEW_FILE, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        actions += [(os.POSIX_SPAWN_CLOSE, number) for number in _inherited()]
        master = os.posix_spawn(program, argv, environment, file_actions=actions, setsid=True)
        record = {
            "master": master,
            "born": processes.born(master),
            "installation": _as_record(self.installation),
        }
        (self.directory / "pool.json").write_text(json.dumps(record))

    def _tie(self) -> None:
        # The guard reads a pipe whose other end only this process holds: it sees our end, whatever kills us.
        self._leash = subprocess.Popen(
            [sys.executable, "-m", "dagman.pool.guard", str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )

    def _wait_until_ready(self) -> None:
        # Each startd brings a slot of its own: a twin of a GPU pool has several.
        startds = self.config.get("DAEMON_LIST", "STARTD").upper().count("STARTD")
        have: Counter[str] = Counter()
        deadline = time.monotonic() + START_S
        while not (have.keys() >= _NEEDED and have["Machine"] >= startds):
            if self._master() is None:
                raise PoolFailed(f"HTCondor's master in {self.directory} ended at once; {self._log()}")
            if self._hopeless() or time.monotonic() > deadline:
                answer = ", ".join(sorted(have)) or "none"
                raise PoolFailed(
                    f"the pool in {self.directory} does not become ready (daemons that answer: {answer}); {self._log()}"
                )
            time.sleep(0.1)
            have = self._ads()

    def _hopeless(self) -> bool:
        """The master has started some daemon three times in vain."""
        log = self.directory / "log" / "MasterLog"
        failed = (
            log.read_text(errors="replace")[self._log_before :].count(") exited with status") if log.exists() else 0
        )
        return failed >= 3

    def _log(self) -> str:
        for name in ("master.out", "MasterLog"):
            path = self.directory / "log" / name
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            wrong = [line for line in lines if "ERROR" in line or "error" in line or "exited" in line]
            if wrong or (name == "master.out" and lines):
                return f"{path} says: {(wrong or lines)[-1].strip()}"
        return f"see {self.directory}/log"

    def _ads(self) -> Counter[str]:
        """How many ads of each kind the collector has; none while it does not answer."""
        if not (self.directory / "log" / ".collector_address").exists():
            return Counter()
        asked = self.run(["condor_status", "-any", "-af", "MyType"], capture_output=True, text=True)
        return Counter(asked.stdout.split()) if asked.returncode == 0 else Counter()

    def _record(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.directory / "pool.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _recorded(self) -> Installation | None:
        record = self._record()
        if record is None:
            return None
        kept = record["installation"]
        return Installation(
            Path(kept["bin"]),
            Path(kept["sbin"]),
            Path(kept["libexec"]),
            tuple((key, value) for key, value in kept["settings"]),
            kept["version"],
            kept["source"],
        )

    def _master(self) -> int | None:
        """Process id of a master that runs and is this pool's (ids are used again after a reboot)."""
        record = self._record()
        if record is None:
            return None
        pid = int(record["master"])
        # Where this process is its parent, its end must be taken note of, or it stays a zombie.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return pid if record["born"] is not None and processes.born(pid) == record["born"] else None

    def _alive(self) -> bool:
        return self._master() is not None


def _inherited() -> list[int]:
    """Open files above stderr that a child would get: a daemon must not keep a caller's pipe open."""
    found = []
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):
            if number > 2 and os.get_inheritable(number):
                found.append(number)
    return found


def _as_record(installation: Installation) -> dict[str, Any]:
    record = asdict(installation)
    return {key: str(value) if isinstance(value, Path) else value for key, value in record.items()}


def _refuse_temporary(directory: Path) -> None:
    for place in (Path("/tmp"), Path("/var/tmp")):
        if directory.is_relative_to(place) or Path(os.path.realpath(directory)).is_relative_to(place):
            raise BadInput(
                f"the pool's directory {directory} is under {place}, where DAGMan refuses its logs and containers hide it: "
                "choose another with --directory, for example ~/.cache/segue/pool"
            )


def _without_condor(environment: Mapping[str, str]) -> dict[str, str]:
    # `_CONDOR_NAME` in the environment replaces NAME of the configuration: another pool's must not leak in.
    return {
        key: value
        for key, value in environment.items()
        if not key.upper().startswith("_CONDOR_") and key != processes.MARK
    }


def _wait(reached: Callable[[], bool], patience_s: float, pause_s: float = 0.05) -> bool:
    deadline = time.monotonic() + patience_s
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True
