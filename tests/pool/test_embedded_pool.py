"""A real HTCondor in a directory: jobs run, are evicted, chains of nodes run through DAGMan."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import BadInput
from dagman.pool import EmbeddedPool, PoolFailed
from tests.pool.jobs import submit, wait_for_event, wait_until

pytestmark = pytest.mark.pool


def test_job_runs_as_an_ordinary_user_and_its_output_comes_back(pool: EmbeddedPool, workdir: Path) -> None:
    submit(pool, workdir, "/bin/sh", "\"-c 'id -u; exit 3'\"")
    wait_for_event(workdir, "005")
    assert int((workdir / "out").read_text()) != 0
    assert "return value 3" in (workdir / "events.log").read_text()


def test_vacated_job_gets_sigterm_and_starts_again(pool: EmbeddedPool, workdir: Path) -> None:
    script = workdir / "job.sh"
    # Appends outside the sandbox: what it was sent, and how often it was started.
    script.write_text(
        f"#!/bin/sh\necho start >> {workdir}/trace\n"
        f"trap 'echo term >> {workdir}/trace; exit 0' TERM\n"
        f"[ $(grep -c start {workdir}/trace) -ge 2 ] && exit 0\n"
        "while :; do sleep 0.1; done\n"
    )
    script.chmod(0o755)
    cluster = submit(pool, workdir, str(script))
    wait_until("the first start", lambda: (workdir / "trace").exists())
    done = pool.run(["condor_vacate_job", cluster], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wait_for_event(workdir, "005")
    assert (workdir / "trace").read_text().split() == ["start", "term", "start"]
    assert "004 (" in (workdir / "events.log").read_text()


def test_two_nodes_run_one_after_the_other_through_dagman(pool: EmbeddedPool, workdir: Path) -> None:
    (workdir / "node.sub").write_text(
        "executable = /bin/sh\narguments = \"-c 'echo $(node) >> "
        f"{workdir}/trace'\"\nrequest_cpus = 1\nrequest_memory = 64\nrequest_disk = 1024\nlog = nodes.log\nqueue\n"
    )
    (workdir / "chain.dag").write_text(
        'JOB a node.sub\nVARS a node="a"\nJOB b node.sub\nVARS b node="b"\nPARENT a CHILD b\n'
    )
    done = pool.run(["condor_submit_dag", "chain.dag"], cwd=workdir, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = workdir / "chain.dag.dagman.log"
    wait_until("the end of the DAG", lambda: "005 (" in log.read_text())
    assert (workdir / "trace").read_text().split() == ["a", "b"]
    assert "return value 0" in log.read_text()


def test_pool_listens_on_the_loopback_interface_only(pool: EmbeddedPool) -> None:
    done = pool.run(["condor_status", "-any", "-af", "MyAddress"], capture_output=True, text=True)
    addresses = [line for line in done.stdout.split() if line.startswith("<")]
    assert addresses
    assert all(address.startswith("<127.0.0.1:") for address in addresses)


def test_status_counts_daemons_and_jobs(pool: EmbeddedPool, workdir: Path) -> None:
    cluster = submit(pool, workdir, "/bin/sleep", "600", hold="True")
    status = pool.status()
    assert status.running and status.ready
    assert {"Scheduler", "Negotiator", "Machine", "Collector"} <= set(status.daemons)
    assert status.jobs == 1
    assert pool.run(["condor_rm", cluster], capture_output=True).returncode == 0


def test_run_passes_exit_codes_and_environment_on(pool: EmbeddedPool) -> None:
    done = pool.run(
        ["sh", "-c", 'echo "$CONDOR_CONFIG $_CONDOR_NUM_CPUS"; exit 7'],
        capture_output=True,
        text=True,
        env={"_CONDOR_NUM_CPUS": "99"},
    )
    assert done.returncode == 7
    assert done.stdout.split() == [str(pool.directory / "condor_config")]


def test_unknown_program_is_one_sentence(pool: EmbeddedPool) -> None:
    with pytest.raises(BadInput, match="there is no program condor_nothing on the pool's PATH"):
        pool.run(["condor_nothing"])


def test_second_start_in_the_same_directory_is_refused_and_harms_nothing(pool: EmbeddedPool) -> None:
    with pytest.raises(PoolFailed, match=r"a pool is running in .*segue pool down"):
        EmbeddedPool(pool.directory).up()
    assert pool.status().ready
