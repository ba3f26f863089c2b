"""Fixtures that every room may use: a real HTCondor pool, and a working directory where DAGMan accepts to keep its logs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagman.pool import EmbeddedPool
from dagman.pool.fetch import cache_directory

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # Under nohup: programs would inherit that they ignore it. A handler is not inherited.
    signal.signal(signal.SIGHUP, lambda *_: None)


def outside_tmp() -> Path:
    """A directory for tests: `.work/tests` of the checkout, or below the user's cache when the checkout lies under /tmp."""
    repository = Path(__file__).resolve().parents[1]
    temporary = (Path("/tmp"), Path("/var/tmp"))
    inside = any(repository.is_relative_to(place) for place in temporary)
    base = cache_directory() / "tests" if inside else repository / ".work" / "tests"
    base.mkdir(parents=True, exist_ok=True)
    return base


def _fresh(prefix: str) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=outside_tmp()))
    yield made
    if os.environ.get("SEGUE_KEEP_WORK") is None:
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def workdir() -> Iterator[Path]:
    """A fresh directory outside /tmp, removed afterwards (kept when SEGUE_KEEP_WORK is set)."""
    yield from _fresh("w-")


@pytest.fixture(scope="module")
def pool() -> Iterator[EmbeddedPool]:
    """A real HTCondor of this module's own; it ends with the module, or with the test process, however that dies."""
    for directory in _fresh("p-"):
        with EmbeddedPool(directory) as running:
            yield running


_FRESH = "SEGUE_TEST_IN_A_FRESH_PROCESS"


def _forks_badly() -> bool:
    """Whether this process has threads, which do not survive a fork; JAX's may start at any time."""
    tasks = Path("/proc/self/task")
    return "jax" in sys.modules or (tasks.is_dir() and len(list(tasks.iterdir())) > 1)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that forks runs in a fresh process once another test has brought threads (JAX) into this one."""
    if pyfuncitem.get_closest_marker("forks") is None or _FRESH in os.environ or not _forks_badly():
        return None
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid],
        cwd=pyfuncitem.config.rootpath,
        env={**os.environ, _FRESH: "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.fail(f"in a process of its own:\n{done.stdout}{done.stderr}", pytrace=False)
    return True
