"""The agent runs where nothing is installed: standard library only, psutil and wandb aside, on every Python that it names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from agent.bundle import build_agent
from agent.config import dump
from tests.agent.support import VERSIONS, Run, interpreter, state_after

ROOT = Path(__file__).parents[2]
OPTIONAL = {"psutil", "wandb"}
HEAVY = (
    "ssl",
    "asyncio",
    "multiprocessing",
    "subprocess",
    "urllib.request",
    "http",
    "email",
    "tarfile",
    "logging",
    "argparse",
    "shutil",
)


def modules() -> list[Path]:
    return sorted((ROOT / "agent").rglob("*.py"))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_only_the_standard_library_is_imported(path: Path) -> None:
    assert imported(path) - set(sys.stdlib_module_names) - OPTIONAL <= {"agent", "__future__"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_the_start_imports_nothing_heavy() -> None:
    code = "import sys, agent.running, agent.companions; print(*sorted(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(output.split()) & set(HEAVY) == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_zipapp_runs_a_whole_attempt_where_nothing_is_installed(version: str, tmp_path: Path) -> None:
    """As it travels (agent.bundle), without any site-packages; the image's trainer is another Python."""
    build_agent(tmp_path / "agent.pyz")
    trainer = str(ROOT / "tests" / "agent" / "plain_trainer.py")
    options = {"stops_on_request": True}
    run = Run(tmp_path, steps=40, recipe="command", python=sys.executable, args=(trainer,), options=options)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "job.json").write_text(dump(run.job), encoding="utf-8")
    words = ["run", "--config", "job.json", "--segment", "0", "--class", "short"]
    done = subprocess.run(
        [interpreter(version), "-I", "-S", "-W", "error", str(tmp_path / "agent.pyz"), *words],
        cwd=tmp_path / "scratch",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "complete: the run is complete: step 40 of 40" in done.stderr
    assert run.final_state() == state_after(40)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_zipapp_explains_itself(version: str, tmp_path: Path) -> None:
    build_agent(tmp_path / "agent.pyz")
    command = [interpreter(version), "-I", "-S", "-W", "error", "agent.pyz"]
    shown = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (shown.returncode, "usage:" in shown.stderr) == (0, True)
    missing = subprocess.run(
        [*command, "run", "--config", "no.json", "--segment", "0", "--class", "x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 78
    assert "no.json: no such file" in missing.stderr
    assert "Traceback" not in missing.stderr
