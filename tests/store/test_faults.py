"""Real processes killed at every call, and every call failing as real disks fail; then the run must still restore."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.bundle import build_agent
from agent.store import (
    BadCheckpoint,
    Cancelled,
    Claimant,
    Metadata,
    NoRoom,
    Retention,
    Store,
    StoreError,
    StoreUnavailable,
    snapshot,
)
from agent.store.fs import PosixFileSystem
from agent.store.names import parse_commit
from tests.store.faulty import FaultyFileSystem
from tests.store.trees import make_checkpoint, picture


def prepared(place: Path) -> Store:
    """A run with step 10 acknowledged, and the snapshots of steps 10 to 40 beside it."""
    (place / "staging").mkdir()
    store = Store(place / "staging" / "segue" / "run")
    claim = store.claim(Claimant(), {"recipe": "reference"})
    for step in (10, 20, 30, 40):
        make_checkpoint(place / f"source-{step}", step, files=2, size=700)
    store.publish(claim, place / "source-10", Metadata(10, "10"))
    return store


def second_attempt(store: Store, place: Path) -> None:
    """Claim, sweep, restore, publish three steps and prune."""
    claim = store.claim(Claimant(), {"recipe": "reference"})
    store.sweep(claim)
    (place / "scratch").mkdir()
    store.restore(place / "scratch", report=lambda _text: None)
    for step in (20, 30, 40):
        commit = store.publish(claim, place / f"source-{step}", Metadata(step, str(step)))
        with (place / "acknowledged").open("a") as file:
            file.write(f"{commit.step}\n")
        store.prune(claim, Retention())


def require_whole(place: Path) -> None:
    """A fresh attempt restores at least what was acknowledged, exactly, and leaves no temporary name."""
    known = place / "acknowledged"
    owed = max([10, *(map(int, known.read_text().split()) if known.exists() else [])])
    store = Store(place / "staging" / "segue" / "run")
    assert all(store.verify(commit) == [] for commit in store.commits())
    claim = store.claim(Claimant(), {"recipe": "reference"})
    store.sweep(claim)
    back = place / "back"
    back.mkdir()
    found = store.restore(back)
    assert found is not None and found.commit.step >= owed
    assert picture(back) == picture(place / f"source-{found.commit.step}")
    names = [path.name for path in (store.root / "checkpoints").iterdir()]
    assert all(parse_commit(name) for name in names)


def calls_of_an_attempt(place: Path) -> int:
    place.mkdir()
    store = prepared(place)
    counting = FaultyFileSystem(0, 1)
    second_attempt(Store(store.root, fs=counting, workers=0), place)
    shutil.rmtree(place)
    return counting.calls


@pytest.mark.forks
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_sigkill_at_every_call_loses_nothing_acknowledged(tmp_path: Path, after: bool) -> None:
    total = calls_of_an_attempt(tmp_path / "count")
    assert total > 200
    template = tmp_path / "template"
    template.mkdir()
    prepared(template)
    for at in range(1, total + 1):
        place = tmp_path / str(at)
        shutil.copytree(template, place, symlinks=True)
        child = os.fork()
        if child == 0:
            try:
                fs = FaultyFileSystem(at, -1 if after else 0)
                second_attempt(Store(place / "staging" / "segue" / "run", fs=fs, workers=0), place)
            finally:
                os._exit(9)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        require_whole(place)
        shutil.rmtree(place)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ESTALE, errno.EROFS, errno.EACCES])
def test_an_error_at_every_call_is_a_sentence_and_loses_nothing(tmp_path: Path, number: int) -> None:
    total = calls_of_an_attempt(tmp_path / "count")
    template = tmp_path / "template"
    template.mkdir()
    prepared(template)
    spoken = 0
    for at in range(1 + number % 5, total + 1, 5):
        place = tmp_path / str(at)
        shutil.copytree(template, place, symlinks=True)
        fs = FaultyFileSystem(at, number)
        try:
            second_attempt(Store(place / "staging" / "segue" / "run", fs=fs, workers=0), place)
        except StoreError as error:
            spoken += 1
            assert str(error).count("\n") == 0 and len(str(error)) > 20
        require_whole(place)
        shutil.rmtree(place)
    assert spoken > 10


def test_a_full_disk_is_known_before_the_first_byte_and_training_goes_on(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    claim = store.claim(Claimant(), {"recipe": "reference"})
    for call in ("reserve", "write", "sync"):

        class Full(FaultyFileSystem):
            wanted = call

            def __getattr__(self, name: str) -> object:
                if name == self.wanted:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().__getattr__(name)

        with pytest.raises(NoRoom, match="no space left"):
            Store(store.root, fs=Full(0, 1)).publish(claim, tmp_path / "source-20", Metadata(20, "20"))
        assert [path.name for path in (store.root / "checkpoints").iterdir()] == ["000000010.e000001.tar"]
    assert store.publish(claim, tmp_path / "source-20", Metadata(20, "20")).step == 20


@pytest.mark.parametrize("left", [0, 4096])
def test_a_claim_without_room_says_what_killed_publishes_take(tmp_path: Path, left: int) -> None:
    store = prepared(tmp_path)
    if left:
        (store.root / "checkpoints" / ".000000020.e000001.abcdef.tmp").write_bytes(bytes(left))

    class Full(PosixFileSystem):
        def create(self, path: str, mode: int = 0o644) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted((store.root / "checkpoints").iterdir())
    with pytest.raises(NoRoom, match=r"claiming the run in .*no space left") as caught:
        Store(store.root, fs=Full()).claim(Claimant(), {"recipe": "reference"})
    assert ("4096 bytes are of publishes that were killed" in str(caught.value)) == bool(left)
    assert sorted((store.root / "checkpoints").iterdir()) == before


def test_a_full_scratch_disk_is_not_taken_for_a_full_staging(tmp_path: Path) -> None:
    store = prepared(tmp_path)

    class Full(PosixFileSystem):
        def reserve(self, fd: int, size: int) -> bool:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def link(self, old: str, new: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "back").mkdir()
    with pytest.raises(
        NoRoom, match=r"restoring into .*/back: no space left .*; the job's disk is full; raise request_disk$"
    ):
        Store(store.root, fs=Full()).restore(tmp_path / "back")
    with pytest.raises(NoRoom, match=r"making a snapshot in .*/snap: .*raise request_disk$"):
        snapshot(tmp_path / "source-20", ["20"], tmp_path / "snap", Full())


def test_a_cancelled_publish_leaves_nothing(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    claim = store.claim(Claimant(), {"recipe": "reference"})
    with pytest.raises(Cancelled):
        store.publish(claim, tmp_path / "source-20", Metadata(20, "20"), cancelled=lambda: True)
    assert [path.name for path in (store.root / "checkpoints").iterdir()] == ["000000010.e000001.tar"]


def test_a_file_that_grows_while_it_is_published_is_no_commit(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    claim = store.claim(Claimant(), {"recipe": "reference"})
    grown = tmp_path / "source-20" / "20" / "params" / "d" / "0.bin"

    def grow(_bytes: int) -> None:
        with grown.open("ab") as file:
            file.write(b"x")

    with pytest.raises(BadCheckpoint, match="it changed while it was published"):
        store.publish(claim, tmp_path / "source-20", Metadata(20, "20"), progress=grow)
    assert [one.step for one in store.commits()] == [10]


def test_an_unreadable_store_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    store = prepared(tmp_path)

    class Unreadable(FaultyFileSystem):
        def __getattr__(self, name: str) -> object:
            if name == "read_into":

                def fail(*_: object) -> int:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

                return fail
            return super().__getattr__(name)

    (tmp_path / "back").mkdir()
    with pytest.raises(StoreUnavailable, match="I/O error"):
        Store(store.root, fs=Unreadable(0, 1)).restore(tmp_path / "back", report=lambda _text: None)
    assert list((tmp_path / "back").iterdir()) == []


SMALL_DISK = """
set -e
mount -t tmpfs -o size=128k,nr_inodes=64 none {staging}
{python} - <<'END'
import os, sys
from pathlib import Path
from agent.store import Claimant, Metadata, NoRoom, Retention, Store, StoreUnavailable
from tests.store.trees import make_checkpoint, picture
place = Path({place!r})
store = Store(place / "staging" / "segue" / "run")
claim = store.claim(Claimant(), dict(recipe="reference"))
published = 0
for step in range(10, 100, 10):
    make_checkpoint(place / f"source-{{step}}", step, size=7000)
    try:
        store.publish(claim, place / f"source-{{step}}", Metadata(step, str(step)))
        published = step
    except NoRoom as error:
        print("no room:", error)
        break
else:
    sys.exit("the small disk never filled up")
assert published >= 10, published
assert [one.step for one in store.commits()][0] == published
assert not [name for name in os.listdir(store.root / "checkpoints") if name.endswith(".tmp")]
store.publish(claim, place / f"source-{{step}}", Metadata(step, str(step)), retention=Retention())
assert len(store.prune(claim, Retention())) == 1
END
mount -o remount,ro {staging}
{python} - <<'END'
from pathlib import Path
from agent.store import Claim, Metadata, Store, StoreUnavailable
from tests.store.trees import picture
place = Path({place!r})
store = Store(place / "staging" / "segue" / "run")
newest = store.commits()[0]
try:
    store.publish(Claim(1, ""), place / f"source-{{newest.step}}", Metadata(1000, "1000"))
except StoreUnavailable as error:
    print(error)
    assert "read-only" in str(error), error
(place / "back").mkdir()
assert store.restore(place / "back").commit == newest
assert picture(place / "back") == picture(place / f"source-{{newest.step}}")
END
"""


def may_mount() -> bool:
    probe = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(probe, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_mount(), reason="this machine allows no mounts in a user namespace")
def test_a_real_small_disk_fills_up_and_turns_read_only(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    script = SMALL_DISK.format(staging=tmp_path / "staging", place=str(tmp_path), python=sys.executable)
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no room" in done.stdout and "lacks" in done.stdout and "read-only" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root is denied nothing")
def test_a_directory_without_permission_is_one_sentence(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    for path in [tmp_path, *tmp_path.parents]:
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    (store.root / "epochs").chmod(0o555)
    program = (
        "from pathlib import Path; from agent.store import Claimant, Store\n"
        f"Store(Path({str(store.root)!r})).claim(Claimant(), dict(recipe='reference'))"
    )
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    build_agent(tmp_path / "agent.pyz")  # the checkout may lie where only its owner can look
    done = subprocess.run(
        [*drop, sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "agent.pyz")},
        capture_output=True,
        text=True,
    )
    (store.root / "epochs").chmod(0o755)
    assert done.returncode == 1 and "StoreUnavailable" in done.stderr and "permission is denied" in done.stderr
