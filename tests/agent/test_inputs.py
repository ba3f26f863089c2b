"""Inputs in the job's scratch directory: whole, verified, once, and where run.toml says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import agent.pack
from agent.config import InputArchive, JobConfig
from agent.errors import BadInput
from agent.inputs import InputMissing, fetch
from agent.pack import DigestMismatch, archive_name, members, write_archive


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def made(tmp_path: Path, name: str, where: Path, data: str = "x", target: str = "") -> InputArchive:
    source = tmp_path / "sources" / name
    source.mkdir(parents=True)
    (source / "a").write_text(data)
    archive, packed = write_archive(members(source), where, lambda done: archive_name(name, done.sha256))
    return InputArchive(name, archive.name, packed.sha256, packed.bytes, target or f"inputs/{name}")


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    entry = made(tmp_path, "dataset", tmp_path / "staging" / "segue" / "_inputs")
    return JobConfig("demo", str(tmp_path / "staging"), 10, "reference", inputs=(entry,))


def test_an_input_is_unpacked_once(job: JobConfig, scratch: Path) -> None:
    assert fetch(job, scratch) == ["inputs/dataset"]
    assert (scratch / "inputs" / "dataset" / "a").read_text() == "x"
    (job.inputs_root / job.inputs[0].archive).unlink()
    assert fetch(job, scratch) == []


def test_one_that_htcondor_brought_goes_before_staging_and_makes_room(
    job: JobConfig, scratch: Path, tmp_path: Path
) -> None:
    brought = scratch / job.inputs[0].archive
    (job.inputs_root / brought.name).rename(brought)
    assert fetch(job, scratch) == ["inputs/dataset"]
    assert not brought.exists()


def test_two_inputs_of_one_content_both_arrive(job: JobConfig, scratch: Path) -> None:
    both = replace(job, inputs=(job.inputs[0], replace(job.inputs[0], name="again", target="inputs/again")))
    assert fetch(both, scratch) == ["inputs/dataset", "inputs/again"]
    assert fetch(both, scratch) == []


def test_two_inputs_may_share_a_directory(job: JobConfig, scratch: Path, tmp_path: Path) -> None:
    other = made(tmp_path, "stats", job.inputs_root, "y", "inputs")
    fetch(replace(job, inputs=(job.inputs[0], other)), scratch)
    assert (scratch / "inputs" / "a").read_text() == "y"
    assert (scratch / "inputs" / "dataset" / "a").read_text() == "x"


def test_a_damaged_one_leaves_nothing_and_is_tried_again(job: JobConfig, scratch: Path) -> None:
    path = job.inputs_root / job.inputs[0].archive
    good = path.read_bytes()
    path.write_bytes(good.replace(b"x", b"y"))
    with pytest.raises(DigestMismatch, match="run `segue stage` again"):
        fetch(job, scratch)
    assert not (scratch / "inputs").exists()
    path.write_bytes(good)
    assert fetch(job, scratch) == ["inputs/dataset"]


def test_one_bad_read_is_no_bad_archive(job: JobConfig, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = agent.pack._Source.readinto
    reads: list[int] = []

    def once_wrong(source: agent.pack._Source, buffer: bytearray) -> int:
        size = right(source, buffer)
        reads.append(size)
        if len(reads) == 1:
            source.digest.update(b"a bit that flipped")
        return size

    monkeypatch.setattr(agent.pack._Source, "readinto", once_wrong)
    assert fetch(job, scratch) == ["inputs/dataset"]
    assert (scratch / "inputs" / "dataset" / "a").read_text() == "x"


def test_a_missing_one_says_who_puts_it_there(job: JobConfig, scratch: Path) -> None:
    (job.inputs_root / job.inputs[0].archive).unlink()
    with pytest.raises(InputMissing, match="is not in staging; `segue stage`"):
        fetch(job, scratch)


@pytest.mark.parametrize("target", ["../out", "/etc/x", "."])
def test_a_target_outside_of_scratch_is_refused(job: JobConfig, scratch: Path, target: str) -> None:
    with pytest.raises(BadInput, match="outside the job's directory"):
        fetch(replace(job, inputs=(replace(job.inputs[0], target=target),)), scratch)
