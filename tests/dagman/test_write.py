"""The writer: all or nothing under a final name, and nothing of an earlier run that would mislead the next."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import BadInput, SegueError
from agent.handover import known_commit
from dagman.foreseen import before_submitting
from dagman.pool import namespace
from dagman.workflow import File, Workflow
from dagman.write import write_workflow
from tests.dagman.eventlog import EventLog
from tests.dagman.samples import golden_workflow


@pytest.fixture
def workflow(workdir: Path) -> Workflow:
    (workdir / "staging").mkdir()
    return golden_workflow("local", workdir / "run", workdir / "staging")


def test_everything_is_there_and_scripts_can_be_run(workflow: Workflow) -> None:
    written = write_workflow(workflow)
    directory = workflow.directory
    assert {path.relative_to(directory).as_posix() for path in written} == {
        "agent.pyz", "jobs.pyz", *(file.path for file in workflow.files),
    }  # fmt: skip
    assert written[-1] == directory / "job.json", "a directory that has it has everything"
    for program in ("scripts/pre_segment", "scripts/final", "agent.pyz", "jobs.pyz"):
        assert (directory / program).stat().st_mode & 0o111
    for name in ("agent.pyz", "jobs.pyz"):
        assert "__main__.py" in zipfile.ZipFile(directory / name).namelist()
    assert [path.name for path in directory.rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")] == []


def test_failure_leaves_nothing_half_written_and_no_job_json(workflow: Workflow) -> None:
    files = [*workflow.files, File("run.toml/inside", "x")]  # run.toml is a file: this one cannot be written
    with pytest.raises(SegueError, match=r"cannot write the workflow: File exists; nothing was submitted"):
        write_workflow(replace(workflow, files=files))
    assert not (workflow.directory / "job.json").exists()
    assert [path for path in workflow.directory.rglob("*") if path.name.endswith(".tmp")] == []
    write_workflow(workflow)  # and a second try is none the worse for it
    assert (workflow.directory / "job.json").exists()


def handover(workflow: Workflow) -> Path:
    path = workflow.directory / "handovers" / "segment-000.json"
    path.write_text(json.dumps({"state": "complete", "step": 900}))
    return path


def test_a_complete_handover_is_put_away_where_the_newest_commit_is_not_as_far(workflow: Workflow) -> None:
    # given: the commit of the last step was set aside as damaged, an older one is there
    write_workflow(workflow)
    checkpoints = workflow.job.store_root / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / f"{workflow.job.steps - 1:09d}.e000001.tar").touch()
    path = handover(workflow)
    # when the workflow is generated again, then no segment will be skipped
    write_workflow(workflow)
    assert not path.exists()
    # but a commit of the last step keeps it
    (checkpoints / f"{workflow.job.steps:09d}.e000002.tar").touch()
    path = handover(workflow)
    write_workflow(workflow)
    assert path.exists()


def test_handovers_of_a_run_whose_store_was_removed_are_put_away(workflow: Workflow) -> None:
    write_workflow(workflow)
    path = handover(workflow)
    write_workflow(workflow)
    assert not path.exists() and (path.parent / "earlier" / path.name).exists()


def test_handovers_stay_while_the_store_has_a_commit(workflow: Workflow) -> None:
    write_workflow(workflow)
    path = handover(workflow)
    commit = workflow.job.store_root / "checkpoints" / "000000900.e000001.tar"
    commit.parent.mkdir(parents=True)
    commit.touch()
    write_workflow(workflow)
    assert path.exists()


def test_first_job_is_told_the_newest_commit_that_was_seen_when_it_was_written(workflow: Workflow) -> None:
    write_workflow(workflow)
    placeholder = workflow.directory / "placeholder" / "handover.json"
    assert json.loads(placeholder.read_text()) == {"format": 1, "state": "pending"}
    checkpoints = workflow.job.store_root / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("000000020.e000002.tar", "000000040.e000001.tar"):
        (checkpoints / name).touch()
    write_workflow(workflow)
    assert known_commit(placeholder) == "000000020.e000002.tar"
    # when the store was removed, then to submit it again is to begin anew on purpose, and that is said
    shutil.rmtree(workflow.job.store_root)
    assert "this workflow had published step 20: the run begins anew at step 0" in "".join(before_submitting(workflow))
    write_workflow(workflow)
    assert known_commit(placeholder) == "" and not any("anew" in note for note in before_submitting(workflow))


def test_handovers_stay_where_staging_is_not_mounted(workflow: Workflow) -> None:
    write_workflow(workflow)
    path = handover(workflow)
    (workflow.directory.parent / "staging").rmdir()
    write_workflow(replace(workflow, directories=[]))
    assert path.exists()


class TestWorkflowThatRuns:
    @pytest.fixture
    def dagman(self, workflow: Workflow) -> Iterator[Callable[..., int]]:
        """Starts a process with DAGMan's name and arguments, which waits; returns its id."""
        write_workflow(workflow)
        processes = []

        def start(dag: str | Path, cwd: Path, name: str = "condor_dagman") -> int:
            words = [name, "-c", "input()", "-p", "0", "-f", "-l", ".", "-Lockfile", f"{dag}.lock", "-Dag", str(dag)]
            process = subprocess.Popen(words, executable=sys.executable, cwd=cwd, stdin=subprocess.PIPE)
            processes.append(process)
            while name.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                pass  # it has begun, but the kernel has not laid out its arguments yet
            return process.pid

        yield start
        for process in processes:
            process.kill()
            process.communicate()

    @pytest.mark.parametrize("name", ["condor_dagman", "condor_scheduniv_exec.12.0"])
    def test_it_is_found_by_a_relative_dag_file(
        self, workflow: Workflow, dagman: Callable[..., int], name: str
    ) -> None:
        process = dagman(workflow.dag, workflow.directory, name)
        with pytest.raises(
            BadInput, match=rf"running \(condor_dagman, process {process}\); wait for it, or condor_rm its job"
        ):
            write_workflow(workflow)

    def test_it_is_found_through_a_link(self, workflow: Workflow, dagman: Callable[..., int], workdir: Path) -> None:
        dagman(workflow.directory / workflow.dag, Path("/"))
        (workdir / "linked").symlink_to(workflow.directory)
        with pytest.raises(BadInput, match="linked: this workflow is running"):
            write_workflow(replace(workflow, directory=workdir / "linked"))

    def test_dag_file_of_the_same_name_somewhere_else_is_another_workflow(
        self, workflow: Workflow, dagman: Callable[..., int], workdir: Path
    ) -> None:
        dagman(workflow.dag, workdir)
        dagman(workdir / workflow.dag, workflow.directory)
        write_workflow(workflow)

    def test_its_log_decides_where_its_directory_may_not_be_seen(
        self, workflow: Workflow, dagman: Callable[..., int]
    ) -> None:
        # Given a DAGMan outside of the user namespace in which segue runs, as with `segue pool run`
        (workflow.directory / f"{workflow.dag}.dagman.log").write_text(EventLog().submit(5, 0).execute(5, 1, None).text)
        process = dagman(workflow.dag, workflow.directory)
        program = (
            "import sys, pathlib, dagman.write as w; print(w.running_dagman(pathlib.Path(sys.argv[1]), sys.argv[2]))"
        )
        words = namespace.wrap([sys.executable, "-c", program, str(workflow.directory), workflow.dag])
        asked = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        assert asked.stdout.startswith(f"(condor_dagman, process {process});"), asked.stderr

    @pytest.mark.parametrize(
        ("log", "said"),
        [
            (
                EventLog().submit(5, 0),
                r"job 5.0 is queued\); wait for it, or condor_rm 5.0 \(where HTCondor knows that job no more: rm ",
            ),
            (EventLog().submit(5, 0).execute(5, 1, None).evict(5, 2), r"job 5.0 is queued\); wait for it"),
            (EventLog().submit(5, 0).hold(5, 1, "by hand").release(5, 2), r"job 5.0 is queued\); wait for it"),
            (
                EventLog().submit(5, 0).hold(5, 1, "by hand"),
                r"job 5.0 is held\); condor_release 5.0 and wait for it, or condor_rm 5.0",
            ),
        ],
    )
    def test_dagman_that_is_queued_or_held_runs_as_well(self, workflow: Workflow, log: EventLog, said: str) -> None:
        # However long ago: the test's events are.
        write_workflow(workflow)
        (workflow.directory / f"{workflow.dag}.dagman.log").write_text(log.text)
        with pytest.raises(BadInput, match=said):
            write_workflow(workflow)

    def test_dagman_that_ended_does_not(self, workflow: Workflow) -> None:
        write_workflow(workflow)
        (workflow.directory / f"{workflow.dag}.dagman.log").write_text(
            EventLog().submit(5, 0).execute(5, 1, None).end(5, 9, 1).text
        )
        write_workflow(workflow)
