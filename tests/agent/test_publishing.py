"""A checkpoint that changes under its snapshot gets one more; what a disk did is not the checkpoint's fault."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errand import Outcome, Report
from agent.exit_codes import PERMANENT, TEMPORARY
from agent.loop import Loop
from agent.publishing import Publisher
from agent.recipes.base import Finished, Start
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


def test_what_nobody_thought_of_is_tried_again(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without room for one more thread must not cost a finished checkpoint."""
    monkeypatch.setattr("agent.publishing._FIRST_RETRY_S", 0.01)
    tried = tmp_path / "tried"

    def work(finished: Finished, snapshot: Path, report: Report) -> dict[str, Any]:
        if not tried.exists():
            tried.touch()
            raise RuntimeError("can't start new thread")
        return {}

    publisher, troubles = published(loop, tmp_path, work)
    assert ([one.error for one in troubles], publisher.committed_step) == (["RuntimeError"], 10)


@pytest.mark.parametrize(
    ("every", "commits"),
    [(10, [40, 30, 20, 10]), (20, [40, 20]), (30, [40, 30]), (15, [40, 30, 20]), (25, [40, 30]), (None, [40])],
)
def test_the_newest_goes_first_and_what_retention_wants_follows(
    loop: Loop, tmp_path: Path, every: int | None, commits: list[int]
) -> None:
    start, troubles, done, late = start_of(tmp_path, "plain"), list[Outcome](), list[int](), list[list[int]]()
    away = tmp_path / "away"

    def work(finished: Finished, snapshot: Path, report: Report) -> dict[str, Any]:
        if away.exists():
            raise OSError(5, "Input/output error")
        return {"step": finished.step}

    def committed(commit: dict[str, Any]) -> None:
        done.append(commit["step"])
        late.append(publisher.late)

    def wait(for_it: Callable[[], bool]) -> None:
        assert loop.run_until(for_it, time.monotonic() + DEADLINE_S)

    # given: staging that is away while checkpoints are finished, and is still away when the newest is tried
    publisher = Publisher(loop, tmp_path / "snapshots", work, every, committed, troubles.append, 60.0)
    away.touch()
    publisher.watch(Plain(), start, 0)
    for step in (10, 20, 30, 40):
        saved(tmp_path / "checkpoints", str(step), ("weights",))
        publisher.look(thoroughly=True)
        wait(lambda: publisher.linked)
    assert publisher.finished_step == 40
    wait(lambda: publisher.pausing)
    publisher.hurry()
    wait(lambda: publisher.pausing and len(troubles) == 2)
    # when it is back
    away.unlink()
    publisher.hurry()
    wait(lambda: publisher.idle)
    # then an attempt that has little time left has the newest, and no snapshot is left
    assert done == commits
    assert late == [sorted(commits[place + 1 :]) for place in range(len(commits))]
    assert publisher.committed_step == 40 and list((tmp_path / "snapshots").iterdir()) == []


def test_several_that_finish_between_two_looks_lose_none_that_retention_wants(loop: Loop, tmp_path: Path) -> None:
    """The multiple of the step that was resumed has its commit; a snapshot that fails leaves the next one to stand for its multiple."""
    for step in (30, 35, 51, 55, 60, 71, 75):
        saved(tmp_path / "checkpoints", str(step), ("weights",))

    secured: list[int] = []

    class Vanishing(Plain):
        def finished(self, start: Start) -> list[Finished]:
            secured.append(start.secured_step)
            return [replace(one, paths=("gone",)) if one.step == 51 else one for one in super().finished(start)]

    done: list[int] = []
    publisher = Publisher(
        loop,
        tmp_path / "snapshots",
        lambda finished, snapshot, report: {"step": finished.step},
        25,
        lambda commit: done.append(commit["step"]),
        lambda outcome: None,
        60.0,
    )
    publisher.watch(Vanishing(), start_of(tmp_path, "plain"), 30)
    publisher.look(thoroughly=True)
    assert loop.run_until(lambda: publisher.idle and publisher.committed_step == 75, time.monotonic() + DEADLINE_S)
    assert sorted(done) == [55, 75]
    assert sorted(set(secured)) == [30, 55, 75] and secured == sorted(secured)  # what is before, the recipe may remove


def test_a_look_that_fails_after_a_good_snapshot_ends_nothing(loop: Loop, tmp_path: Path) -> None:
    class Failing(Plain):
        def finished(self, start: Start) -> list[Finished]:
            if publisher.finished_step:
                raise OSError(5, "Input/output error")
            return super().finished(start)

    publisher = Publisher(
        loop, tmp_path / "snapshots", lambda *about: {}, None, lambda commit: None, lambda outcome: None, 60.0
    )
    saved(tmp_path / "checkpoints", "10", ("weights",))
    publisher.watch(Failing(), start_of(tmp_path, "plain"), 0)
    publisher.look(thoroughly=True)
    assert loop.run_until(lambda: publisher.committed_step == 10, time.monotonic() + DEADLINE_S)
    with pytest.raises(OSError):
        publisher.look(thoroughly=True)
