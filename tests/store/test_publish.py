"""Publishing beside a training: priority, rate, cancel, and what a publisher that was killed leaves in the way of the next."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from agent.bundle import build_agent
from agent.store import (
    BadCheckpoint,
    Budget,
    Cancelled,
    Claim,
    Claimant,
    Metadata,
    NoRoom,
    Retention,
    Store,
    Superseded,
    snapshot,
)
from agent.store.errors import CheckpointChanged, SnapshotUnreadable
from agent.store.fs import PosixFileSystem
from tests.store.trees import make_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "staging").mkdir()
    return Store(tmp_path / "staging" / "segue" / "run")


def listing(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "checkpoints").iterdir())


def publish(store: Store, claim: Claim, place: Path, step: int, **more: object) -> None:
    source = make_checkpoint(place / f"source-{step}", step)
    store.publish(claim, source, Metadata(step, str(step)), **more)  # type: ignore[arg-type]


def test_priority_is_lowered_for_every_thread_that_copies() -> None:
    program = """
import ctypes, os, platform, threading
from agent.store import lower_priority
lower_priority()
number = {"x86_64": 252, "aarch64": 31, "ppc64le": 274}.get(platform.machine())
def look():
    level = ctypes.CDLL(None).syscall(number, 1, 0) if number else -1
    print(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), level >> 13, level & 7)
look()
thread = threading.Thread(target=look)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert len(lines) == 2 and lines[0] == lines[1]
    nice, kind, level = lines[0]
    assert nice >= 10
    assert (kind, level) == (2, 7) or kind == -1  # best effort, lowest; or a machine that has no ionice


def test_a_publish_goes_no_faster_than_its_rate(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    source = make_checkpoint(tmp_path / "source", 10, files=4, size=50_000)
    began = time.monotonic()
    store.publish(claim, source, Metadata(10, "10"), bytes_per_second=1_000_000)
    assert time.monotonic() - began >= 0.19
    assert store.verify(store.commits()[0]) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_publish_can_be_cancelled_at_every_look(store: Store, tmp_path: Path, workers: int) -> None:
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10)
    source = make_checkpoint(tmp_path / "next", 20)
    busy = Store(store.root, workers=workers)
    before = listing(store)
    for patience in range(100):
        looks = iter(range(patience))
        try:
            busy.publish(claim, source, Metadata(20, "20"), cancelled=lambda looks=looks: next(looks, None) is None)
        except Cancelled:
            assert listing(store) == before
        else:
            break
    assert patience >= 7  # before and after each of three files, and once more before the rename
    assert [one.step for one in store.commits()] == [20, 10]


def test_a_cancel_during_the_sync_still_commits_nothing(store: Store, tmp_path: Path) -> None:
    asked = []

    class Slow(PosixFileSystem):
        def sync(self, fd: int) -> None:
            super().sync(fd)
            asked.append(True)

    claim = store.claim(Claimant(), {})
    source = make_checkpoint(tmp_path / "source", 10)
    with pytest.raises(Cancelled):
        Store(store.root, fs=Slow()).publish(claim, source, Metadata(10, "10"), cancelled=lambda: bool(asked))
    assert listing(store) == []


def test_an_interrupt_leaves_nothing_and_no_thread_that_goes_on_writing(store: Store, tmp_path: Path) -> None:
    """Ctrl-C in a caller: its descriptor's number may be another file's a moment later."""
    closed: list[int] = []
    late: list[int] = []

    class Watched(PosixFileSystem):
        def close(self, fd: int) -> None:
            closed.append(fd)
            super().close(fd)

        def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            late.extend([fd] * (fd in closed))
            return super().write(fd, data, offset)

    claim = store.claim(Claimant(), {})
    source = make_checkpoint(tmp_path / "source", 10, files=4, size=3 << 20)

    pressed: list[int] = []

    def interrupted(_bytes: int) -> None:
        if not pressed:  # once: a second Ctrl-C may cut the cleaning up short
            pressed.append(1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Store(store.root, fs=Watched()).publish(claim, source, Metadata(10, "10"), progress=interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [one for one in threading.enumerate() if one.name == "segue-copy"]
    assert late == []
    assert listing(store) == []


@pytest.mark.parametrize("there", [0, 1])
def test_a_machine_without_threads_to_spare_publishes_and_restores(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int
) -> None:
    left = [there]
    whole = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        whole(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    publish(store, store.claim(Claimant(), {}), tmp_path, 10)
    left[0] = there
    assert store.verify(store.commits()[0]) == []


def test_what_a_killed_publisher_of_this_attempt_left_makes_room_for_the_next(store: Store, tmp_path: Path) -> None:
    """A publish that hung is killed by the agent; its reserved room must not starve the next one."""
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10)
    left = store.root / "checkpoints" / ".000000020.e000001.abc.tmp"
    left.write_bytes(bytes(60_000))
    newer = store.root / "checkpoints" / ".000000020.e000002.abc.tmp"
    newer.write_bytes(b"x")
    tight = Store(store.root, budget=Budget(bytes=110_000))
    publish(tight, claim, tmp_path, 20)
    assert listing(store) == [newer.name, "000000010.e000001.tar", "000000020.e000001.tar"]


class SmallDisk(PosixFileSystem):
    """The real disk, but the commits in one directory must not exceed a number: a quota that no look shows beforehand."""

    def __init__(self, directory: Path, most: int) -> None:
        self._directory = directory
        self._most = most

    def reserve(self, fd: int, size: int) -> bool:
        if len([one for one in self._directory.iterdir() if not one.name.startswith(".")]) >= self._most:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return super().reserve(fd, size)


def test_a_quota_that_shows_only_when_it_is_hit_prunes_what_retention_allows(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    for step in (10, 20, 30):
        publish(store, claim, tmp_path, step)
    small = Store(store.root, fs=SmallDisk(store.root / "checkpoints", 3))
    with pytest.raises(NoRoom, match="quota reached"):
        publish(small, claim, tmp_path, 40)
    assert [one.step for one in store.commits()] == [30, 20, 10]
    source = tmp_path / "source-40"
    assert small.publish(claim, source, Metadata(40, "40"), retention=Retention()).step == 40
    assert [one.step for one in store.commits()] == [40, 30, 20]
    smaller = Store(store.root, fs=SmallDisk(store.root / "checkpoints", 2))
    with pytest.raises(NoRoom, match="quota reached"):
        publish(smaller, claim, tmp_path, 50, retention=Retention())
    assert [one.step for one in store.commits()] == [40, 30]


def test_a_commit_whose_name_found_no_room_to_be_synced_is_not_written_again(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    for step in (10, 20, 30):
        publish(store, claim, tmp_path, step)

    class Full(PosixFileSystem):
        written = 0
        full = True

        def rename(self, old: str, new: str) -> None:
            self.written += old.endswith(".tmp")
            super().rename(old, new)

        def sync_directory(self, path: str) -> None:
            if self.written and self.full:
                self.full = False
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().sync_directory(path)

    fs = Full()
    publish(Store(store.root, fs=fs), claim, tmp_path, 40, retention=Retention())
    assert (fs.written, fs.full) == (1, False)
    assert [one.step for one in store.commits()] == [40, 30]


def test_a_file_that_is_rewritten_in_place_while_it_is_read_is_no_commit(store: Store, tmp_path: Path) -> None:
    """A hard link does not protect from a trainer that writes into the same file; half old, half new is no checkpoint."""
    claim = store.claim(Claimant(), {})
    source = make_checkpoint(tmp_path / "source", 10, files=1, size=3 << 20)
    weights = source / "10" / "params" / "d" / "0.bin"

    def rewrite(_bytes: int) -> None:
        with weights.open("r+b") as file:
            file.write(b"new")

    with pytest.raises(CheckpointChanged, match="changed while it was published"):
        store.publish(claim, source, Metadata(10, "10"), progress=rewrite)
    assert listing(store) == []


def rewritten(path: Path, data: bytes) -> None:
    """The trainer writes into the same file again, later than anything before."""
    about = path.stat()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 10_000_000))


@pytest.mark.parametrize("copied", [-1, 1 << 20])
def test_what_is_rewritten_after_its_snapshot_is_no_commit_unless_it_was_copied(
    store: Store, tmp_path: Path, copied: int
) -> None:
    claim = store.claim(Claimant(), {})
    trainer = make_checkpoint(tmp_path / "trainer", 10)
    (trainer / "optimizer").write_bytes(b"of step 10")
    seen = snapshot(trainer, ["10", "optimizer"], tmp_path / "snap", copied=copied)
    rewritten(trainer / "optimizer", b"of step 20")
    if copied < 0:
        with pytest.raises(CheckpointChanged, match="changed after its snapshot was made"):
            store.publish(claim, tmp_path / "snap", Metadata(10, "10"), seen=seen)
        assert listing(store) == []
    else:
        store.publish(claim, tmp_path / "snap", Metadata(10, "10"), seen=seen)
        (tmp_path / "back").mkdir()
        store.restore(tmp_path / "back")
        assert (tmp_path / "back" / "optimizer").read_bytes() == b"of step 10"


@pytest.mark.parametrize("clock", [-5.0, 0.0, 4e12])
def test_a_clock_that_is_wrong_makes_no_bad_commit(store: Store, tmp_path: Path, clock: float) -> None:
    wrong = Store(store.root, clock=lambda: clock)
    publish(wrong, wrong.claim(Claimant(), {}), tmp_path, 10)
    assert store.verify(store.commits()[0]) == []


@pytest.mark.parametrize("name", ["params/d/2.bin", "empty"])
def test_files_of_two_saves_are_no_commit(store: Store, tmp_path: Path, name: str) -> None:
    """Each file is whole, but one was rewritten after it was read, or not looked at because it was empty."""
    claim = store.claim(Claimant(), {})
    source = make_checkpoint(tmp_path / "source", 10)
    total = sum(path.stat().st_size for path in (source / "10/params/d").iterdir())

    def rewrite(done: int) -> None:
        if done == total:  # the largest file is read first
            rewritten(source / "10" / name, b"new")

    with pytest.raises(CheckpointChanged, match=rf"{name}: it changed while it was published"):
        Store(store.root, workers=0).publish(claim, source, Metadata(10, "10"), progress=rewrite)
    assert listing(store) == []


def test_a_file_that_changes_while_it_is_copied_into_a_snapshot_is_no_snapshot(tmp_path: Path) -> None:
    trainer = make_checkpoint(tmp_path / "trainer", 10)

    class Growing(PosixFileSystem):
        def create(self, path: str, mode: int = 0o644) -> int:
            if path.endswith("1.bin"):
                rewritten(trainer / "10/params/d/1.bin", b"new")
            return super().create(path, mode)

    with pytest.raises(CheckpointChanged, match="changed while the snapshot was made"):
        snapshot(trainer, ["10"], tmp_path / "snap", Growing(), copied=1 << 20)
    assert not (tmp_path / "snap").exists()


def test_a_source_that_cannot_be_opened_is_not_blamed_on_staging(store: Store, tmp_path: Path) -> None:
    class Closed(PosixFileSystem):
        def open(self, path: str) -> int:
            if path.endswith("0.bin"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return super().open(path)

    claim = store.claim(Claimant(), {})
    source = make_checkpoint(tmp_path / "source", 10)
    with pytest.raises(BadCheckpoint, match=r"0\.bin: it cannot be read: Permission denied"):
        Store(store.root, fs=Closed()).publish(claim, source, Metadata(10, "10"))


def test_what_no_reader_would_restore_is_not_published(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    source = make_checkpoint(tmp_path / "source", 10)
    odd = source / "10" / "odd"
    for target in (None, "../../outside", "/etc"):
        os.mkfifo(odd) if target is None else odd.symlink_to(target)
        complaint = "leads out of the checkpoint" if target else "a device, socket or pipe cannot be part"
        with pytest.raises(BadCheckpoint, match=complaint):
            store.publish(claim, source, Metadata(10, "10"))
        with pytest.raises(BadCheckpoint, match=complaint):
            snapshot(source, ["10"], tmp_path / "snap")
        odd.unlink()
    assert listing(store) == [] and not (tmp_path / "snap").exists()


@pytest.mark.parametrize("call", ["open", "read_into"])
def test_a_scratch_disk_that_fails_is_not_blamed_on_the_checkpoint(store: Store, tmp_path: Path, call: str) -> None:
    class Failing(PosixFileSystem):
        weights = -1

        def open(self, path: str) -> int:
            if call == "open" and path.endswith("0.bin"):
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            fd = super().open(path)
            self.weights = fd if path.endswith("0.bin") else self.weights
            return fd

        def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
            if fd == self.weights:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read_into(fd, buffer, offset)

    claim = store.claim(Claimant(), {})
    source = make_checkpoint(tmp_path / "source", 10)
    with pytest.raises(SnapshotUnreadable, match=r"0\.bin: it cannot be read: Input/output error"):
        Store(store.root, fs=Failing()).publish(claim, source, Metadata(10, "10"))
    assert listing(store) == []


def test_a_run_that_comes_back_after_staging_was_away_takes_the_next_publish(store: Store, tmp_path: Path) -> None:
    from agent.store import StoreUnavailable

    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10)
    (tmp_path / "staging").rename(tmp_path / "away")
    (tmp_path / "staging").mkdir()
    with pytest.raises(StoreUnavailable, match="does not exist"):
        publish(store, claim, tmp_path, 20)
    assert list((tmp_path / "staging").iterdir()) == []
    (tmp_path / "staging").rmdir()
    (tmp_path / "away").rename(tmp_path / "staging")
    assert store.publish(claim, tmp_path / "source-20", Metadata(20, "20")).step == 20
    assert [one.step for one in store.commits()] == [20, 10]


def test_an_attempt_that_is_superseded_while_it_writes_commits_nothing(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})

    class Late(PosixFileSystem):
        def sync(self, fd: int) -> None:
            super().sync(fd)
            store.claim(Claimant(), {})

    source = make_checkpoint(tmp_path / "source", 10)
    with pytest.raises(Superseded, match="epoch 1 is superseded: epoch 2"):
        Store(store.root, fs=Late()).publish(claim, source, Metadata(10, "10"))
    assert listing(store) == []


@pytest.mark.parametrize("other", [False, True], ids=["nothing", "another file"])
def test_a_rename_that_finds_nothing_to_rename_is_no_commit(store: Store, tmp_path: Path, other: bool) -> None:
    """A newer owner has swept it. Only what was written, found under the final name, tells that the request was repeated."""
    claim = store.claim(Claimant(), {})
    final = store.root / "checkpoints" / "000000010.e000001.tar"
    if other:
        final.write_bytes(bytes(1024))

    class Late(PosixFileSystem):
        def rename(self, old: str, new: str) -> None:
            store.sweep(store.claim(Claimant(), {}))
            super().rename(old, new)

    source = make_checkpoint(tmp_path / "source", 10)
    with pytest.raises(Superseded):
        Store(store.root, fs=Late()).publish(claim, source, Metadata(10, "10"))
    assert listing(store) == [final.name] * other


def test_what_is_not_whole_under_the_final_name_is_not_taken_for_the_commit(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10)
    final = store.commits()[0].path
    final.write_bytes(final.read_bytes()[:-512])
    store.publish(claim, tmp_path / "source-10", Metadata(10, "10"))
    assert store.verify(store.commits()[0]) == []


DISCARDING = """
import sys
from pathlib import Path
from agent.publishing import discard
from agent.store import snapshot
place = Path(sys.argv[1])
(place / "root" / "10" / "closed").mkdir(parents=True)
(place / "root" / "10" / "closed" / "weights").write_bytes(b"x")
(place / "root" / "10" / "closed").chmod(0o555)
snapshot(place / "root", ["10"], place / "snapshot")
discard(place / "snapshot")
assert not (place / "snapshot").exists()
assert (place / "root" / "10" / "closed" / "weights").read_bytes() == b"x"
"""


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root is denied nothing")
def test_a_snapshot_of_a_read_only_directory_can_be_discarded() -> None:
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="segue-discard-") as place:
        Path(place).chmod(0o777)
        build_agent(Path(place) / "agent.pyz")  # the checkout may lie where only its owner can look
        done = subprocess.run(
            [*drop, sys.executable, "-B", "-c", DISCARDING, place],
            cwd=place,
            env={**os.environ, "PYTHONPATH": f"{place}/agent.pyz"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
