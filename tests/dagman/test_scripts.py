"""The PRE and FINAL scripts under /bin/sh, as DAGMan runs them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from agent.handover import Handover, known_commit, write
from dagman.scripts import FINAL_SCRIPT, PRE_SEGMENT, PRE_SKIP_EXIT


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "handovers").mkdir()
    for name, text in (("pre_segment", PRE_SEGMENT), ("final", FINAL_SCRIPT)):
        (tmp_path / "scripts" / name).write_text(text)
        (tmp_path / "scripts" / name).chmod(0o755)
    return tmp_path


def hand_over(directory: Path, segment: int, state: str, step: int, **more: object) -> None:
    """As the agent writes it."""
    record = Handover("run", segment, "short", 400, state=state, step=step)
    for key, value in more.items():
        setattr(record, key, value)
    write(record, directory / "handovers" / f"segment-{segment:03d}.json")


def pre(directory: Path, segment: str, steps: int = 400) -> int:
    # From another directory: DAGMan's own is the user's.
    return subprocess.run([directory / "scripts" / "pre_segment", segment, str(steps)], cwd="/").returncode


def test_first_segment_runs(directory: Path) -> None:
    assert pre(directory, "000") == 0


@pytest.mark.parametrize("state", ["time-used", "temporary", "failed", "superseded", "running", "pending"])
def test_segment_runs_unless_the_run_is_complete(directory: Path, state: str) -> None:
    hand_over(directory, 0, state, 400)
    assert pre(directory, "001") == 0


def test_segment_after_the_end_is_skipped(directory: Path) -> None:
    hand_over(directory, 0, "time-used", 200)
    hand_over(directory, 1, "complete", 400)
    assert pre(directory, "002") == PRE_SKIP_EXIT == pre(directory, "199")


def test_longer_run_goes_on_after_what_was_complete_before(directory: Path) -> None:
    hand_over(directory, 1, "complete", 400)
    assert pre(directory, "000", 800) == 0
    assert pre(directory, "000", 399) == PRE_SKIP_EXIT


def test_words_of_a_trainer_cannot_pose_as_the_agents(directory: Path) -> None:
    lines = ['"state": "complete"', ' "state": "complete",\n "step": 400,']
    hand_over(directory, 0, "time-used", 20, last_lines=lines, reason='x\n "state": "complete"\n "step": 900')
    assert pre(directory, "001") == 0


def test_damaged_or_foreign_handovers_do_not_skip(directory: Path) -> None:
    (directory / "handovers" / "segment-000.json").write_text("")
    (directory / "handovers" / "segment-001.json").write_text(' "state": "complete",\n "step": many\n')
    (directory / "handovers" / "segment-002.json").write_text('{"format": 1, "state": "pending"}\n')
    assert pre(directory, "003") == 0


def test_retry_avoids_the_machine_that_failed(directory: Path) -> None:
    hand_over(directory, 3, "temporary", 20, machine="gpu4004.chtc.wisc.edu")
    assert pre(directory, "003") == 0
    said = (directory / "avoid" / "segment-003.sub").read_text()
    assert said == 'requirements = $(requirements:true) && (TARGET.Machine != "gpu4004.chtc.wisc.edu")\n'
    # The next attempt got through: nothing is avoided any more, and other segments never did.
    hand_over(directory, 3, "time-used", 40, machine="gpu4001")
    assert pre(directory, "003") == 0
    assert list((directory / "avoid").iterdir()) == []


def test_name_of_a_machine_that_is_none_is_not_written(directory: Path) -> None:
    hand_over(directory, 3, "temporary", 20, machine='x") || (true\nqueue 5')
    assert pre(directory, "003") == 0
    assert not (directory / "avoid").exists()


def test_directory_without_handovers_runs(directory: Path) -> None:
    (directory / "handovers").rmdir()
    assert pre(directory, "000") == 0


@pytest.mark.parametrize(
    ("status", "code", "state"),
    [("0", 0, "complete"), ("2", 1, "failed"), ("3", 1, "aborted"), ("4", 1, "removed"), ("1", 1, "unknown")],
)
def test_final_fails_when_the_dag_did(directory: Path, status: str, code: int, state: str) -> None:
    done = subprocess.run([directory / "scripts" / "final", status, "1"], cwd="/")
    assert done.returncode == code
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["state"], summary["dag_status"], summary["failed_nodes"]) == (state, int(status), 1)
    assert not list(directory.glob("*.tmp"))


def test_final_fails_when_its_record_cannot_be_written(directory: Path) -> None:
    (directory / "summary.json.tmp").mkdir()
    assert subprocess.run([directory / "scripts" / "final", "2", "1"], stderr=subprocess.DEVNULL).returncode == 1
    assert subprocess.run([directory / "scripts" / "final", "0", "0"], stderr=subprocess.DEVNULL).returncode == 0


def told(directory: Path) -> object:
    """What travels to the next job under the handover's name."""
    return json.loads((directory / "placeholder" / "handover.json").read_text())


def test_job_is_told_the_newest_commit_that_the_workflow_knows(directory: Path) -> None:
    (directory / "placeholder").mkdir()
    (directory / "placeholder" / "handover.json").write_text('{"format": 1, "state": "pending"}\n')
    hand_over(directory, 0, "failed", 0, last_lines=[' "commit": "000009000.e000009.tar"'])
    assert pre(directory, "000") == 0 and told(directory) == {"format": 1, "state": "pending"}
    hand_over(directory, 0, "time-used", 200, commit="000000200.e000001.tar")
    hand_over(directory, 1, "time-used", 1000000000, commit="1000000000.e000009.tar")
    hand_over(directory, 2, "temporary", 400, commit="000000400.e000010.tar")
    assert pre(directory, "003", 2000000000) == 0
    known = {"format": 1, "state": "pending", "known": "000000400.e000010.tar"}
    assert told(directory) == known
    # A handover that was lost since takes nothing back.
    for path in (directory / "handovers").iterdir():
        path.unlink()
    assert pre(directory, "003") == 0 and told(directory) == known
    assert known_commit(directory / "placeholder" / "handover.json") == "000000400.e000010.tar"


EVENTS = {
    "25": """000 (003.000.000) 2026-11-25 20:33:41 Job submitted from host: <127.0.0.1:1>
    [ DAGNodeName = "segment_003"; JobBatchName = "run.dag+1" ]
...
001 (003.000.000) 2026-11-25 20:33:42 Job executing on host: <127.0.0.1:1>
	SlotName: slot1_2@gpu4004.chtc.wisc.edu
...
000 (004.000.000) 2026-11-25 20:33:47 Job submitted from host: <127.0.0.1:1>
    [ DAGNodeName = "segment_0030"; JobBatchName = "run.dag+1" ]
...
001 (004.000.000) 2026-11-25 20:33:48 Job executing on host: <127.0.0.1:1>
	SlotName: slot1_1@gpu4001.chtc.wisc.edu
...
""",
}
EVENTS["23.9"] = re.sub(r"\[ DAGNodeName = \"(\w+)\".*", r"DAG Node: \1", EVENTS["25"])


@pytest.mark.parametrize("version", EVENTS)
def test_retry_without_a_handover_avoids_the_machine_of_the_event_log(directory: Path, version: str) -> None:
    (directory / "events.log").write_text(EVENTS[version])
    assert pre(directory, "003") == 0
    assert not (directory / "avoid").exists(), "a first try avoids nothing"
    assert subprocess.run([directory / "scripts" / "pre_segment", "003", "400", "1"], cwd="/").returncode == 0
    said = (directory / "avoid" / "segment-003.sub").read_text()
    assert said == 'requirements = $(requirements:true) && (TARGET.Machine != "gpu4004.chtc.wisc.edu")\n'


def test_commits_that_the_last_attempt_removed_go_here_too_and_later_ones_stay(directory: Path) -> None:
    checkpoints = directory / "segue-store" / "checkpoints"
    checkpoints.mkdir(parents=True)
    names = [f"{step:09d}.e{epoch:06d}.tar" for step, epoch in ((40, 7), (80, 7), (120, 8), (160, 8), (200, 9))]
    for name in names:
        (checkpoints / name).touch()
    (directory / "segue-store" / "kept").write_text(f"000008\n{names[2]}\n{names[3]}\n")
    assert pre(directory, "004") == 0
    assert sorted(path.name for path in checkpoints.iterdir()) == names[2:]
