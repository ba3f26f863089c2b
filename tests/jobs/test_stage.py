"""The DAG's stage node: no GPU is asked for before every input in staging is what its digest says."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import InputArchive, JobConfig, dump
from agent.exit_codes import PERMANENT, TEMPORARY
from agent.pack import archive_name, digest_of, members, write_archive
from jobs.main import main


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    """A dataset that is in staging, on a machine that does not see its source."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(os.urandom(5000))
    staging = tmp_path / "staging"
    archive, packed = write_archive(
        members(tmp_path / "data"), staging / "segue" / "_inputs", lambda done: archive_name("dataset", done.sha256)
    )
    entry = InputArchive("dataset", archive.name, packed.sha256, packed.bytes, "inputs/dataset")
    return JobConfig("demo", str(staging), 10, "reference", inputs=(entry,))


def run(job: JobConfig, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    path = Path(job.staging).parent / "job.json"
    path.write_text(dump(job))
    code = main(["stage", "--config", str(path)])
    out, said = capsys.readouterr()
    return code, out, said


def with_source(job: JobConfig) -> JobConfig:
    return replace(job, inputs=(replace(job.inputs[0], source=str(Path(job.staging).parent / "data")),))


def test_what_is_in_staging_is_read_and_compared(job: JobConfig, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(job, capsys)
    assert (code, json.loads(out)) == (0, {"verified": [job.inputs[0].archive], "packed": [], "bytes": 10240})


def test_a_damaged_input_stops_the_run_for_good(job: JobConfig, capsys: pytest.CaptureFixture[str]) -> None:
    path = job.inputs_root / job.inputs[0].archive
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    code, _, said = run(job, capsys)
    assert code == PERMANENT
    assert "is damaged in staging" in said and "run `segue stage` again where the data is" in said


def test_a_missing_input_stops_the_run_for_good(job: JobConfig, capsys: pytest.CaptureFixture[str]) -> None:
    (job.inputs_root / job.inputs[0].archive).unlink()
    code, _, said = run(job, capsys)
    assert code == PERMANENT and "is not in staging: run `segue stage`" in said


@pytest.mark.parametrize("damaged", [False, True])
def test_a_source_that_the_node_sees_is_packed(
    job: JobConfig, capsys: pytest.CaptureFixture[str], damaged: bool
) -> None:
    path = job.inputs_root / job.inputs[0].archive
    if damaged:
        path.write_bytes(b"x")
    else:
        shutil.rmtree(job.inputs_root)
    code, out, _ = run(with_source(job), capsys)
    assert (code, json.loads(out)["packed"]) == (0, [path.name])
    assert digest_of(path).sha256 == job.inputs[0].sha256
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_source_that_changed_since_is_not_taken_for_it(job: JobConfig, capsys: pytest.CaptureFixture[str]) -> None:
    (job.inputs_root / job.inputs[0].archive).unlink()
    (Path(job.staging).parent / "data" / "a").write_bytes(b"other")
    code, _, said = run(with_source(job), capsys)
    assert code == PERMANENT and "changed since the workflow was generated" in said
    assert not (job.inputs_root / job.inputs[0].archive).exists()


def test_what_travels_from_the_workflow_directory_need_not_be_there(
    job: JobConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    code = InputArchive("code", "code-0.tar", "0" * 64, 5, "code", travels="plain")
    assert run(replace(job, inputs=(), code=code), capsys)[0] == 0
    assert run(replace(job, inputs=(), code=replace(code, travels="")), capsys)[0] == PERMANENT


@pytest.mark.parametrize("source", [False, True])
def test_a_machine_without_staging_leaves_the_node_to_another(
    job: JobConfig, capsys: pytest.CaptureFixture[str], source: bool
) -> None:
    shutil.rmtree(job.staging)
    code, _, said = run(with_source(job) if source else job, capsys)
    assert code == TEMPORARY
    assert job.staging in said and "check the path and that the file system is mounted here" in said
    assert not Path(job.staging).exists(), "nothing is written where the mount would be"
