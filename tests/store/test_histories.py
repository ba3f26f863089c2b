"""The proof by histories, in the size that a test suite can bear, and the check on the checker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.store.history import play
from tests.store.mutants import MUTANTS, caught_by

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
