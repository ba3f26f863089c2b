"""Which commits stay: a function of what is there, whatever names its trainer's steps have."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.store import Retention
from agent.store.manifest import Manifest
from agent.store.multiples import first_at_each
from agent.store.names import Commit, commit_name
from agent.store.retention import kept

Key = tuple[int, int]
"""(epoch, step): readers' order."""


def good(keys: list[Key]) -> list[tuple[Commit, Manifest]]:
    """Commits in readers' order, each with a manifest that has no metrics."""
    found = []
    for epoch, step in sorted(keys, reverse=True):
        name = commit_name(step, epoch)
        manifest = Manifest("run", step, str(step), epoch, None, "openpi", 0.0, ())
        found.append((Commit(Path(name), step, epoch, 1, 0.0), manifest))
    return found


def staying(keys: list[Key], every: int) -> list[Key]:
    """What a prune leaves of them."""
    found = good(keys)
    stay = kept(found, Retention(2, every))
    return [(commit.epoch, commit.step) for commit, _ in found if commit.name in stay]


@pytest.mark.parametrize(
    ("published", "every", "stay"),
    [
        # OpenPI's label k has k + 1 updates; its last one is that of the last step.
        ([5001, 10001, 15001, 20001, 25000], 5000, [5001, 10001, 15001, 20001, 25000]),
        # An interval that the agent chose, no multiple of which is one of 5000.
        (list(range(1667, 25001, 1667)), 5000, [5001, 10002, 15003, 20004, 21671, 23338]),
        ([10, 20, 30, 40, 50, 60, 70], 30, [30, 60, 70]),
        ([10, 20, 30], 100, [20, 30]),
    ],
)
def test_one_commit_stays_for_each_multiple_whatever_the_steps_are(
    published: list[int], every: int, stay: list[int]
) -> None:
    there: list[Key] = []
    for step in published:
        there = staying([*there, (1, step)], every)
    assert sorted(step for _, step in there) == stay


def test_a_step_made_anew_by_a_later_attempt_stands_for_its_multiple() -> None:
    assert staying([(1, 30), (1, 40), (2, 30), (2, 50), (2, 60), (2, 70)], 30) == [(2, 70), (2, 60), (2, 30)]


KEYS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 60)), unique=True, max_size=12)


@given(KEYS, st.integers(1, 20))
def test_a_prune_keeps_what_it_kept_by_exact_steps_and_one_a_multiple_at_most(keys: list[Key], every: int) -> None:
    stay = staying(keys, every)
    order = sorted(keys, reverse=True)
    assert set(order[:2]) <= set(stay)
    for step in {step for _, step in keys if step % every == 0}:
        assert max(key for key in keys if key[1] == step) in stay
    assert {step // every for _, step in keys} - {0} <= {step // every for _, step in stay}
    assert len(stay) <= 2 + len({step // every for _, step in keys})
    assert staying(stay, every) == stay


@given(st.sets(st.integers(1, 60)), st.integers(1, 20), st.integers(0, 30))
def test_what_waits_to_be_published_is_chosen_by_the_same_rule(steps: set[int], every: int, resumed: int) -> None:
    beyond = sorted(step for step in steps if step > resumed)
    wanted = first_at_each(beyond, every, resumed)
    there = staying([(2, step) for step in beyond] + ([(1, resumed)] if resumed else []), every)
    newest = set(beyond[-2:])
    assert set(wanted) | newest | {resumed} >= {step for _, step in there}
    assert {step for _, step in there} >= set(wanted)
    assert first_at_each(beyond, None, resumed) == []
