"""Each failure of the users' story is a check that speaks in the first seconds of a job, with the remedy in its sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import Wandb
from agent.errors import BadInput, SegueError
from agent.recipes import checks, environment
from tests.agent.recipes.starts import DATASET, dataset_at, python_at, start_of, unreadable

ORDINARY = 65534


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    made = tmp_path / "scratch"
    made.mkdir()
    return made


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to try as an ordinary user")


def test_python_that_is_not_there(scratch: Path) -> None:
    with pytest.raises(SegueError, match=r"no such file; name the image's Python in run\.toml's trainer\.python"):
        checks.check_python(str(scratch / "python"))
    with pytest.raises(SegueError, match=r"no such program in this job's PATH"):
        checks.check_python("python-of-another-world")


def test_python_that_may_not_be_run(scratch: Path) -> None:
    python = Path(python_at(scratch / "bin/python"))
    python.chmod(0o000)
    with pytest.raises(SegueError, match=r"cannot run this Python.*readable for everyone"):
        checks.check_python(str(python))


@needs_root
def test_python_in_roots_home_is_told_from_the_directory_that_blocks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The image's Python is a link into /root/.local: readable while the image was built, unreadable in the job."""
    import tempfile

    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        hidden = Path(base) / "root"
        python_at(hidden / "bin/python")
        link = Path(base) / "venv-python"
        link.symlink_to(hidden / "bin/python")
        unreadable(hidden)
        said = as_ordinary_user(link)
    assert "cannot run this Python" in said and str(hidden) in said and "may not be entered" in said


def as_ordinary_user(python: Path) -> str:
    """check_python in a process that has dropped root's rights."""
    code = f"import os\nos.setgid({ORDINARY}); os.setuid({ORDINARY})\n"
    code += "from agent.errors import SegueError\nfrom agent.recipes.checks import check_python\n"
    code += f"try:\n    check_python({str(python)!r})\nexcept SegueError as error:\n    print(error)\n"
    # Imports come after the rights are gone only where the checkout is readable; so they are made before.
    code = "import agent.errors, agent.recipes.checks\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    return done.stdout


def test_home_that_is_not_writable(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SegueError, match=r"HOME=.* is not writable for user \d+"):
        checks.check_home(start_of(scratch, "openpi"))


def test_home_is_scratch_unless_the_user_says_otherwise(scratch: Path) -> None:
    checks.check_home(start_of(scratch, "openpi"))
    with pytest.raises(SegueError, match=r"HOME=/nonexistent is not writable"):
        checks.check_home(start_of(scratch, "openpi", env={"HOME": "/nonexistent"}))


def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_BUNDLES", ())
    monkeypatch.setattr(environment.ssl, "get_default_verify_paths", lambda: type("Paths", (), {"cafile": None}))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)


def test_missing_certificates_matter_only_to_wandb(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_certificates(monkeypatch)
    checks.check_certificates(start_of(scratch, "openpi"))
    checks.check_certificates(start_of(scratch, "openpi", wandb=Wandb("arms", "arm-1", mode="offline")))
    with pytest.raises(SegueError, match=r"no CA certificates in this image.*SSL_CERT_FILE"):
        checks.check_certificates(start_of(scratch, "openpi", wandb=Wandb("arms", "arm-1")))


def test_certificates_of_certifi_beside_the_trainers_python_are_found(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_certificates(monkeypatch)
    bundle = scratch / "lib/python3.11/site-packages/certifi/cacert.pem"
    bundle.parent.mkdir(parents=True)
    bundle.touch()
    assert environment.caches(start_of(scratch, "openpi"))["SSL_CERT_FILE"] == str(bundle)


def test_dataset_with_the_wrong_top_directory(scratch: Path) -> None:
    dataset_at(scratch / "data/lab")
    with pytest.raises(BadInput, match=r"the dataset's top directory is wrong: meta/info\.json lies in lab/"):
        checks.check_dataset(scratch / "data")
    with pytest.raises(BadInput, match=r"no LeRobot dataset"):
        checks.check_dataset(scratch / "nothing")
    checks.check_dataset(scratch / "data/lab")


def test_datasets_of_a_job_are_its_inputs_below_the_lerobot_home(scratch: Path) -> None:
    assert checks.datasets(start_of(scratch, "openpi", inputs=(DATASET,))) == [scratch / DATASET.target]
