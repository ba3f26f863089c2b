"""Staging on this machine, as with the embedded pool: packed in place, nothing is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.pack import digest_of
from cli.main import main


class Local:
    """A run of site `local`."""

    def __init__(self, here: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.toml, self.capture = here / "run.toml", capture
        (here / "data").mkdir()
        (here / "data" / "x").write_bytes(b"x" * 5000)
        self.write("")

    def write(self, more: str) -> None:
        self.toml.write_text(
            f'name = "demo"\nsite = "local"\nsteps = 10\n{more}\n[trainer]\nrecipe = "reference"\n[data]\ndataset = "data"\n'
        )

    def segue(self, *words: str, expect: int = 0) -> Any:
        code = main([words[0], str(self.toml), *words[1:], *(["--json"] if expect == 0 else [])])
        out, said = self.capture.readouterr()
        assert code == expect, said
        return json.loads(out) if expect == 0 else said


@pytest.fixture
def local(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Local:
    return Local(tmp_path, capsys)


def test_inputs_are_packed_into_staging_which_is_made(local: Local) -> None:
    one = local.segue("stage")["inputs"][0]
    path = local.toml.parent / "staging" / "segue" / "_inputs" / one["archive"]
    assert (one["action"], digest_of(path).sha256) == ("packed", one["sha256"])
    assert local.segue("stage")["inputs"][0]["action"] == "there"


def test_a_dry_run_makes_nothing(local: Local) -> None:
    assert local.segue("stage", "--dry-run")["inputs"][0]["action"] == "would pack"
    assert sorted(path.name for path in local.toml.parent.iterdir()) == ["data", "run.toml"]


def test_a_damaged_archive_is_packed_again(local: Local) -> None:
    one = local.segue("stage")["inputs"][0]
    path = local.toml.parent / "staging" / "segue" / "_inputs" / one["archive"]
    path.write_bytes(b"y" * one["bytes"])
    again = local.segue("stage")["inputs"][0]
    assert again["action"] == "packed" and "damaged" in again["note"]
    assert digest_of(path).sha256 == one["sha256"]


def test_a_staging_of_the_users_own_is_not_made(local: Local) -> None:
    local.write('staging = "elsewhere"')
    assert "run.toml: staging: there is no directory" in local.segue("stage", expect=2)
    (local.toml.parent / "elsewhere").write_text("")
    assert "is no directory" in local.segue("stage", expect=2)


def test_the_code_stays_with_the_workflow_where_segue_dag_runs(local: Local) -> None:
    local.write('code = "app"')
    (local.toml.parent / "app").mkdir()
    (local.toml.parent / "app" / "train.py").write_text("print()\n")
    assert [one["name"] for one in local.segue("stage")["inputs"]] == ["dataset"]
    assert [one["name"] for one in local.segue("stage", "--code")["inputs"]] == ["dataset", "code"]


def test_the_workflow_finds_what_was_staged(local: Local, workdir: Path) -> None:
    from dagman.prepare import ask, prepare

    one = local.segue("stage")["inputs"][0]
    (entry,) = prepare(ask(local.toml), to=workdir / "demo").job.inputs
    assert (entry.archive, entry.sha256, entry.bytes) == (one["archive"], one["sha256"], one["bytes"])


def test_get_quotas_of_this_machine_counts(
    local: Local, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tools = tmp_path_factory.mktemp("bin")
    line = f"{local.toml.parent}/staging 100 100 10 1000"
    (tools / "get_quotas").write_text(f"#!/bin/sh\necho '{line}'\n")
    (tools / "get_quotas").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    said = local.segue("stage", expect=1)
    assert "(get_quotas) leaves 0 bytes and 990 items" in said
