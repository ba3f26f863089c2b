"""Generated .dag and .sub files, word by word; golden/README.md says how to renew them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dagman.workflow import Workflow
from tests.dagman.samples import GOLDEN, RUNS, golden_workflow

HOME = Path("/home/bbadger/runs")
STAGING = {"chtc": Path("/staging/b/bbadger"), "local": Path("/home/bbadger/runs/staging")}


def texts(workflow: Workflow) -> dict[str, str]:
    """What a person would review, by file name."""
    return {
        Path(file.path).name: file.text.replace(sys.executable, "{this}")
        for file in workflow.files
        if file.path.endswith((".dag", ".sub", ".config", "job.json"))
    }


@pytest.mark.parametrize("kind", RUNS)
def test_generated_files_are_the_golden_ones(kind: str) -> None:
    found = texts(golden_workflow(kind, HOME / kind, STAGING[kind]))
    place = GOLDEN / kind
    if os.environ.get("SEGUE_RENEW_GOLDEN"):
        for old in place.glob("*.*"):
            if old.name != "run.toml":
                old.unlink()
        for name, text in found.items():
            (place / name).write_text(text, encoding="utf-8")
    golden = {path.name: path.read_text(encoding="utf-8") for path in place.glob("*.*") if path.name != "run.toml"}
    assert found.keys() == golden.keys()
    for name, text in golden.items():
        assert found[name] == text, f"{name}: see golden/README.md"


def test_generation_is_a_function_of_what_was_asked() -> None:
    first, second = (golden_workflow("chtc", HOME / "x", STAGING["chtc"]) for _ in range(2))
    assert first == second
    assert first.directory == HOME / "x" and not HOME.exists(), "nothing is written by generating"


@pytest.mark.parametrize("name", ["pre_segment", "final"])
def test_scripts_are_posix_shell(name: str) -> None:
    workflow = golden_workflow("local", HOME / "x", STAGING["local"])
    (script,) = (file for file in workflow.files if file.path == f"scripts/{name}")
    assert script.mode == 0o755 and script.text.startswith("#!/bin/sh\n")
    assert subprocess.run(["/bin/sh", "-n"], input=script.text, text=True).returncode == 0
