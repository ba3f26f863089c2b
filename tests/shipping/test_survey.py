"""Which bound counts, from what a host prints; and where staging is, from run.toml and site."""

from __future__ import annotations

import getpass
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from agent.store.budget import Room, Usage
from dagman.shipping import rsync, ssh, survey
from dagman.shipping.survey import Limits, Survey
from dagman.shipping.where import destination

STAGING = "/staging/b/bbadger"
NO_LIMITS = Limits(None, None, None, None)


def printed(*lines: str) -> Survey:
    return survey.read(["used 7000 3", "free 5000", *lines], STAGING)


def test_archives_and_unfinished_uploads_are_told_apart() -> None:
    found = printed("file 10 a-1.tar", "file 4 .b-2.tar.partial", "file 3 notes.txt", "file 9 name with spaces.tar")
    assert found.archives == {"a-1.tar": 10, "name with spaces.tar": 9}
    assert found.partial == {"b-2.tar": 4}


def test_quotas_of_cephfs_go_before_get_quotas_and_before_the_sites_default() -> None:
    quotas = f"quotas {STAGING} 40 100 10 1000"
    ceph = [
        f"ceph quota.max_bytes 1000 {STAGING}",
        f"ceph quota.max_files 0 {STAGING}",
        f"ceph dir.rbytes 400 {STAGING}",
        f"ceph dir.rentries 5 {STAGING}",
        "ceph quota.max_files 100 /staging",
        "ceph dir.rentries 90 /staging",
    ]
    both = survey.rooms(printed(quotas, *ceph), Limits(10, 10, None, None), Usage(0, 0))
    assert both == [
        Room(f"the quota of {STAGING}", 600, None),
        Room("the quota of /staging", None, 10),
        Room("the file system", 5000, None),
    ]
    asked = survey.rooms(printed(quotas), Limits(10, 10, None, None), Usage(0, 0))
    assert asked[0] == Room(f"the quota of {STAGING} (get_quotas)", 60_000_000_000, 990)
    default = survey.rooms(printed(), Limits(10_000, 10, None, None), Usage(0, 0))
    assert default[0] == Room("the site's default quota", 3000, 7)


def test_the_budget_counts_the_runs_own_inputs_and_commits() -> None:
    found = survey.rooms(printed("run 100 4"), Limits(None, None, 1000, 20), Usage(300, 1))
    assert found[0] == Room("run.toml's [budget]", 600, 15)


@pytest.mark.parametrize(
    ("needed", "which"), [(Usage(5, 1), None), (Usage(6, 0), "a"), (Usage(0, 2), "b"), (Usage(5, 2), "b")]
)
def test_the_first_bound_that_does_not_hold_it_is_named(needed: Usage, which: str | None) -> None:
    short = survey.too_small([Room("a", 5, None), Room("b", None, 1)], needed)
    assert (short.source if short else None) == which


def test_the_script_reads_a_real_directory(tmp_path: Path) -> None:
    inputs = tmp_path / "it's staging" / "segue" / "_inputs"
    inputs.mkdir(parents=True)
    (inputs / "a.tar").write_bytes(b"12345")
    (inputs / "b c.tar").write_bytes(b"1")
    run = tmp_path / "it's staging" / "segue" / "run"
    run.mkdir()
    (run / "x").write_bytes(b"12")
    staging = str(tmp_path / "it's staging")
    done = subprocess.run(["/bin/sh"], input=survey.script(staging, "run"), capture_output=True, text=True, check=True)
    found = survey.read(done.stdout.splitlines(), staging)
    assert found.archives == {"a.tar": 5, "b c.tar": 1}
    assert found.used is not None and (found.used.items, found.run.items) == (7, 2)
    assert found.free is not None and found.free.bytes


def write(path: Path, text: str) -> Path:
    path.write_text(f'name = "demo"\nsteps = 5\n{text}\n[trainer]\nrecipe = "reference"\n')
    return path


@pytest.mark.parametrize(
    ("text", "host", "staging"),
    [
        ('user = "bbadger"', "bbadger@transfer.chtc.wisc.edu", STAGING),
        ('transfer_host = "bbadger@other.example.edu"', "bbadger@other.example.edu", STAGING),
        ('user = "ab"\ntransfer_host = "bbadger@other.example.edu"', "bbadger@other.example.edu", "/staging/a/ab"),
        ('staging = "/staging/groups/lab"', "transfer.chtc.wisc.edu", "/staging/groups/lab"),
    ],
)
def test_where_staging_is_behind_the_transfer_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, host: str, staging: str
) -> None:
    monkeypatch.delenv("STAGING", raising=False)
    found = destination(write(tmp_path / "run.toml", text))
    assert (found.host, str(found.staging)) == (host, staging)


def test_on_the_transfer_host_itself_and_where_staging_is_mounted_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STAGING", raising=False)
    path = write(tmp_path / "run.toml", "")
    assert destination(path, mounted=True).host == ""
    monkeypatch.setattr(socket, "getfqdn", lambda: "transfer.chtc.wisc.edu")
    found = destination(path)
    assert found.host == "" and found.staging == Path("/staging") / getpass.getuser()[0] / getpass.getuser()
    assert not found.makes_staging


@pytest.mark.parametrize(
    ("code", "said", "says"),
    [
        (11, "rsync: [receiver] write failed on x: No space left on device (28)", "its disk is full"),
        (11, "rsync: write failed on x: Disk quota exceeded (122)", "its quota is used up"),
        (12, "bash: rsync: command not found\nrsync: connection unexpectedly closed", "has no rsync"),
        (2, "protocol version mismatch -- is your shell clean?", "prints something when it starts"),
        (23, 'rsync: [sender] open "/x" failed: Permission denied (13)', "does not let you write or read"),
        (23, 'rsync: [sender] link_stat "/x" failed: No such file or directory (2)', "is gone"),
        (30, "rsync error: timeout in data send/receive (code 30)", "goes on from there"),
        (255, "Connection reset by peer", "goes on from there"),
        (-9, "", "interrupted"),
        (4, "strange", "exit 4): strange"),
    ],
)
def test_rsyncs_words_become_one_sentence(code: int, said: str, says: str) -> None:
    assert says in str(rsync.explain("host", said, code, "host:/x"))


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("ssh: connect to host x port 22: Connection timed out", "VPN"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "is not the one that ssh knows",
        ),
        ("Received disconnect: Too many authentication failures", "IdentityFile"),
        ("kex_exchange_identification: Connection closed by remote host", "by hand"),
    ],
)
def test_sshs_words_become_one_sentence(said: str, says: str) -> None:
    assert says in str(ssh.refused("host", said, 255))


def test_the_ssh_program_is_split_as_a_shell_would(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["ssh", "-F", "/a dir/config"]
    monkeypatch.setenv("SEGUE_SSH", shlex.join(words))
    assert ssh.program() == words
    monkeypatch.setenv("SEGUE_SSH", " ")
    assert ssh.program() == ["ssh"]
