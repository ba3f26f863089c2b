"""`universe = container` on the embedded pool: the image's own Python, /staging bound and writable, eviction and restart."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagman.pool import processes
from dagman.pool.apptainer import Apptainer, CannotBuild, find
from tests.conftest import _fresh
from tests.pool.containers import ContainerPool, container_pool, image_file
from tests.pool.jobs import submit, wait_for_event, wait_until

pytestmark = [pytest.mark.pool, pytest.mark.slow]

PROGRAM = """#!/usr/bin/env python3
import json, os, pathlib, sys, time
starts = pathlib.Path("/staging/starts")
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
facts = {
    "python": sys.executable,
    "system": pathlib.Path("/etc/os-release").read_text().split('"')[1],
    "home": os.environ["HOME"],
    "scratch": os.environ["_CONDOR_SCRATCH_DIR"],
    "job_ad": os.path.exists(os.environ["_CONDOR_JOB_AD"]),
    "uid": os.getuid(),
    "root_is_writable": os.access("/usr", os.W_OK),
}
pathlib.Path("/staging/facts.json").write_text(json.dumps(facts))
while len(starts.read_text()) < 2:
    time.sleep(0.1)
print("second start")
"""


@pytest.fixture(scope="module")
def site() -> Iterator[ContainerPool]:
    """One pool with containers for this module."""
    for directory in _fresh("c-"):
        with container_pool(directory) as running:
            yield running


def test_container_job_sees_staging_is_evicted_and_starts_again(site: ContainerPool, workdir: Path) -> None:
    program = workdir / "job.py"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    cluster = submit(
        site.pool,
        workdir,
        str(program),
        universe="container",
        container_image=str(site.image),
        transfer_container="false",
        should_transfer_files="YES",
    )
    wait_until("the first start", lambda: (site.staging / "facts.json").exists())
    facts = json.loads((site.staging / "facts.json").read_text())
    assert facts["python"] == "/usr/bin/python3"
    assert facts["system"].startswith("Debian GNU/Linux 12")
    assert facts["job_ad"]
    assert facts["home"] == facts["scratch"]
    assert facts["uid"] != 0
    assert not facts["root_is_writable"]
    done = site.pool.run(["condor_vacate_job", cluster], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wait_for_event(workdir, "005")
    assert (site.staging / "starts").read_text() == "xx"
    assert (workdir / "out").read_text() == "second start\n"
    assert "004 (" in (workdir / "events.log").read_text()


def test_image_in_one_file_travels_with_the_job(site: ContainerPool, workdir: Path) -> None:
    program = workdir / "job.sh"
    program.write_text("#!/bin/sh\npython3 -c 'import sys; print(sys.version_info[:2])' | tee /staging/version\n")
    program.chmod(0o755)
    more = {"container_image": str(image_file(site.image)), "request_disk": "1000000"}
    submit(site.pool, workdir, str(program), universe="container", should_transfer_files="YES", **more)
    wait_for_event(workdir, "005")
    assert (workdir / "out").read_text() == (site.staging / "version").read_text() == "(3, 11)\n"


def test_processes_in_containers_end_with_the_pool() -> None:
    for directory in _fresh("c-"):
        with container_pool(directory) as site:
            program = directory / "job.sh"
            program.write_text("#!/bin/sh\ntrap '' TERM\ntouch /staging/started\nwhile :; do sleep 0.2; done\n")
            program.chmod(0o755)
            more = {"container_image": str(site.image), "transfer_container": "false"}
            submit(site.pool, directory, str(program), universe="container", should_transfer_files="YES", **more)
            started = site.staging / "started"
            wait_until("the start", started.exists)
        assert processes.of_pool(site.pool.directory) == []
        assert [
            entry for entry in processes.running().values() if str(directory).encode() in b"".join(entry.environment)
        ] == []


def test_definition_that_fails_leaves_no_image_and_says_why(workdir: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("building an image needs root")
    definition = workdir / "bad.def"
    definition.write_text("Bootstrap: debootstrap\nOSVersion: nosuchsuite\nMirrorURL: http://127.0.0.1:9/debian\n")
    with pytest.raises(CannotBuild, match=r"apptainer build of .*bad.def failed"):
        find().build(definition, workdir / "image")
    assert sorted(path.name for path in workdir.iterdir()) == ["bad.def", "image.log"]


def test_missing_definition_is_named(workdir: Path) -> None:
    with pytest.raises(CannotBuild, match=r"there is no definition file .*nothing.def"):
        Apptainer(Path("apptainer")).build(workdir / "nothing.def", workdir / "image")
