"""A checkpoint that changes under its snapshot gets one more; what a disk did is not the checkpoint's fault."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errand import Outcome, Report
from agent.exit_codes import PERMANENT, TEMPORARY
from agent.loop import Loop
from agent.publishing import Publisher
from agent.recipes.base import Finished
from agent.store.errors import BadCheckpoint, CheckpointChanged, SnapshotUnreadable, StoreError
from agent.verdict import unpublished
from tests.agent.plain_recipes import Plain
from tests.agent.recipes.starts import saved, start_of
from tests.agent.support import DEADLINE_S


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def published(
    loop: Loop, tmp_path: Path, work: Callable[[Finished, Path, Report], dict[str, Any]]
) -> tuple[Publisher, list[Outcome]]:
    """A publisher that has done what it can for one finished checkpoint, and its troubles."""
    start, troubles = start_of(tmp_path, "plain"), list[Outcome]()
    publisher = Publisher(loop, tmp_path / "snapshots", work, None, lambda commit: None, troubles.append, 60.0)
    saved(tmp_path / "checkpoints", "10", ("weights",))
    publisher.watch(Plain(), start, 0)
    publisher.look(thoroughly=True)
    assert loop.run_until(lambda: publisher.idle, time.monotonic() + DEADLINE_S)
    return publisher, troubles


def test_a_checkpoint_that_changed_is_published_from_a_second_snapshot(loop: Loop, tmp_path: Path) -> None:
    def work(finished: Finished, snapshot: Path, report: Report) -> dict[str, Any]:
        linked = (snapshot / "10" / "weights").stat().st_nlink
        assert (linked, len(finished.seen or "")) == (2 if snapshot.name.endswith("-1") else 1, 64)
        if snapshot.name.endswith("-1"):
            raise CheckpointChanged("it changed while it was published")
        return {}

    publisher, troubles = published(loop, tmp_path, work)
    assert (publisher.committed_step, troubles) == (10, [])


@pytest.mark.parametrize(
    ("kind", "snapshots", "code"),
    [
        (CheckpointChanged, 2, TEMPORARY),
        (SnapshotUnreadable, 1, TEMPORARY),
        (BadCheckpoint, 1, PERMANENT),
    ],
)
def test_only_a_checkpoint_that_can_never_be_archived_ends_the_run(
    loop: Loop, tmp_path: Path, kind: type[StoreError], snapshots: int, code: int
) -> None:
    tried = tmp_path / "tried"

    def work(finished: Finished, snapshot: Path, report: Report) -> dict[str, Any]:
        with tried.open("a") as file:
            file.write("x")
        raise kind("no")

    publisher, troubles = published(loop, tmp_path, work)
    assert [one.error for one in troubles] == [kind.__name__]
    assert publisher.unpublished and tried.read_text() == "x" * snapshots
    assert unpublished(10, troubles[0]).exit_code == code
