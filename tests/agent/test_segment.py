"""What an attempt looks at while the trainer runs: a look that fails is said once, and the others go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.errors import SegueError
from agent.loop import Loop
from agent.segment import Segment


def failing(name: str, seen: list[str], error: Exception | None) -> Callable[..., None]:
    def look(*about: object) -> None:
        seen.append(name)
        if error is not None:
            raise error

    return look


def segment_of(seen: list[str], error: Exception | None, broken: str, **fields: Any) -> tuple[Segment, Any, Any]:
    """A segment in mid-training whose look named ``broken`` raises ``error``; the training and the hang that it looks at."""

    def look(name: str) -> Callable[..., None]:
        return failing(name, seen, error if name == broken else None)

    warned: dict[str, str] = {}
    attempt = SimpleNamespace(
        deadline=SimpleNamespace(usable=time.time() + 1000.0),
        experience=SimpleNamespace(pace=SimpleNamespace(publish_s=1.0, save_s=1.0)),
        limit_s=1000.0,
        leaving=False,
        superseded="",
        warned=warned,
        warn=lambda text, key=None: warned.setdefault(key or text, text),
    )
    vars(attempt).update(fields)
    made = object.__new__(Segment)
    training = SimpleNamespace(
        over=False, look=look("progress"), terminate=failing("terminate", seen, None), step=0, behind=None
    )
    training.start = SimpleNamespace(resume_step=0, save_interval=None)
    stand_ins = {
        "attempt": attempt,
        "job": SimpleNamespace(kill_grace_s=1.0),
        "recipe": None,
        "publisher": SimpleNamespace(finished_step=0, in_place="", look=look("checkpoints")),
        "stopping": SimpleNamespace(look=look("time")),
    }
    vars(made).update(stand_ins)
    return made, training, SimpleNamespace(look=look("hangs"), sign=lambda training: None)


LOOKS = ["progress", "checkpoints", "time", "hangs"]


@pytest.mark.parametrize("broken", LOOKS)
def test_a_look_that_fails_is_a_warning_and_the_others_go_on(broken: str) -> None:
    seen: list[str] = []
    segment, training, hang = segment_of(seen, OverflowError("too large"), broken)
    for _ in range(2):
        segment._tick(training, hang, cast("Any", SimpleNamespace()))
    assert seen == LOOKS * 2
    (warning,) = cast("Any", segment.attempt).warned.values()
    assert broken in warning and "OverflowError: too large" in warning and "training goes on" in warning


def test_a_sentence_for_the_user_is_not_taken_for_such_a_failure() -> None:
    segment, training, hang = segment_of([], SegueError("take another option"), "checkpoints")
    with pytest.raises(SegueError):
        segment._tick(training, hang, cast("Any", SimpleNamespace()))


@pytest.mark.parametrize("due", [{"leaving": True}, {"superseded": "epoch 2"}, {"deadline": SimpleNamespace(usable=0)}])
def test_a_trainer_that_must_end_does_even_when_the_look_at_the_time_fails(due: dict[str, Any]) -> None:
    seen: list[str] = []
    segment, training, hang = segment_of(seen, OSError(28, "No space left on device"), "time", **due)
    segment._tick(training, hang, cast("Any", SimpleNamespace()))
    assert seen == ["progress", "checkpoints", "time", "terminate", "hangs"]


@pytest.mark.parametrize(("committed", "state"), [(80, None), (100, "complete")])
def test_an_older_checkpoint_that_is_late_does_not_make_the_newest_unpublished(
    committed: int, state: str | None
) -> None:
    seen: list[str] = []
    segment, _, _ = segment_of(seen, None, "")
    vars(segment)["job"] = SimpleNamespace(steps=100)
    vars(segment)["publisher"] = SimpleNamespace(
        idle=False, finished_step=committed, committed_step=committed, late=[20, 40], halt=failing("halt", seen, None)
    )
    end = segment._settled()
    assert (end.state if end else None) == state
    if end is None:
        segment._publish_no_more()
    assert seen == ["halt"]
    (warning,) = cast("Any", segment.attempt).warned.values()
    assert "step 20, 40" in warning and "retention.every" in warning


def test_a_late_commit_does_not_stand_for_the_newest_in_the_handover() -> None:
    segment, _, _ = segment_of([], None, "")
    attempt = cast("Any", segment.attempt)
    attempt.handover = SimpleNamespace(step=0, commit=None, commits=[])
    attempt.experience.pace.publish_s = 1.0
    attempt.learn, attempt.settled, attempt.say = (lambda *about, **more: None,) * 3
    vars(segment)["companions"] = SimpleNamespace(note=lambda *about, **more: None)
    for step in (40, 20):
        segment._committed({"step": step, "commit": f"commit-{step}", "bytes": 1, "seconds": 0.1})
    assert (attempt.handover.step, attempt.handover.commit) == (40, "commit-40")
    assert [one["step"] for one in attempt.handover.commits] == [40, 20]


def test_the_end_of_publishing_comes_though_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a staging that hangs: no event until a watchdog's, which is far away
    monkeypatch.setattr("agent.segment._TICK_S", 0.01)
    segment, _, _ = segment_of([], None, "")
    loop, watchdog = Loop(), list[str]()
    until = time.monotonic() + 0.05
    loop.after(20.0, lambda: watchdog.append("barked"))
    over = SimpleNamespace(publishes_over=lambda since: time.monotonic() > until)
    vars(segment).update(loop=loop, publisher=SimpleNamespace(hurry=lambda: None), stopping=over)
    # When the time is over
    try:
        segment._finish_publishing()
    finally:
        loop.close()
    # Then that is seen at once
    assert not watchdog
