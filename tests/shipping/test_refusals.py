"""What can go wrong on the way to the transfer host: one sentence, naming host, key and remedy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.shipping.conftest import Run
from tests.shipping.server import HOST

BOTH = pytest.mark.parametrize("command", ["stage", "pull"])


def config(run: Run, *lines: str) -> str:
    """SEGUE_SSH with a configuration of these lines before the server's own."""
    path = run.toml.parent / "ssh_config"
    path.write_text("\n".join([f"Host {HOST}", *lines, ""]) + (run.server.root / "ssh_config").read_text())
    return f"{run.server.programs.ssh} -F {path}"


@BOTH
def test_nobody_listens(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("SEGUE_SSH", config(run, "Port 1"))
    said = run.segue(command, expect=1)
    assert HOST in said and "refuses the connection" in said and "-p PORT" in said


@BOTH
def test_no_such_host(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("SEGUE_SSH", config(run, "HostName no-such-host.invalid"))
    said = run.segue(command, expect=2)
    assert HOST in said and "transfer_host" in said


@BOTH
def test_a_key_that_the_host_does_not_know(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("SEGUE_SSH", config(run, f"IdentityFile {run.server.root / 'host_key'}"))
    authorized = run.server.root / "authorized_keys"
    kept = authorized.read_text()
    authorized.write_text("")
    try:
        said = run.segue(command, expect=1)
    finally:
        authorized.write_text(kept)
    assert f"does not let user {run.server.user} in" in said and "`user`" in said


@BOTH
def test_a_host_that_ssh_does_not_know(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("SEGUE_SSH", config(run, "UserKnownHostsFile /dev/null", "StrictHostKeyChecking yes"))
    assert "connect once by hand" in run.segue(command, expect=1)


@BOTH
def test_a_wrong_netid_has_no_directory(run: Run, command: str) -> None:
    run.write(staging="")
    said = run.segue(command, expect=2)
    assert f"{run.toml}: user: there is no directory {run.server.user}@{HOST}:/staging/" in said
    assert "your netid" in said
    run.write(staging='"/no/such/place"')
    assert "correct `staging`" in run.segue(command, expect=2)


def test_the_netid_may_stand_before_the_host(run: Run) -> None:
    run.write(staging="", user="", transfer_host=f'"{run.server.user}@{HOST}"')
    assert f"/staging/{run.server.user[0]}/{run.server.user}" in run.segue("stage", expect=2)


def test_staging_of_which_no_job_could_be_told(run: Run) -> None:
    place = run.staging.parent / "our lab"
    place.mkdir()
    run.write(staging=f'"{place}"')
    said = run.segue("stage", expect=2)
    assert "staging:" in said and "which DAG and submit files cannot carry in a path" in said
    assert list(place.iterdir()) == []


def test_staging_that_may_not_be_written(run: Run) -> None:
    run.staging.chmod(0o555)
    if run.server.small is None and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    assert "you may not write to" in run.segue("stage", expect=2)
    run.staging.chmod(0o755)


@BOTH
def test_no_rsync_there(run: Run, command: str) -> None:
    run.store.mkdir(parents=True)
    with run.server.replaced("rsync", None):
        said = run.segue(command, expect=1)
    assert HOST in said and "has no rsync" in said


def test_no_rsync_here(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # given a PATH with nothing but the shell's tools
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    said = run.segue("stage", expect=1)
    assert "rsync: cannot be started" in said and "install" in said


def test_no_ssh_here(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_SSH", "no-such-ssh -F x")
    said = run.segue("stage", expect=1)
    assert "no-such-ssh" in said and "SEGUE_SSH" in said
    monkeypatch.setenv("SEGUE_SSH", "ssh 'never closed")
    assert "cannot be split" in run.segue("stage", expect=2)
    monkeypatch.setenv("SEGUE_SSH", f"{shutil.which('ssh') or run.server.programs.ssh} -o NoSuchOption=1")
    assert "refuses its own options" in run.segue("stage", expect=2)


def test_a_host_that_runs_no_commands(run: Run) -> None:
    with run.server.replaced("cat", None):
        assert "runs no commands" in run.segue("stage", expect=1)


def test_a_full_disk_here_is_said_before_packing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Full)
    said = run.segue("stage", expect=1)
    assert "--temporary" in said and "1.0 kB are free" in said
    assert not (run.toml.parent / ".segue-stage").exists()


def test_a_run_without_staging_has_nothing_to_ship(run: Run) -> None:
    run.write(staging="", agent="checkpoint_exit = true")
    assert "agent.checkpoint_exit" in run.segue("pull", expect=2)
    run.write(site='"local"', staging="", agent="checkpoint_exit = true")
    assert "agent.checkpoint_exit" in run.segue("stage", expect=2)


def test_nothing_named_is_nothing_staged(run: Run) -> None:
    run.write(data="")
    assert "nothing to stage" in run.segue("stage", expect=2)


def test_the_connection_ends_with_the_command(run: Run) -> None:
    import psutil

    def living() -> set[int]:
        below = psutil.Process().children(recursive=True)
        return {child.pid for child in below if child.name() == "ssh" and child.status() != psutil.STATUS_ZOMBIE}

    before = living()
    run.segue("stage")
    assert living() <= before
