"""The agent runs where nothing is installed: standard library only, psutil and wandb aside, on every Python that it names."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.agent.support import interpreters

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


def pack_agent(target: Path) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for path in modules():
            archive.write(path, path.relative_to(ROOT))
        archive.writestr("__main__.py", "import sys\nfrom agent.__main__ import main\nsys.exit(main())\n")


@pytest.mark.parametrize("python", interpreters())
def test_the_zipapp_runs_alone_and_explains_itself(python: str, tmp_path: Path) -> None:
    pack_agent(tmp_path / "agent.pyz")
    command = [python, "-I", "-W", "error", "agent.pyz"]
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
