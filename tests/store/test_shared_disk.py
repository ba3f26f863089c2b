"""Several clients on one disk: claims that race, listings that lag, commits that a prune takes from under a reader."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.store import (
    BadArchive,
    Budget,
    Claim,
    Claimant,
    FingerprintChanged,
    Metadata,
    Retention,
    Store,
    StoreUnavailable,
)
from agent.store.budget import Room, rooms
from agent.store.errors import CommitGone
from agent.store.fs import PosixFileSystem, Stat
from tests.store.trees import make_checkpoint, picture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "staging").mkdir()
    return Store(tmp_path / "staging" / "segue" / "run")


def publish(store: Store, claim: Claim, place: Path, *steps: int) -> None:
    for step in steps:
        store.publish(claim, make_checkpoint(place / f"source-{step}", step), Metadata(step, str(step)))


CLAIMING = """
import sys
from pathlib import Path
from agent.store import Claimant, Store
store = Store(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(10):
    claim = store.claim(Claimant(), {"recipe": "reference"})
    print(claim.epoch, store.records()[-1].epoch >= claim.epoch, flush=True)
"""


def test_processes_that_claim_at_once_get_different_epochs(store: Store) -> None:
    claimants = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMING, str(store.root)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for one in claimants:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    for one in claimants:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    said = [one.communicate()[0] for one in claimants]
    won = [[int(line.split()[0]) for line in text.splitlines()] for text in said]
    assert sorted(epoch for mine in won for epoch in mine) == list(range(1, 41))
    assert all(mine == sorted(mine) for mine in won)
    assert all("False" not in text for text in said)


class LaggingListing(PosixFileSystem):
    """A network client whose directory listings are those of a moment ago, as attribute caching on NFS gives them."""

    def __init__(self) -> None:
        self._seen: dict[str, list[str]] = {}

    def names(self, path: str) -> list[str]:
        return self._seen.setdefault(path, super().names(path))


def test_a_claim_is_won_although_the_listing_lags_behind(store: Store) -> None:
    store.claim(Claimant(), {"recipe": "reference"})
    late = Store(store.root, fs=LaggingListing())
    assert late.current_epoch() == 1
    for _ in range(3):
        store.claim(Claimant(), {"recipe": "reference"})
    assert late.claim(Claimant(), {"recipe": "reference"}).epoch == 5


def test_the_claim_that_a_lagging_listing_hides_still_decides_the_fingerprint(store: Store) -> None:
    store.claim(Claimant(), {"recipe": "reference"})
    late = Store(store.root, fs=LaggingListing())
    assert late.current_epoch() == 1
    store.claim(Claimant(), {"recipe": "other"}, accept=["recipe"])
    with pytest.raises(FingerprintChanged, match="was 'other', is now 'reference'"):
        late.claim(Claimant(), {"recipe": "reference"})


class WithoutLinks(PosixFileSystem):
    """A file system that has no hard links."""

    def link(self, old: str, new: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), new)


class Doubly(WithoutLinks):
    """Another client's claim takes the name while ours is written, on a file system whose exclusive creation is not exclusive."""

    def sync(self, fd: int) -> None:
        super().sync(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        if path.endswith("epochs/000002.json"):
            other = {**json.loads(Path(path).read_text()), "token": "other"}
            Path(path).write_text(json.dumps(other))


def test_claims_and_run_file_without_hard_links(store: Store, tmp_path: Path) -> None:
    plain = Store(store.root, fs=WithoutLinks())
    claim = plain.claim(Claimant("host"), {"recipe": "reference"})
    assert (claim.epoch, plain.records()[0].token) == (1, claim.token)
    assert json.loads((store.root / "run.json").read_text())["fingerprint"] == {"recipe": "reference"}
    publish(plain, claim, tmp_path, 10)
    assert plain.claim(Claimant(), {"recipe": "reference"}).epoch == 2
    assert sorted(path.name for path in (store.root / "epochs").iterdir()) == ["000001.json", "000002.json"]


def test_without_hard_links_the_token_in_the_claim_decides(store: Store) -> None:
    store.claim(Claimant(), {})
    claim = Store(store.root, fs=Doubly()).claim(Claimant(), {})
    assert claim.epoch == 3


class WithoutLinkCounts(PosixFileSystem):
    """A file system that has hard links and shows a count of 1 whatever happens, as sshfs."""

    def stat(self, path: str) -> Stat:
        return super().stat(path)._replace(links=1)


def test_where_link_counts_are_not_shown_the_token_in_the_claim_decides(store: Store) -> None:
    plain = Store(store.root, fs=WithoutLinkCounts())
    assert [plain.claim(Claimant(), {}).epoch for _ in range(3)] == [1, 2, 3]
    assert len(list((store.root / "epochs").iterdir())) == 3


def test_a_number_that_was_claimed_and_swept_while_a_claimant_slept_is_not_claimed_again(store: Store) -> None:
    store.claim(Claimant(), {})
    others: list[int] = []

    class Sleeping(PosixFileSystem):
        def create(self, path: str, mode: int = 0o644) -> int:
            while len(others) < 5:
                claim = store.claim(Claimant(), {})
                store.sweep(claim)
                others.append(claim.epoch)
            return super().create(path, mode)

    late = Store(store.root, fs=Sleeping()).claim(Claimant(), {})
    assert (others, late.epoch) == ([2, 3, 4, 5, 6], 7)


class Interrupted(PosixFileSystem):
    """Once, just before a commit's data is read, something happens on the disk; a read of what has gone is a stale handle."""

    def __init__(self, name: str, happens: Callable[[], object]) -> None:
        self._name = name
        self._happens: Callable[[], object] | None = happens
        self._paths: dict[int, str] = {}

    def open(self, path: str) -> int:
        fd = super().open(path)
        self._paths[fd] = path
        return fd

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        path = self._paths.get(fd, "")
        if path.endswith(self._name):
            if self._happens is not None:
                happens, self._happens = self._happens, None
                happens()
            if not Path(path).exists():
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return super().read_into(fd, buffer, offset)


def test_a_restore_takes_the_newer_commit_when_a_prune_takes_its_own(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10)

    def go_on() -> None:
        publish(store, claim, tmp_path, 20, 30, 40)
        store.prune(claim, Retention())

    reader = Store(store.root, fs=Interrupted("000000010.e000001.tar", go_on), workers=0)
    (tmp_path / "back").mkdir()
    said: list[str] = []
    found = reader.restore(tmp_path / "back", report=said.append)
    assert found is not None and (found.commit.step, said) == (40, [])
    assert picture(tmp_path / "back") == picture(tmp_path / "source-40")


def test_a_commit_that_is_pruned_while_it_is_verified_is_not_bad(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10, 20)
    oldest = store.commits()[-1]

    def go_on() -> None:
        publish(store, claim, tmp_path, 30)
        store.prune(claim, Retention())

    with pytest.raises(CommitGone, match="pruned meanwhile"):
        Store(store.root, fs=Interrupted(oldest.name, go_on), workers=0).verify(oldest)
    with pytest.raises(CommitGone):
        store.verify(oldest)


def test_a_late_publish_of_a_superseded_attempt_does_not_lead_readers_back(store: Store, tmp_path: Path) -> None:
    """Stopped between its look at the claims and its rename, longer than a whole new attempt lives."""
    old = store.claim(Claimant(), {})
    publish(store, old, tmp_path, 10)

    class Stopped(PosixFileSystem):
        def rename(self, before: str, after: str) -> None:
            new = store.claim(Claimant(), {})
            publish(store, new, tmp_path, 20)
            super().rename(before, after)

    late = Store(store.root, fs=Stopped())
    late.publish(old, make_checkpoint(tmp_path / "late", 90), Metadata(90, "90"))
    assert [(one.epoch, one.step) for one in store.commits()] == [(2, 20), (1, 90), (1, 10)]
    (tmp_path / "back").mkdir()
    found = store.restore(tmp_path / "back")
    assert found is not None and found.commit.step == 20


def test_a_commit_with_a_bad_block_neither_counts_nor_goes_in_a_prune(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10, 20, 30, 40)

    class BadBlock(PosixFileSystem):
        def open(self, path: str) -> int:
            if path.endswith("000000030.e000001.tar"):
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return super().open(path)

    gone = Store(store.root, fs=BadBlock()).prune(claim, Retention())
    assert [one.step for one in gone] == [10]
    assert [one.step for one in store.commits()] == [40, 30, 20]


def test_a_commit_whose_attributes_are_hidden_is_listed_all_the_same(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10)

    class Hidden(PosixFileSystem):
        def get_attribute(self, path: str, name: str) -> bytes | None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    assert [one.verified for one in Store(store.root, fs=Hidden()).commits()] == [None]


class Quotas(PosixFileSystem):
    """The real disk with the attributes of CephFS on some directories; another one cannot be asked."""

    def __init__(self, attributes: dict[str, dict[str, bytes]], silent: str) -> None:
        self._attributes = attributes
        self._silent = silent

    def get_attribute(self, path: str, name: str) -> bytes | None:
        if path == self._silent:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return self._attributes.get(path, {}).get(name)


def test_every_quota_above_a_run_counts_and_a_silent_directory_is_passed_over(tmp_path: Path) -> None:
    run = tmp_path / "group" / "user" / "run"
    run.mkdir(parents=True)
    fs = Quotas(
        {
            str(run.parent): {"ceph.quota.max_bytes": b"1000", "ceph.dir.rbytes": b"100"},
            str(run.parent.parent): {"ceph.quota.max_files": b"50", "ceph.dir.rentries": b"48"},
        },
        silent=str(run),
    )
    assert rooms(fs, str(run), Budget(), None) == [
        Room(f"the quota of {run.parent}", 900, None),
        Room(f"the quota of {run.parent.parent}", None, 2),
    ]


def test_a_restore_with_a_pace_of_its_own_still_falls_back(store: Store, tmp_path: Path) -> None:
    from agent.store.copying import Pace

    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10, 20)
    newest = store.commits()[0].path

    class Ill(PosixFileSystem):
        def __init__(self) -> None:
            self._ill: set[int] = set()

        def open(self, path: str) -> int:
            fd = super().open(path)
            self._ill.discard(fd)
            self._ill |= {fd} if path == str(newest) else set()
            return fd

        def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
            if fd in self._ill and 4000 < len(buffer) < 6000:  # a file's data
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read_into(fd, buffer, offset)

    (tmp_path / "back").mkdir()
    found = Store(store.root, fs=Ill()).restore(tmp_path / "back", report=lambda _text: None, pace=Pace())
    assert found is not None and found.commit.step == 10


def test_a_damaged_giant_is_refused_without_reading_it_into_memory(tmp_path: Path) -> None:
    """A commit that lost its end: looking for its manifest must not cost the memory of the machine."""
    import tracemalloc

    from agent.store.manifest import read_manifest

    path = tmp_path / "000000010.e000001.tar"
    with path.open("wb") as file:
        file.truncate(2 << 30)
    fs = PosixFileSystem()
    fd = fs.open(str(path))
    tracemalloc.start()
    try:
        with pytest.raises(BadArchive, match="no manifest"):
            read_manifest(fs, path.name, fd)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
        fs.close(fd)


def test_an_error_of_reading_and_then_a_bad_read_do_not_make_a_commit_bad(store: Store, tmp_path: Path) -> None:
    """What history 20601 found: the second look was spent on an I/O error, and the first wrong bit set a good commit aside."""
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10)

    class Unlucky(PosixFileSystem):
        opened = 0

        def open(self, path: str) -> int:
            self.opened += path.endswith("000000010.e000001.tar")
            if self.opened == 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return super().open(path)

        def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
            count = super().read_into(fd, buffer, offset)
            if self.opened == 2 and 4000 < len(buffer) < 6000:  # a file's data
                buffer[100] ^= 1
            return count

    said: list[str] = []
    (tmp_path / "back").mkdir()
    store.fs = Unlucky()
    found = store.restore(tmp_path / "back", report=said.append)
    assert found is not None and (found.commit.step, said) == (10, [])


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES])
def test_only_an_io_error_may_be_of_one_commit_alone(store: Store, tmp_path: Path, number: int) -> None:
    """Anything else is the mount's: another machine may read the newest one, and the steps since the older one are not lost."""
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10, 20)

    class Ill(PosixFileSystem):
        def open(self, path: str) -> int:
            if path.endswith("000000020.e000001.tar"):
                raise OSError(number, os.strerror(number), path)
            return super().open(path)

    (tmp_path / "back").mkdir()
    with pytest.raises(StoreUnavailable, match=r"000000020\.e000001\.tar"):
        Store(store.root, fs=Ill()).restore(tmp_path / "back", report=lambda _text: None)
    assert list((tmp_path / "back").iterdir()) == []


def test_a_commit_that_vanishes_before_it_is_looked_at_makes_the_list_anew(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10)
    happened: list[int] = []

    class Late(PosixFileSystem):
        def stat(self, path: str) -> Stat:
            if path.endswith(".tar") and not happened:
                happened.append(1)
                publish(store, claim, tmp_path, 20, 30)
                store.prune(claim, Retention())
            return super().stat(path)

    assert [one.step for one in Store(store.root, fs=Late()).commits()] == [30, 20]


class Repeating(PosixFileSystem):
    """A network file system that answers a rename, once it is done, with what its repetition found."""

    def __init__(self) -> None:
        self.synced: list[str] = []

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self.synced.append(path)


def names_in(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "checkpoints").iterdir())


def test_a_withdrawal_that_is_answered_twice_is_durable_and_named(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10)
    fs = Repeating()
    assert Store(store.root, fs=fs).withdraw(claim, 10) == "000000010.e000001.tar.bad-e000001"
    assert fs.synced == [str(store.root / "checkpoints")]
    assert store.withdraw(claim, 20) == ""


def test_a_bad_commit_whose_rename_is_answered_twice_is_said_to_be_set_aside(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10, 20)
    newest = store.commits()[0].path
    newest.write_bytes(newest.read_bytes()[:-512])

    class Answering(Repeating):
        def rename(self, old: str, new: str) -> None:
            PosixFileSystem.rename(self, old, new) if ".bad-" not in new else super().rename(old, new)

    store.fs = Answering()
    said: list[str] = []
    (tmp_path / "back").mkdir()
    store.restore(tmp_path / "back", report=said.append)
    assert len(said) == 1 and "set aside as 000000020.e000001.tar.bad-e000001" in said[0]


def test_a_prune_removes_what_it_renamed_whatever_it_is_told(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10, 20, 30, 40)
    gone = Store(store.root, fs=Repeating()).prune(None, Retention())
    assert [one.step for one in gone] == [10, 20]
    assert names_in(store) == ["000000030.e000001.tar", "000000040.e000001.tar"]


def test_what_an_interrupted_prune_left_goes_with_the_next_one(store: Store, tmp_path: Path) -> None:
    """Of a run that is complete there is no next attempt that would sweep it."""
    claim = store.claim(Claimant(), {})
    publish(store, claim, tmp_path, 10, 20, 30, 40)

    class Interrupted(PosixFileSystem):
        def unlink(self, path: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(store.root, fs=Interrupted()).prune(None, Retention())
    before = names_in(store)
    assert len(before) == 4
    store.prune(None, Retention(), dry_run=True)
    assert names_in(store) == before
    store.prune(None, Retention())
    assert names_in(store) == ["000000030.e000001.tar", "000000040.e000001.tar"]
