"""What is remembered of a source: read once, read again when it changed, and good on a machine that does not have it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import BadInput, SegueError
from agent.pack import members
from dagman import inputs
from dagman.inputs import InputRequest, Recorded, read_record, resolve_inputs, state_of, write_record


@pytest.fixture
def request_(tmp_path: Path) -> InputRequest:
    source = tmp_path / "data"
    source.mkdir()
    (source / "a").write_bytes(b"one")
    return InputRequest("dataset", source, "inputs/dataset")


def test_a_source_is_read_once_as_long_as_nobody_writes(
    request_: InputRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = resolve_inputs([request_], tmp_path / "r.json")
    monkeypatch.setattr(inputs, "pack", lambda *_, **__: pytest.fail("read again"))
    (again,) = resolve_inputs([request_], tmp_path / "r.json")
    assert again == first
    assert first.source == str(request_.source)


@pytest.mark.parametrize("how", ["content", "size", "new file", "executable", "renamed"])
def test_a_change_is_noticed(request_: InputRequest, tmp_path: Path, how: str) -> None:
    (first,) = resolve_inputs([request_], tmp_path / "r.json")
    path = request_.source / "a"
    os.utime(path, ns=(1, 1))
    if how == "content":
        path.write_bytes(b"two")
    elif how == "size":
        path.write_bytes(b"longer")
    elif how == "new file":
        (request_.source / "b").write_bytes(b"")
    elif how == "executable":
        path.chmod(0o755)
    else:
        path.rename(request_.source / "c")
    (second,) = resolve_inputs([request_], tmp_path / "r.json")
    assert second.sha256 != first.sha256
    assert read_record(tmp_path / "r.json")["dataset"].archive == second.archive


def test_a_machine_without_the_source_goes_by_the_record(request_: InputRequest, tmp_path: Path) -> None:
    (first,) = resolve_inputs([request_], tmp_path / "r.json")
    shutil.rmtree(request_.source)
    (there,) = resolve_inputs([request_], tmp_path / "r.json")
    assert there == replace(first, source="")
    (tmp_path / "r.json").unlink()
    with pytest.raises(BadInput, match="is not on this machine, and no record says that it was staged"):
        resolve_inputs([request_], tmp_path / "r.json")


def test_where_it_was_staged_is_kept_until_the_content_changes(request_: InputRequest, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    resolve_inputs([request_], path)
    write_record(path, {"dataset": replace(read_record(path)["dataset"], staged="host:/x")})
    os.utime(request_.source / "a", ns=(5, 5))
    resolve_inputs([request_], path)
    assert read_record(path)["dataset"].staged == "host:/x"
    (request_.source / "a").write_bytes(b"new")
    resolve_inputs([request_], path)
    assert read_record(path)["dataset"].staged == ""


def test_a_record_that_cannot_be_written_stops_nothing(request_: InputRequest, tmp_path: Path) -> None:
    (entry,) = resolve_inputs([request_], tmp_path / "no such directory" / "r.json")
    assert entry.bytes == 10240
    with pytest.raises(SegueError, match="cannot be written"):
        write_record(tmp_path / "no such directory" / "r.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_record_of_another_source_is_not_taken_for_it(request_: InputRequest, tmp_path: Path) -> None:
    resolve_inputs([request_], tmp_path / "r.json")
    other = replace(request_, source=tmp_path / "other data")
    with pytest.raises(BadInput, match="no record says"):
        resolve_inputs([other], tmp_path / "r.json")
    shutil.rmtree(request_.source)
    moved = replace(request_, source=Path("/home/bbadger/data"))
    assert resolve_inputs([moved], tmp_path / "r.json")[0].source == ""


@pytest.mark.parametrize(
    ("field", "value"), [("archive", "../x.tar"), ("archive", 3), ("bytes", "many"), ("bytes", True), ("sha256", "0")]
)
def test_a_record_with_a_wrong_field_is_refused(tmp_path: Path, field: str, value: object) -> None:
    write_record(tmp_path / "r.json", {"dataset": Recorded("a.tar", "0" * 64, 5, "/x", "s")})
    data = json.loads((tmp_path / "r.json").read_text())
    data["inputs"]["dataset"][field] = value
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(BadInput, match="is no record of staged inputs"):
        read_record(tmp_path / "r.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"inputs": []}',
        '{"inputs": {"dataset": 3}}',
        '{"inputs": {"dataset": {"archive": "a"}}}',
        "\xff",
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match="is no record of staged inputs"):
        read_record(tmp_path / "r.json")


def test_a_record_of_a_newer_segue_is_read(tmp_path: Path) -> None:
    entry = Recorded("a.tar", "0" * 64, 5, "/x", "s")
    write_record(tmp_path / "r.json", {"dataset": entry})
    data = json.loads((tmp_path / "r.json").read_text())
    data["inputs"]["dataset"]["more"] = 1
    (tmp_path / "r.json").write_text(json.dumps(data))
    assert read_record(tmp_path / "r.json") == {"dataset": entry}


def test_names_that_are_no_text_have_a_state(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"x")
    assert len(state_of(members(tmp_path))) == 64


def test_a_file_that_goes_meanwhile_is_named(request_: InputRequest) -> None:
    entries = members(request_.source)
    (request_.source / "a").unlink()
    with pytest.raises(SegueError, match="changes while it is looked at"):
        state_of(entries)


def test_the_archives_target_and_name_are_those_asked_for(request_: InputRequest, tmp_path: Path) -> None:
    other = InputRequest("weights", request_.source / "a", ".cache/weights")
    first, second = resolve_inputs([request_, other], tmp_path / "r.json")
    assert (first.target, second.target) == ("inputs/dataset", ".cache/weights")
    assert second.archive == f"weights-{second.sha256[:16]}.tar"
    assert set(read_record(tmp_path / "r.json")) == {"dataset", "weights"}
