"""Nothing of a pool is left behind, however it or its starter ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import main
from dagman.pool import EmbeddedPool, PoolFailed, processes
from tests.pool.jobs import submit, wait_until

pytestmark = pytest.mark.pool

# A job that ignores SIGTERM and leaves a child in a session of its own, with an empty environment.
STUBBORN = """#!/bin/sh
trap '' TERM
setsid env -i sh -c 'trap "" TERM; echo $$ > {place}/grandchild; while :; do sleep 0.2; done' &
while :; do sleep 0.2; done
"""


def _stubborn_job(pool: EmbeddedPool, workdir: Path) -> int:
    script = workdir / "job.sh"
    script.write_text(STUBBORN.format(place=workdir))
    script.chmod(0o755)
    submit(pool, workdir, str(script))
    note = workdir / "grandchild"
    wait_until("the job's grandchild", lambda: note.exists() and note.read_text().strip() != "")
    return int(note.read_text())


def _exists(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_down_ends_jobs_that_ignore_signals_and_hide(workdir: Path) -> None:
    with EmbeddedPool(workdir / "pool") as pool:
        grandchild = _stubborn_job(pool, workdir)
        assert grandchild in processes.of_pool(pool.directory)
    assert processes.of_pool(workdir / "pool") == []
    assert not _exists(grandchild)
    assert not pool.status().running


def test_block_that_fails_ends_its_pool(workdir: Path) -> None:
    with pytest.raises(RuntimeError, match="in the middle"), EmbeddedPool(workdir / "pool"):
        raise RuntimeError("in the middle")
    assert processes.of_pool(workdir / "pool") == []


def test_pool_ends_when_the_program_that_started_it_is_killed(workdir: Path) -> None:
    program = (
        "import sys, time; from dagman.pool import EmbeddedPool; "
        "EmbeddedPool(sys.argv[1]).up(); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(workdir / "pool")], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"up\n"
        assert processes.of_pool(workdir / "pool")
        starter.kill()
    wait_until("the end of the pool", lambda: not processes.of_pool(workdir / "pool"))


def test_command_line_ends_a_pool_whose_master_was_killed(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--directory", str(workdir / "pool")]
    assert main(["pool", "up", *place]) == 0
    pool = EmbeddedPool(workdir / "pool")
    grandchild = _stubborn_job(pool, workdir)
    master = pool._master()
    assert master is not None
    os.kill(master, signal.SIGKILL)
    wait_until("the master's end", lambda: pool._master() is None)
    assert main(["pool", "down", *place]) == 0
    assert processes.of_pool(pool.directory) == []
    assert not _exists(grandchild)
    capsys.readouterr()
    with pytest.raises(SystemExit) as status:
        main(["pool", "status", *place])
    assert status.value.code == 1
    assert capsys.readouterr().out.startswith("down: ")


def test_orphaned_dagman_and_its_scripts_end_with_the_pool(workdir: Path) -> None:
    (workdir / "wait.sh").write_text(f"#!/bin/sh\necho $$ > {workdir}/script\nwhile :; do sleep 0.2; done\n")
    (workdir / "wait.sh").chmod(0o755)
    (workdir / "one.dag").write_text("JOB a a.sub NOOP\nSCRIPT PRE a wait.sh\n")
    (workdir / "a.sub").write_text("executable = /bin/true\nqueue\n")
    with EmbeddedPool(workdir / "pool") as pool:
        done = pool.run(["condor_submit_dag", "one.dag"], cwd=workdir, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        note = workdir / "script"
        wait_until("the PRE script", lambda: note.exists() and note.read_text().strip() != "")
        # Every daemon is killed; DAGMan and its script lose their parents.
        for process in processes.running().values():
            if process.pid in processes.of_pool(pool.directory) and process.name in ("condor_master", "condor_schedd"):
                os.kill(process.pid, signal.SIGKILL)
        script = int(note.read_text())
        assert script in processes.of_pool(pool.directory)
    assert not _exists(script)


def test_configuration_that_no_daemon_accepts_is_reported_and_leaves_nothing(workdir: Path) -> None:
    with pytest.raises(PoolFailed, match="does not become ready"):
        EmbeddedPool(workdir / "pool", {"MAX_HISTORY_LOG": "many"}).up()
    assert processes.of_pool(workdir / "pool") == []


def test_pool_comes_up_again_in_its_directory_and_keeps_its_queue(workdir: Path) -> None:
    pool = EmbeddedPool(workdir / "pool", {"NUM_CPUS": "7"})
    with pool:
        submit(pool, workdir, "/bin/true", hold="True")
        asked = pool.run(["condor_status", "-af", "TotalCpus"], capture_output=True, text=True)
        assert float(asked.stdout) == 7
    with pool:
        assert pool.status().jobs == 1


def test_long_directory_works_although_a_socket_path_may_have_107_bytes(workdir: Path) -> None:
    deep = workdir / ("a" * 60) / ("b" * 60)
    with EmbeddedPool(deep) as pool:
        assert pool.status().ready
    assert processes.of_pool(deep) == []


def test_directory_under_tmp_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool", "up", "--directory", "/tmp/segue-test-pool"]) == 2
    assert "DAGMan refuses its logs" in capsys.readouterr().err
    assert not Path("/tmp/segue-test-pool").exists()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["--set", "NUM_CPUS"], "'NUM_CPUS' is not NAME=VALUE"),
        (["--bind", "/nonexistent:/staging"], "is not DIRECTORY:/PLACE with a directory that exists"),
    ],
)
def test_malformed_options_of_up_are_refused_before_anything_starts(
    workdir: Path, option: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pool", "up", "--directory", str(workdir / "pool"), *option]) == 2
    assert sentence in capsys.readouterr().err
    assert not (workdir / "pool").exists()


def test_pool_with_two_startds_is_ready_when_both_are(workdir: Path) -> None:
    config = {
        "DAEMON_LIST": "MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD STARTD_B",
        "STARTD_B": "$(STARTD)",
        "STARTD_B_ARGS": "-local-name B",
        "B.STARTD_NAME": "gpu4004",
        "B.STARTD_LOG": "$(LOG)/StartLog.B",
    }
    with EmbeddedPool(workdir / "pool", config) as pool:
        asked = pool.run(["condor_status", "-af", "Name"], capture_output=True, text=True)
        assert sorted(asked.stdout.split()) == ["slot1@gpu4004@localhost", "slot1@localhost"]
