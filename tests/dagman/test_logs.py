"""The right log for each attempt: kept ones, also of evicted attempts, and what HTCondor brought back."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import JobConfig, dump
from agent.errors import BadInput
from dagman.logs import follow_running, fresh_part, list_logs, read_log, told
from dagman.runs import RunPlace, find_run
from tests.dagman.eventlog import BEGAN, EventLog


@pytest.fixture
def place(tmp_path: Path) -> RunPlace:
    """Segment 0: evicted with a kept log (epoch 1), evicted at once (2), ended (3, kept); segment 1: killed (4), running (5)."""
    directory = tmp_path / "run"
    for sub in ("logs", "handovers"):
        (directory / sub).mkdir(parents=True)
    job = JobConfig("run", str(tmp_path / "staging"), 400, "command")
    (directory / "job.json").write_text(dump(job))
    (directory / "run.dag").write_text(
        'VARS segment_000 segment="000" class="c"\nVARS segment_001 segment="001" class="c"\n'
    )
    log = (
        EventLog()
        .submit(2, 1, "segment_000")
        .execute(2, 2)
        .evict(2, 10)
        .execute(2, 20)
        .evict(2, 21)
        .execute(2, 30)
        .end(2, 40)
    )
    log.submit(3, 41, "segment_001").execute(3, 42).end(3, 43, None, 9).submit(4, 44, "segment_001").execute(4, 45)
    (directory / "events.log").write_text(log.text)
    (directory / "run.dag.dagman.log").write_text(EventLog().submit(1, 0).execute(1, 0, None).text)
    store = job.store_root
    (store / "logs").mkdir(parents=True)
    for epoch in (1, 3):
        (store / "logs" / f"{epoch:06d}.log.gz").write_bytes(gzip.compress(f"kept of {epoch}\n".encode()))
    (store / "epochs").mkdir()
    for epoch, cluster, at in ((3, 2, 30.5), (4, 3, 42.5), (5, 4, 45.5)):
        claim = {"epoch": epoch, "job": f"{cluster}.0", "machine": "gpu1", "segment": 0, "began": BEGAN + at}
        (store / "epochs" / f"{epoch:06d}.json").write_text(json.dumps(claim))
    for name, text in (("stage.out", ""), ("segment-000.out", "out of 0\n"), ("segment-001.out", "out of killed\n"),
                       ("segment-001.err", "err of killed\n")):  # fmt: skip
        (directory / "logs" / name).write_text(text)
    return find_run(str(directory))


def text(place: RunPlace, attempt: int | None = None, segment: int | None = None) -> str:
    return "".join(read_log(place, attempt, segment))


def test_evicted_attempts_log_is_found_by_its_epoch(place: RunPlace) -> None:
    assert text(place, attempt=1) == "kept of 1\n"


def test_killed_attempts_output_is_what_htcondor_brought_back(place: RunPlace) -> None:
    with pytest.raises(
        BadInput, match=r"--attempt 4: there is no log of it: failed before one was kept \(killed by signal 9\)"
    ):
        text(place, attempt=4)
    # Once nothing of the segment ran after it, its output is the segment's.
    log = place.directory / "events.log"
    log.write_text(log.read_text().partition("000 (004.")[0])
    assert text(place, attempt=4) == "out of killed\nerr of killed\n"


def test_attempt_without_a_log_says_what_became_of_it(place: RunPlace) -> None:
    with pytest.raises(
        BadInput, match=r"--attempt 2: there is no log of it: evicted before one was kept \(Job vacated by schedd\)"
    ):
        text(place, attempt=2)
    with pytest.raises(BadInput, match=r"--attempt 5: it is running: segue logs 'my runs/run.toml' --follow"):
        text(replace(place, said="my runs/run.toml"), attempt=5)
    with pytest.raises(BadInput, match=r"--attempt 77: no such attempt is known; kept logs: 1, 3"):
        text(place, attempt=77)


def test_segments_newest_attempt_is_told(place: RunPlace) -> None:
    assert text(place, segment=0) == "kept of 3\n"
    assert text(place, segment=1) == "out of killed\nerr of killed\n"
    with pytest.raises(BadInput, match=r"--segment 7: no log of that segment"):
        text(place, segment=7)


def test_without_a_choice_it_is_the_newest_attempt_that_ended(place: RunPlace) -> None:
    assert text(place) == "out of killed\nerr of killed\n"


def test_log_of_an_older_attempt_than_the_newest_says_so(place: RunPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.directory / "condor_tail").touch(0o755)
    monkeypatch.setenv("PATH", str(place.directory))
    said = replace(place, said="my runs/run.toml")
    for segment in (None, 1):
        assert told(said, segment) == "attempt 4; attempt 5 is running: segue logs 'my runs/run.toml' -f"
    assert told(said, 0) is None, "the newest of that segment"
    # Where no running attempt can be followed, what is named says where it can be.
    (place.directory / "condor_tail").unlink()
    assert (told(place) or "").endswith(" -f   # on the access point")


def test_command_prints_the_log_alone_to_stdout(place: RunPlace) -> None:
    from click.testing import CliRunner

    from cli.logs import command

    done = CliRunner().invoke(command, [str(place.directory)])
    assert (done.exit_code, done.stdout) == (0, "out of killed\nerr of killed\n")
    assert (
        done.stderr.startswith("segue: attempt 4; attempt 5 is running: segue logs ") and done.stderr.count("\n") == 1
    )
    assert CliRunner().invoke(command, [str(place.directory), "--attempt", "1"]).stderr == ""


def test_log_that_is_of_no_attempt_says_so(place: RunPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a run whose first attempt runs, and a node before it that said something
    monkeypatch.setenv("PATH", "/nowhere")
    (place.directory / "events.log").write_text(EventLog().submit(4, 44, "segment_001").execute(4, 45).text)
    shutil.rmtree(place.store / "logs")
    for path in (place.directory / "logs").iterdir():
        path.write_text("verified\n" if path.name == "stage.out" else "")
    assert text(place) == "verified\n"
    assert (told(place) or "").startswith("node stage; attempt 5 is running: segue logs ")
    # and none at all
    (place.directory / "events.log").write_text("")
    assert told(place) == "node stage; no segment has run yet"


def test_newest_attempt_that_left_no_log_is_not_taken_for_the_one_that_did(place: RunPlace) -> None:
    # Given the first attempt evicted with a log, the second too early for one, and nothing after it
    log = EventLog().submit(2, 1, "segment_000").execute(2, 2).evict(2, 10).execute(2, 20).evict(2, 21)
    (place.directory / "events.log").write_text(log.text)
    (place.store / "logs" / "000003.log.gz").unlink()
    for epoch in (3, 4, 5):
        (place.store / "epochs" / f"{epoch:06d}.json").unlink()
    for epoch, at in ((1, 2.5), (2, 20.5)):
        claim = {"epoch": epoch, "job": "2.0", "machine": "gpu1", "segment": 0, "began": BEGAN + at}
        (place.store / "epochs" / f"{epoch:06d}.json").write_text(json.dumps(claim))
    (place.directory / "logs" / "segment-000.out").unlink()
    assert text(place) == "kept of 1\n"
    assert told(place) == "attempt 1; attempt 2 left no log (evicted)"


def test_list_names_segment_and_epoch(place: RunPlace) -> None:
    found = [(log.node, log.epoch) for log in list_logs(place)]
    assert found == [
        ("segment_000", 1), ("segment_000", 3), ("segment_000", None), ("segment_001", None), ("stage", None),
    ]  # fmt: skip


def test_damaged_kept_log_is_one_sentence(place: RunPlace) -> None:
    from agent.errors import SegueError

    path = place.store / "logs" / "000001.log.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SegueError, match=r"000001.log.gz: cannot be read to its end"):
        text(place, attempt=1)


def test_following_without_condor_tail_is_told(
    place: RunPlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from agent.errors import SegueError

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SegueError, match="condor_tail is not on PATH"):
        list(follow_running(place))


def test_run_that_has_not_begun_is_told(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(dump(JobConfig("run", str(tmp_path / "staging"), 400, "command")))
    with pytest.raises(BadInput, match="nothing has run yet: segue status"):
        text(find_run(str(tmp_path)))


@pytest.mark.parametrize(
    ("seen", "end", "new"),
    [
        (b"", b"step 1\n", b"step 1\n"),
        (b"step 1\n", b"step 1\n", b""),
        (b"step 1\n", b"step 1\nstep 2\n", b"step 2\n"),
        (b"step 1\n" + b"." * 80 + b"\n", b"." * 80 + b"\nstep 3\n", b"step 3\n"),
        (b"same\n" * 20, b"same\n" * 22, b"same\n" * 2),
        (b"long ago\n", b"quite another\n", b"quite another\n"),
    ],
)
def test_only_what_is_new_at_the_end_of_a_growing_output_is_shown(seen: bytes, end: bytes, new: bytes) -> None:
    assert fresh_part(seen, end) == new
