"""`segue login` and `segue wandb sync`."""

from __future__ import annotations

import io
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.config import JobConfig, Wandb, dump
from cli.login import command as login
from cli.main import main
from cli.wandb import sync as sync_click
from cli.wandb import sync_command, unpack
from tests.agent.wandb_server import WandbServer

KEY = "n0tAkey" * 5


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path


def test_login_keeps_the_key_for_its_owner_alone(home: Path) -> None:
    result = CliRunner().invoke(login, input=KEY + "\n")
    path = home / "config" / "segue" / "wandb.key"
    assert result.exit_code == 0, result.output
    assert path.read_text() == KEY + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KEY not in result.output


def test_login_refuses_what_is_no_key_without_repeating_it(home: Path) -> None:
    result = CliRunner().invoke(login, input="two words\n")
    assert "no W&B key" in str(result.exception)
    assert "two words" not in str(result.exception)
    assert not (home / "config").exists()


def test_login_that_cannot_write_is_a_failure_and_no_bad_input(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (home / "config").write_text("a file where the directory would be")
    monkeypatch.setattr("sys.stdin", io.StringIO(KEY + "\n"))
    assert main(["login"]) == 1
    assert "cannot be written" in capfd.readouterr().err


def offline_archive(path: Path, *names: str) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"data"))


def test_offline_runs_of_all_attempts_are_found(tmp_path: Path) -> None:
    offline_archive(tmp_path / "000001.tar", "wandb/offline-run-1-x/run-x.wandb")
    offline_archive(tmp_path / "000002.tar", "wandb/offline-run-2-x/run-x.wandb")
    work = tmp_path / "work"
    work.mkdir()
    runs = [run for part in unpack(sorted(tmp_path.glob("*.tar")), work) for run in part.runs]
    assert [run.name for run in runs] == ["offline-run-1-x", "offline-run-2-x"]
    assert all((run / "run-x.wandb").read_bytes() == b"data" for run in runs)


def test_an_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    offline_archive(tmp_path / "000001.tar", "../../escaped", "wandb/offline-run-1-x/f")
    work = tmp_path / "work"
    work.mkdir()
    assert [len(part.runs) for part in unpack([tmp_path / "000001.tar"], work)] == [1]
    assert not (tmp_path / "escaped").exists() and not (tmp_path.parent / "escaped").exists()


def test_all_parts_go_to_the_runs_one_id_and_the_key_is_no_argument(tmp_path: Path) -> None:
    command = sync_command(Wandb("arm", "plain-1", entity="lab"), [tmp_path / "offline-run-1-x"])
    assert command[command.index("--id") + 1] == "plain-1"
    assert command[command.index("--entity") + 1] == "lab"
    assert KEY not in command


def workflow(directory: Path, wandb: Wandb | None) -> Path:
    (directory / "flow").mkdir()
    job = JobConfig("plain", str(directory / "staging"), 10, "command", wandb=wandb)
    (directory / "flow" / "job.json").write_text(dump(job))
    return directory / "flow"


def test_sync_says_what_is_missing(home: Path) -> None:
    result = CliRunner().invoke(sync_click, [str(workflow(home, None))])
    assert "no [wandb] table" in str(result.exception)


def test_sync_without_offline_files_is_fine(home: Path) -> None:
    result = CliRunner().invoke(sync_click, [str(workflow(home, Wandb("arm", "x")))])
    assert result.exit_code == 0
    assert "nothing was written offline" in result.output


def test_sync_wants_a_key(home: Path) -> None:
    place = workflow(home, Wandb("arm", "x"))
    (home / "staging" / "segue" / "plain" / "wandb").mkdir(parents=True)
    offline_archive(home / "staging" / "segue" / "plain" / "wandb" / "000001.tar", "wandb/offline-run-1-x/f")
    result = CliRunner().invoke(sync_click, [str(place)])
    assert "segue login" in str(result.exception)


class TestWhatIsSentIsRemoved:
    """W&B's client is stood in for: what it does to the server is its own business."""

    @pytest.fixture
    def archives(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        workflow(home, Wandb("arm", "x"))
        (home / "config" / "segue").mkdir(parents=True)
        (home / "config" / "segue" / "wandb.key").touch(mode=0o600)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        place = home / "staging" / "segue" / "plain" / "wandb"
        place.mkdir(parents=True)
        offline_archive(place / "000001.tar", "wandb/offline-run-1-x/f")
        return place

    def client(self, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
        monkeypatch.setattr("cli.wandb.sync_command", lambda wandb, runs: ["sh", "-c", does, "sh", *map(str, runs)])

    def test_archive_goes_once_it_was_sent(self, home: Path, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client(monkeypatch, "test $# = 1")
        assert main(["wandb", "sync", str(home / "flow"), "--keep"]) == 0
        assert (archives / "000001.tar").exists()
        assert main(["wandb", "sync", str(home / "flow")]) == 0
        assert list(archives.iterdir()) == []

    def test_the_run_gets_run_tomls_name_where_its_trainer_gave_it_another(
        self, home: Path, archives: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.client(monkeypatch, f'test "$WANDB_BASE_URL" = "$(cat {home}/url)"')
        with WandbServer("exp", ["own"]) as server:
            (home / "url").write_text(server.url)
            job = JobConfig(
                "plain", str(home / "staging"), 10, "openpi", wandb=Wandb("arm", "x", name="cup", tags=("t",))
            )
            (home / "flow" / "job.json").write_text(dump(replace(job, env={"WANDB_BASE_URL": server.url})))
            assert main(["wandb", "sync", str(home / "flow"), "--keep"]) == 0
            assert (server.run["displayName"], server.run["tags"]) == ("cup", ["own", "t"])
            server.down = True
            assert main(["wandb", "sync", str(home / "flow")]) == 0
        assert "segue: warning: W&B's run did not get the name and tags" in capfd.readouterr().err
        assert list(archives.iterdir()) == []

    def test_server_that_nothing_names_is_left_to_the_clients_settings(
        self, home: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WANDB_BASE_URL", raising=False)
        self.client(monkeypatch, 'test -z "${WANDB_BASE_URL+set}"')
        assert main(["wandb", "sync", str(home / "flow")]) == 0

    def test_archive_that_the_running_attempt_wrote_again_meanwhile_stays(
        self, home: Path, archives: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        newer = home / "newer.tar"
        offline_archive(newer, "wandb/offline-run-1-x/f", "wandb/offline-run-1-x/g")
        written = newer.read_bytes()
        self.client(monkeypatch, f"mv {newer} {archives / '000001.tar'}")
        assert main(["wandb", "sync", str(home / "flow")]) == 0
        assert "000001.tar was written again meanwhile and stays" in capfd.readouterr().err
        assert (archives / "000001.tar").read_bytes() == written

    def test_archive_without_an_offline_run_stays_and_is_named(
        self, home: Path, archives: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        offline_archive(archives / "000002.tar", "notes.txt")
        self.client(monkeypatch, "test $# = 1")
        assert main(["wandb", "sync", str(home / "flow")]) == 1
        assert "nothing in 000002.tar can be sent" in capfd.readouterr().err
        assert [path.name for path in archives.iterdir()] == ["000002.tar"]
