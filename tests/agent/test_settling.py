"""A trainer that writes its checkpoints under their final names is found out, and nothing torn stays a commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from agent.errand import Outcome, Report
from agent.loop import Loop
from agent.publishing import Publisher
from agent.recipes.base import Finished, Start
from tests.agent.plain_recipes import ByName
from tests.agent.recipes.starts import saved, start_of
from tests.agent.support import DEADLINE_S, Run, wait_for


class Beside(ByName):
    """A log beside the checkpoints travels with each."""

    def finished(self, start: Start) -> list[Finished]:
        return [Finished(one.step, one.label, one.root, (*one.paths, "log")) for one in super().finished(start)]


class Watch:
    """A publisher of recipe by-name; ``published`` has the names of the files in each commit, ``withdrawn`` is a file."""

    def __init__(self, loop: Loop, directory: Path) -> None:
        self.loop = loop
        self.root = directory / "checkpoints"
        self.root.mkdir()
        (self.root / "log").write_text("1")
        self.published: list[tuple[int, list[str]]] = []
        self.withdrawn = directory / "withdrawn"
        self.start = start_of(directory, "by-name")

        def work(finished: Finished, snapshot: Path, report: Report) -> dict[str, Any]:
            top = snapshot / finished.label
            return {
                "step": finished.step,
                "files": sorted(path.name for path in top.iterdir()) if top.is_dir() else [top.name],
            }

        def withdraw(step: int) -> dict[str, Any]:
            self.withdrawn.write_text(str(step))
            return {"aside": f"{step}.bad"}

        self.publisher = Publisher(
            loop,
            directory / "snapshots",
            work,
            None,
            lambda commit: self.published.append((commit["step"], commit["files"])),
            lambda outcome: pytest.fail(outcome.message),
            60.0,
            withdraw,
        )
        self.publisher.watch(Beside(), self.start, 0)

    def until(self, done: Callable[[], object]) -> None:
        timer = self.loop.every(0.02, self.publisher.look)
        assert self.loop.run_until(lambda: bool(done()), time.monotonic() + DEADLINE_S)
        timer.cancel()

    def first_seen(self) -> None:
        """The first look, and the links that it makes; a second look has not been."""
        self.publisher.look(thoroughly=True)
        assert self.loop.run_until(lambda: self.publisher._snapshotting is None, time.monotonic() + DEADLINE_S)
        assert (self.publisher.finished_step, self.publisher.idle) == (0, False)


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    monkeypatch.setattr("agent.settling._DOUBT_S", 0.2)
    loop = Loop()
    yield Watch(loop, tmp_path)
    loop.close()


def test_what_is_written_between_two_looks_is_never_published(watch: Watch) -> None:
    saved(watch.root, "10", ("config.json",))
    watch.first_seen()
    saved(watch.root, "10", ("weights",))
    watch.until(lambda: watch.publisher.idle)
    assert watch.published == [] and watch.publisher.finished_step == 0
    assert watch.publisher.in_place == f"weights was written after {watch.root}/10 had its name"
    saved(watch.root, "20", ("weights",))  # nothing of this trainer can be relied on
    watch.publisher.last_look(whole=True)
    assert watch.publisher.idle and not watch.withdrawn.exists()


def test_a_commit_of_what_is_written_later_is_withdrawn(watch: Watch) -> None:
    """A slow writer pauses for longer than between two looks."""
    saved(watch.root, "10", ("weights",))
    watch.until(lambda: watch.publisher.committed_step == 10 and watch.publisher.idle)
    saved(watch.root, "20", ("weights",))
    watch.until(lambda: watch.publisher.committed_step == 20 and watch.publisher.idle)
    with (watch.root / "20" / "weights").open("a") as file:
        file.write("more")
    watch.until(lambda: watch.publisher.in_place and watch.publisher.idle)
    assert watch.withdrawn.read_text() == "20" and watch.publisher.torn == {20: "20.bad"}
    assert watch.publisher.committed_step == 10


@pytest.mark.parametrize("when", ["before it fails", "after it failed"])
def test_what_a_failed_publish_may_have_committed_is_withdrawn_when_it_is_torn(watch: Watch, when: str) -> None:
    """Its answer was lost, or the sync after its rename failed: readers may find it."""
    troubles: list[Outcome] = []

    def lost(finished: Finished, snapshot: Path, report: Report) -> dict[str, Any]:
        if when == "before it fails":
            saved(watch.root, "10", ("more",))
        raise OSError(5, "Input/output error")

    vars(watch.publisher).update(_publish=lost, _on_trouble=troubles.append)
    saved(watch.root, "10", ("weights",))
    if when == "after it failed":
        watch.until(lambda: troubles)
        saved(watch.root, "10", ("more",))
    watch.until(lambda: watch.publisher.in_place and watch.publisher.idle)
    assert watch.withdrawn.read_text() == "10" and watch.publisher.torn == {10: "10.bad"}


def test_one_that_is_renamed_may_be_deleted_replaced_and_have_a_growing_log_beside_it(watch: Watch) -> None:
    saved(watch.root, "10", ("weights", "more/weights"))
    watch.first_seen()
    (watch.root / "10" / "weights").unlink()  # it is being deleted
    watch.publisher.look(thoroughly=True)
    rmtree(watch.root / "10")
    with (watch.root / "log").open("a") as file:
        file.write("2")
    watch.until(lambda: watch.publisher.committed_step == 10 and watch.publisher.idle)
    saved(watch.root, "20.tmp", ("others",))
    (watch.root / "20.tmp").rename(watch.root / "20")
    watch.until(lambda: watch.publisher.committed_step == 20 and watch.publisher.idle)
    (watch.root / "20").rename(watch.root / "old")
    saved(watch.root, "20.tmp", ("another",))
    (watch.root / "20.tmp").rename(watch.root / "20")
    watch.publisher.last_look(whole=True)
    assert watch.published == [(10, ["more", "weights"]), (20, ["others"])]
    assert not watch.publisher.in_place


def test_the_last_one_of_a_trainer_that_ended_is_not_waited_for(watch: Watch) -> None:
    saved(watch.root, "10", ("weights",))
    watch.publisher.last_look(whole=True)
    assert watch.loop.run_until(lambda: watch.publisher.linked, time.monotonic() + DEADLINE_S)
    assert watch.publisher.finished_step == 10


@pytest.mark.parametrize(("renamed", "finished"), [(True, 10), (False, 0)])
def test_of_a_trainer_that_was_killed_only_what_was_renamed_counts(watch: Watch, renamed: bool, finished: int) -> None:
    saved(watch.root, "10.tmp" if renamed else "10", ("weights",))
    time.sleep(0.02)  # the file system's clock goes on
    with (watch.root / ("10.tmp" if renamed else "10") / "weights").open("a") as file:
        file.write("more")
    if renamed:
        (watch.root / "10.tmp").rename(watch.root / "10")
    watch.publisher.last_look(whole=False)
    assert watch.loop.run_until(lambda: watch.publisher.linked, time.monotonic() + DEADLINE_S)
    assert watch.publisher.finished_step == finished and not watch.publisher.in_place


def test_a_run_whose_trainer_writes_in_place_ends_and_says_how_to_mend_it(tmp_path: Path) -> None:
    run = Run(tmp_path, recipe="by-name", save_interval=10, args=("step_s=0.02", "in_place=1", "save_s=1"))
    with run.attempt() as attempt:
        assert attempt.end() == 78
    reason = attempt.handover()["reason"]
    assert "the trainer writes its checkpoints in place" in reason and 'done = "marker"' in reason
    assert [name for name in run.commits() if name.endswith(".tar")] == []


def test_a_torn_commit_is_set_aside_and_the_one_before_it_stands(tmp_path: Path) -> None:
    # a second between the two saves, so that the first is published before the second is newer
    run = Run(tmp_path, recipe="by-name", save_interval=10, args=("step_s=0.1", "wait_at=25"))
    with run.attempt() as attempt:
        wait_for(lambda: "published step 10" in attempt.log(), "the first commit")
        wait_for(lambda: "published step 20" in attempt.log(), "the second commit")
        (attempt.scratch / "checkpoints" / "20" / "more").write_text("x")
        assert attempt.end() == 78
    told = attempt.handover()
    assert run.commits()[-2:] == ["000000010.e000001.tar", "000000020.e000001.tar.bad-e000001"]
    assert (told["step"], told["commit"], [one["step"] for one in told["commits"]]) == (
        10,
        "000000010.e000001.tar",
        [10],
    )
    assert "set aside as 000000020.e000001.tar.bad-e000001" in told["reason"]


def test_a_file_that_grows_under_its_final_name_is_never_published(watch: Watch) -> None:
    """As of `torch.save(state, path)`: there are no other names, so nothing but the file itself tells."""
    (watch.root / "10").write_text("half")
    watch.first_seen()
    with (watch.root / "10").open("a") as file:
        file.write("the rest")
    watch.until(lambda: watch.publisher.idle)
    assert watch.published == [] and watch.publisher.in_place == f"{watch.root}/10 was written after it had its name"


def test_a_commit_that_cannot_be_set_aside_is_named_and_none_that_is_torn_counts(watch: Watch) -> None:
    for step in ("10", "20", "30"):
        saved(watch.root, step, ("weights",))
        watch.until(lambda step=step: watch.publisher.committed_step == int(step) and watch.publisher.idle)
    troubles: list[Outcome] = []

    def away(step: int) -> dict[str, Any]:
        raise OSError(5, "Input/output error")

    vars(watch.publisher).update(_withdraw=away, _on_trouble=troubles.append)
    for step in ("20", "30"):
        saved(watch.root, step, ("more",))
    watch.publisher.last_look(whole=True)
    watch.until(lambda: watch.publisher.idle)
    assert sorted(watch.publisher.stuck) == [20, 30] and len(troubles) == 2
    assert watch.publisher.committed_step == 10
