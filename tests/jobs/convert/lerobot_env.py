"""An environment with the real lerobot 0.3.3, kept in the user's cache, because the suite's own Python need not have 1.6 GB of torch.

    python -m tests.jobs.convert.lerobot_env        builds it where it is missing, prints its interpreter

A second one with lerobot 0.4.4 lies on top of it: a few megabytes, and the packages below it are those of the first.

SEGUE_LEROBOT_PYTHON names an interpreter to use instead. Beside a CPU build of torch, torchvision's compiled part does not load, and lerobot
imports torchvision without needing that part: there, its two modules of registration are replaced in this environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from dagman.pool.fetch import cache_directory

_TORCH = ["torch==2.13.0"]
_ALONE = ["lerobot==0.3.3", "torchvision==0.28.0"]
_REST = [
    "datasets==3.6.0",
    "draccus==0.10.0",
    "huggingface-hub<1",
    "av",
    "deepdiff",
    "einops",
    "gymnasium",
    "h5py",
    "jsonlines",
    "numpy",
    "opencv-python-headless",
    "packaging",
    "pillow",
    "psutil",
    "safetensors",
    "termcolor",
    "zarr",
]
_EXTENSION = """\
def _has_ops():
    return False


def _assert_has_ops():
    raise RuntimeError("this torchvision is without its compiled operators")


def _check_cuda_version():
    return -1


def _load_library(name):
    return False
"""
_IMPORT = "import lerobot.datasets.lerobot_dataset"
_LIMIT_S = 1500.0


class NoEnvironment(Exception):
    """Why it cannot be had on this machine."""


def interpreter() -> Path:
    """Its Python. Raises NoEnvironment with one sentence when it can neither be found nor built."""
    named = os.environ.get("SEGUE_LEROBOT_PYTHON")
    if named:
        if not _imports(Path(named)):
            raise NoEnvironment(f"SEGUE_LEROBOT_PYTHON={named}: cannot import lerobot.datasets there")
        return Path(named)
    version = ".".join(map(str, sys.version_info[:2]))
    place = cache_directory() / f"lerobot-0.3.3-python{version}"
    place.parent.mkdir(parents=True, exist_ok=True)
    python, ready = place / "bin" / "python", place / ".ready"
    with place.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.is_file():
            shutil.rmtree(place, ignore_errors=True)
            try:
                _build(place, python)
            except (OSError, subprocess.SubprocessError) as error:
                said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
                raise NoEnvironment(f"lerobot 0.3.3 cannot be installed here: {said[-1] if said else error}") from error
            ready.touch()
    return python


def newer_interpreter() -> Path:
    """Python with lerobot 0.4.4. Raises NoEnvironment."""
    below = interpreter()
    place = cache_directory() / f"lerobot-0.4.4-over-{hashlib.sha256(str(below).encode()).hexdigest()[:12]}"
    python, ready = place / "bin" / "python", place / ".ready"
    with place.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.is_file():
            shutil.rmtree(place, ignore_errors=True)
            try:
                _run([str(below), "-m", "venv", "--without-pip", str(place)])
                find = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
                beneath, own = Path(_output([str(below), "-c", find])), Path(_output([str(python), "-c", find]))
                (own / "beneath.pth").write_text(f"{beneath}\n", encoding="utf-8")
                _run(
                    [
                        str(below),
                        "-m",
                        "pip",
                        "install",
                        "--quiet",
                        "--no-deps",
                        "--target",
                        str(own),
                        "lerobot==0.4.4",
                        "accelerate==1.10.0",
                    ]
                )
                _run([str(python), "-c", _IMPORT])
            except (OSError, subprocess.SubprocessError) as error:
                said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
                raise NoEnvironment(f"lerobot 0.4.4 cannot be installed here: {said[-1] if said else error}") from error
            ready.touch()
    return python


def _build(place: Path, python: Path) -> None:
    _run([sys.executable, "-m", "venv", str(place)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *_TORCH])
    _run([*pip, *_REST])
    _run([*pip, "--no-deps", *_ALONE])
    if not _imports(python):
        package = _output(
            [
                str(python),
                "-c",
                "import importlib.util as u; print(u.find_spec('torchvision').submodule_search_locations[0])",
            ]
        )
        (Path(package) / "extension.py").write_text(_EXTENSION, encoding="utf-8")
        (Path(package) / "_meta_registrations.py").write_text("", encoding="utf-8")
        _run([str(python), "-c", _IMPORT])


def _imports(python: Path) -> bool:
    tried = subprocess.run([str(python), "-c", _IMPORT], capture_output=True, check=False, timeout=300)
    return tried.returncode == 0


def _output(words: list[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _run(words: list[str]) -> None:
    subprocess.run(words, capture_output=True, text=True, check=True, timeout=_LIMIT_S)


if __name__ == "__main__":
    try:
        print(interpreter())
    except NoEnvironment as error:
        sys.exit(f"segue: {error}")
