"""Bounds of a run: which one is believed, and what each says is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.store import Budget, Claimant, Metadata, NoRoom, Store
from agent.store.budget import Room, quotas_room, require_room, rooms, usage
from agent.store.fs import PosixFileSystem
from tests.store.trees import make_checkpoint

QUOTAS = """\
Path                     Disk_Used(GB) Disk_Limit(GB) Files_Used File_Limit
/home/bbadger                  12.5          40           3000     0
/staging/b/bbadger             60            100          990      1000
/staging/groups/robots         1,500         2,000        10       5,000
"""


class CephFileSystem(PosixFileSystem):
    """The real disk with a quota that CephFS would show on one directory."""

    def __init__(self, directory: Path, **attributes: bytes) -> None:
        self._directory = str(directory)
        self._attributes = {name.replace("__", "."): value for name, value in attributes.items()}

    def get_attribute(self, path: str, name: str) -> bytes | None:
        return self._attributes.get(name) if path == self._directory else None


def test_the_quota_of_the_nearest_directory_with_one_is_believed_first(tmp_path: Path) -> None:
    run = tmp_path / "segue" / "run"
    run.mkdir(parents=True)
    fs = CephFileSystem(
        tmp_path,
        ceph__quota__max_bytes=b"1000",
        ceph__quota__max_files=b"50",
        ceph__dir__rbytes=b"400",
        ceph__dir__rentries=b"7",
    )
    found = rooms(fs, str(run), Budget(), QUOTAS)
    assert found == [Room(f"the quota of {tmp_path}", 600, 43)]


def test_a_staging_that_is_a_link_has_the_bounds_of_where_it_leads(tmp_path: Path) -> None:
    """A link has no quota; what is above it says nothing of what is above the data."""
    home = tmp_path / "volume" / "b" / "bbadger"
    run = tmp_path / "bbadger" / "segue" / "run"
    (home / "segue" / "run").mkdir(parents=True)
    (home / "segue" / "run" / "weights").write_bytes(bytes(300))
    (tmp_path / "bbadger").symlink_to(home)
    ceph = CephFileSystem(home, ceph__quota__max_bytes=b"1000", ceph__dir__rbytes=b"400")
    assert rooms(ceph, str(run), Budget()) == [Room(f"the quota of {home}", 600, None)]
    for named in (home, tmp_path / "bbadger"):
        told = rooms(PosixFileSystem(), str(run), Budget(), f"{named} 60 100 990 1000")
        assert told == [Room(f"the quota of {named} (get_quotas)", 40_000_000_000, 10)]
    (tmp_path / "moved").symlink_to(run)  # the run's directory itself
    assert rooms(ceph, str(tmp_path / "moved"), Budget(bytes=1000))[1].bytes == 700


def test_get_quotas_is_believed_where_ceph_shows_nothing() -> None:
    assert quotas_room(QUOTAS, "/staging/b/bbadger/segue/run") == Room(
        "the quota of /staging/b/bbadger (get_quotas)", 40_000_000_000, 10
    )
    grouped = quotas_room(QUOTAS, "/staging/groups/robots")
    assert grouped is not None and (grouped.bytes, grouped.items) == (500_000_000_000, 4990)
    home = quotas_room(QUOTAS, "/home/bbadger/runs")
    assert home is not None and home.items is None  # a limit of 0 is none
    assert quotas_room(QUOTAS, "/staging/b/bbadgerette") is None
    assert quotas_room("command not found\n", "/staging/b/bbadger") is None


def test_without_a_quota_the_budget_and_the_free_space_count(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    budget, space = rooms(PosixFileSystem(), str(tmp_path), Budget(bytes=100, items=10))
    assert (budget.source, budget.bytes, budget.items) == ("the run's budget", 95, 8)
    assert space.source == "the file system" and space.bytes is not None and space.bytes > 0


def test_what_lacks_is_said_exactly() -> None:
    bounds = [Room("the quota of /staging/b/bbadger", 1000, 0), Room("the run's budget", None, None)]
    with pytest.raises(
        NoRoom, match=r"needs 1500 bytes and 1 item; the quota of /staging/b/bbadger lacks 500 bytes and 1 items"
    ) as caught:
        require_room(bounds, "/staging/b/bbadger/segue/run", 1500)
    assert (caught.value.needed, caught.value.missing_bytes, caught.value.missing_items) == (1500, 500, 1)
    require_room(bounds[1:], "run", 1500)


@pytest.mark.parametrize(
    ("budget", "needed", "keys"),
    [
        (Budget(bytes=20_000, items=9), 87_600, "budget.gb to 0.0000976 or more in run.toml"),
        (Budget(bytes=100_000_000_000, items=9), 150_000_000_000, "budget.gb to 151 or more in run.toml"),
        (Budget(items=2), 10, "budget.items to 3 or more in run.toml"),
        (
            Budget(bytes=10_000, items=2),
            20_000,
            "budget.gb to 0.00003 or more and budget.items to 3 or more in run.toml",
        ),
    ],
)
@pytest.mark.parametrize("prunable", [False, True])
def test_a_runs_own_budget_is_named_by_its_keys_and_no_prune_that_would_be_refused(
    tmp_path: Path, budget: Budget, needed: int, keys: str, prunable: bool
) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000))
    bounds = rooms(PosixFileSystem(), str(tmp_path), budget)
    with pytest.raises(NoRoom) as caught:
        require_room(bounds, str(tmp_path), needed, prunable=prunable)
    assert keys in str(caught.value) and "quota" not in str(caught.value)
    assert ("segue prune" in str(caught.value)) is prunable
    assert caught.value.own_budget
    quota = [Room("the quota of /staging/b/bbadger", 1000, None)]
    with pytest.raises(NoRoom, match="ask for a larger quota") as foreign:
        require_room(quota, str(tmp_path), 1500, prunable=prunable)
    assert ("segue prune" in str(foreign.value)) is prunable and not foreign.value.own_budget


def test_usage_counts_every_item_and_byte_below(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"123")
    (tmp_path / "a" / "link").symlink_to("b")
    found = usage(PosixFileSystem(), str(tmp_path))
    assert found.items == 5 and found.bytes >= 3
    assert usage(PosixFileSystem(), str(tmp_path / "none")).items == 0


def test_a_publish_keeps_within_each_bound_and_not_only_the_first(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    wide = CephFileSystem(tmp_path / "staging", ceph__quota__max_bytes=b"1000000", ceph__dir__rbytes=b"0")
    claim = Store(tmp_path / "staging" / "segue" / "run").claim(Claimant(), {})
    source = make_checkpoint(tmp_path / "source", 10)
    tight = Store(tmp_path / "staging" / "segue" / "run", fs=wide, budget=Budget(bytes=10_000))
    with pytest.raises(NoRoom, match="the run's budget lacks"):
        tight.publish(claim, source, Metadata(10, "10"))
    full = CephFileSystem(tmp_path / "staging", ceph__quota__max_bytes=b"1000", ceph__dir__rbytes=b"0")
    with pytest.raises(NoRoom, match=r"the quota of .*staging lacks"):
        Store(tight.root, fs=full, budget=Budget(bytes=1_000_000)).publish(claim, source, Metadata(10, "10"))
    assert Store(tight.root, fs=wide, budget=Budget(bytes=1_000_000)).publish(claim, source, Metadata(10, "10"))
