"""A chain of segments as at a real site: generated files, every node in a container, the image's own Python, /staging bound.

The access point does not see /staging (as from a laptop); only the containers do. One attempt is evicted on the way.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.support import state_after
from tests.conftest import _fresh
from tests.pool.containers import ContainerPool, container_pool
from tests.pool.jobs import wait_until

pytestmark = [pytest.mark.pool, pytest.mark.slow]

STEPS = 300
SITE = """
title = "a site of containers"
default_class = "short"
retries = 2
scan_interval_s = 1
python = "python3"
access_points = ["access.invalid"]

[staging]
path = "/staging/{initial}/{user}"
[classes.short]
limit_s = 16
[margin]
fraction = 0.05
least_s = 1.0
kill_grace_s = 2.0
[defaults]
step_s = 0.05
startup_s = 1.0
restore_s = 0.5
save_s = 0.1
publish_s = 0.5
queue_s = 2.0
[resources]
memory_mb = 256
disk_mb = 512
helper_memory_mb = 256
helper_disk_mb = 512
"""
RUN = """
name = "boxed"
site = "site.toml"
user = "tester"
steps = {steps}

[trainer]
recipe = "command"
python = "python3"
args = ["/staging/t/tester/trainer.py", "step_s=0.05"]
options = {{ clean = ["*.tmp"] }}

[segments]
class = "short"
save_interval = 20

[pace]
step_s = 0.05

[container]
image = "{image}"
transfer = false
"""
# Says where it runs, then trains.
TRAINER = """
import pathlib, runpy, sys
facts = [sys.executable, pathlib.Path("/etc/os-release").read_text().splitlines()[0]]
pathlib.Path("/staging/facts").write_text("\\n".join(facts))
runpy.run_path(str(pathlib.Path(__file__).with_name("plain_trainer.py")), run_name="__main__")
"""


@pytest.fixture(scope="module")
def site() -> Iterator[ContainerPool]:
    """A pool with containers, and a user's directory in staging."""
    for directory in _fresh("c-"):
        with container_pool(directory) as running:
            (running.staging / "t" / "tester").mkdir(parents=True)
            yield running


def _write_run(directory: Path, site: ContainerPool) -> Path:
    place = site.staging / "t" / "tester"
    (place / "trainer.py").write_text(TRAINER)
    shutil.copy(Path(__file__).parents[1] / "agent" / "plain_trainer.py", place)
    (directory / "site.toml").write_text(SITE)
    (directory / "run.toml").write_text(RUN.format(steps=STEPS, image=site.image))
    return directory / "run.toml"


def _segue(site: ContainerPool, *arguments: str) -> str:
    done = site.pool.run([sys.executable, "-m", "cli.main", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_chain_in_containers_survives_an_eviction_and_ends_as_if_left_alone(site: ContainerPool, workdir: Path) -> None:
    run_toml = _write_run(workdir, site)
    dag = Path(_segue(site, "dag", str(run_toml)).strip().splitlines()[-1])
    store = site.staging / "t" / "tester" / "segue" / "boxed"
    done = site.pool.run(["condor_submit_dag", str(dag)], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    log = Path(f"{dag}.dagman.log")
    events = dag.parent / "events.log"

    def ended() -> bool:
        return "005 (" in log.read_text()

    def commits() -> list[str]:
        return sorted(path.name for path in (store / "checkpoints").glob("[0-9]*.e*.tar"))

    wait_until("the first commit", lambda: bool(commits()) or ended())
    assert not ended(), events.read_text()[-2000:]
    running = site.pool.run(
        ["condor_q", "-allusers", "-constraint", 'DAGNodeName =?= "segment_000"', "-af", "ClusterId"],
        capture_output=True,
        text=True,
    ).stdout.split()
    assert site.pool.run(["condor_vacate_job", *running], capture_output=True).returncode == 0
    wait_until("the end of the chain", ended, patience_s=150)

    said = "\n".join(path.read_text(errors="replace")[-600:] for path in sorted((dag.parent / "logs").glob("*.err")))
    assert "return value 0" in log.read_text(), said
    assert "004 (" in events.read_text(), "an attempt was evicted"
    newest = commits()[-1]
    assert int(newest.split(".")[0]) == STEPS
    with tarfile.open(store / "checkpoints" / newest) as archive:
        member = archive.extractfile(f"{STEPS}/state.json")
        assert member is not None
        assert json.load(member)["state"] == state_after(STEPS)
    python, system = (site.staging / "facts").read_text().splitlines()
    assert (python, system) == ("/usr/bin/python3", 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"')
    assert len(list((store / "epochs").glob("[0-9]*.json"))) >= 3, (
        "an eviction and a hand-over: at least three attempts"
    )
    assert list((store / "final").iterdir()), "the consolidate node ran in its container too"
