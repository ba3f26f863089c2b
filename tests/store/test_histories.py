"""The proof by histories, in the size that a test suite can bear, and the check on the checker."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import pytest

from agent.store import Claimant, Metadata, Retention, Store
from tests.store.history import ROOT, play
from tests.store.mutants import (
    MUTANTS,
    caught_by,
    prune_trusts_names_that_are_not_durable,
    swept_before_its_name_is_durably_gone,
)
from tests.store.simulated_disk import Client, Dead, Disk

SEEDS = 3000


@pytest.mark.slow
@pytest.mark.parametrize("share", range(6))
def test_no_history_of_crashes_violates_an_invariant(share: int) -> None:
    found = {seed: wrong for seed in range(share, SEEDS, 6) if (wrong := play(seed).violations)}
    assert found == {}, "replay one with: python -m tests.store.torture --seed NUMBER"


def test_histories_crash_in_every_phase_and_place() -> None:
    points = set().union(*(play(seed).points for seed in range(300)))
    assert {phase for phase, *_ in points} >= {"claim", "sweep", "restore", "publish", "prune"}
    assert {place for *_, place in points} == {"before", "after", "half"}


def test_a_seed_replays_exactly() -> None:
    first, second = play(17), play(17)
    assert (first.calls, first.points, first.acknowledged) == (second.calls, second.points, second.acknowledged)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_broken_store_is_noticed(mutant: Callable[[], AbstractContextManager[None]]) -> None:
    assert caught_by(mutant, range(SEEDS)) is not None


def dies_at(client: Client, at: int, call: str = "") -> None:
    """The client's process ends right after its call number ``at`` (of that name, if given)."""
    seen = 0

    def after(name: str, _path: str) -> None:
        nonlocal seen
        seen += not call or name == call
        if seen == at:
            raise Dead

    client.after = after


def left_after_a_prune(seed: int, at: int) -> list[int]:
    """Steps that survive when the power fails after call ``at`` of a prune that counts a commit whose name is not durable yet."""
    disk = Disk(random.Random(seed))
    disk.place("/staging", None)
    disk.place("/scratch", None)
    first = Client(disk, "first")
    store = Store(Path(ROOT), fs=first, workers=0)
    claim = store.claim(Claimant(), {})
    for step in (10, 20, 30):
        disk.place(f"/scratch/{step}", None)
        disk.place(f"/scratch/{step}/weights", b"x")
    for step in (10, 20):
        store.publish(claim, Path(f"/scratch/{step}"), Metadata(step, str(step)))
    dies_at(first, 1, "rename")
    with suppress(Dead):
        store.publish(claim, Path("/scratch/30"), Metadata(30, "30"))
    second = Client(disk, "second")
    dies_at(second, at)
    with suppress(Dead):
        Store(Path(ROOT), fs=second, workers=0).prune(None, Retention())
    disk.lose(None)
    return [one.step for one in Store(Path(ROOT), fs=Client(disk, "looker")).commits()]


@pytest.mark.parametrize("mutant", [nullcontext, prune_trusts_names_that_are_not_durable])
def test_a_prune_makes_durable_what_it_counts_before_anything_goes(
    mutant: Callable[[], AbstractContextManager[None]],
) -> None:
    with mutant():
        left = [left_after_a_prune(seed, at) for seed in range(8) for at in range(1, 30)]
    lost = [steps for steps in left if len(steps) < 2]
    assert bool(lost) == (mutant is prune_trusts_names_that_are_not_durable)
    assert all(30 in steps or 20 in steps for steps in left)


def damaged_after_a_sweep(seed: int) -> list[str]:
    """Commits that are not whole when the power fails after a sweep of what another process un-referenced, which died before its sync."""
    disk = Disk(random.Random(seed))
    disk.place("/staging", None)
    disk.place("/scratch", None)
    first = Client(disk, "first")
    store = Store(Path(ROOT), fs=first, workers=0)
    claim = store.claim(Claimant(), {})
    for step in (10, 20, 30):
        disk.place(f"/scratch/{step}", None)
        disk.place(f"/scratch/{step}/weights", b"x")
        store.publish(claim, Path(f"/scratch/{step}"), Metadata(step, str(step)))
    dies_at(first, 1, "rename")
    with suppress(Dead):
        store.prune(claim, Retention())
    second = Store(Path(ROOT), fs=Client(disk, "second"), workers=0)
    second.sweep(second.claim(Claimant(), {}))
    disk.lose(None)
    return [one.name for one in second.commits() if second.verify(one)]


def test_a_sweep_makes_durable_what_a_prune_un_referenced_before_it_goes() -> None:
    assert [damaged_after_a_sweep(seed) for seed in range(30)] == [[]] * 30
    assert any(map(damaged_with_a_hasty_sweep, range(30)))


def damaged_with_a_hasty_sweep(seed: int) -> list[str]:
    with swept_before_its_name_is_durably_gone():
        return damaged_after_a_sweep(seed)
