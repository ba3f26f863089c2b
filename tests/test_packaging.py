"""The wheel holds the four import packages with their data files, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.agent.support import VERSIONS, interpreter

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("agent", "cli", "dagman", "jobs")


def _tracked() -> set[str]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return set(done.stdout.split())
    return {
        str(path.relative_to(REPOSITORY))
        for room in ROOMS
        for path in (REPOSITORY / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_the_four_rooms_whole_and_nothing_else(tmp_path: Path) -> None:
    # given: a copy of the sources, because a build writes beside them
    source, rooms = tmp_path / "source", _tracked()
    for name in {*rooms, "pyproject.toml", "setup.cfg", "README.md", "LICENSE"}:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((REPOSITORY / name).read_bytes())

    # when
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    # then
    (wheel,) = tmp_path.glob("segue-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "segue = cli.main:main" in archive.read(entry_points).decode()
    assert names == rooms
    assert "dagman/sites/chtc.toml" in names


@pytest.mark.parametrize("version", VERSIONS)
def test_the_zipapps_have_the_same_bytes_in_every_process(tmp_path: Path, version: str) -> None:
    program = (
        "import pathlib, sys\n"
        "from agent.bundle import build_agent, build_jobs\n"
        "build_agent(pathlib.Path(sys.argv[1], 'agent.pyz'))\n"
        "build_jobs(pathlib.Path(sys.argv[1], 'jobs.pyz'))\n"
    )
    made = []
    for seed in ("1", "2"):
        place = tmp_path / seed
        place.mkdir()
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": seed}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        done = subprocess.run([interpreter(version), "-c", program, str(place)], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
        made.append({path.name: path.read_bytes() for path in place.iterdir()})
    assert made[0] == made[1] and sorted(made[0]) == ["agent.pyz", "jobs.pyz"]
