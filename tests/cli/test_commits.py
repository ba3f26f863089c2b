"""The commands on a run's store, through the real command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.store import Claimant, Metadata, Store
from cli.commits import commits, prune, verify
from tests.cli.conftest import RUN, Segue
from tests.store.trees import make_checkpoint


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    store = Store(tmp_path / "staging" / "segue" / "reacher")
    claim = store.claim(Claimant(), {})
    for step in (10, 20, 30):
        source = make_checkpoint(tmp_path / str(step), step)
        store.publish(claim, source, Metadata(step, str(step)))
    return store.root


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)


def test_commits_are_listed_in_readers_order(root: Path) -> None:
    done = CliRunner().invoke(commits, [str(root), "--json"])
    assert done.exit_code == 0
    assert [one["step"] for one in json.loads(done.stdout)["commits"]] == [30, 20, 10]
    shown = CliRunner().invoke(commits, [str(root)])
    assert shown.exit_code == 0 and "000000030.e000001.tar" in shown.stdout and "never" in shown.stdout
    assert f"next: segue verify {root}" in shown.stderr


def test_the_room_is_told_by_get_quotas_where_there_is_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "get_quotas"
    tool.write_text(
        "#!/bin/sh\n"
        "echo 'Path Disk_Used(GB) Disk_Limit(GB) Files_Used File_Limit'\n"
        f"echo '{tmp_path / 'staging'} 60 100 990 1000'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    done = CliRunner().invoke(commits, [str(root)])
    source = f"the quota of {tmp_path / 'staging'} (get_quotas)"
    assert f"room: {source} leaves 40.0 GB and 10 items" in done.stderr
    told = json.loads(CliRunner().invoke(commits, [str(root), "--json"]).stdout)["room"]
    assert told == [{"source": source, "bytes": 40_000_000_000, "items": 10}]
    tool.write_text("#!/bin/sh\nexit 1\n")
    told = json.loads(CliRunner().invoke(commits, [str(root), "--json"]).stdout)["room"]
    assert [one["source"] for one in told] == ["the file system"]


def test_the_room_that_killed_publishes_hold_is_told(tmp_path: Path) -> None:
    """Of a run that nobody starts again nothing else would tell it. The command can be pasted, whatever staging is called."""
    (tmp_path / "my staging").mkdir()
    store = Store(tmp_path / "my staging" / "segue" / "run")
    claim = store.claim(Claimant(), {})
    store.publish(claim, make_checkpoint(tmp_path / "10", 10), Metadata(10, "10"))
    assert "publishes that were" not in CliRunner().invoke(commits, [str(store.root)]).stderr
    left = store.root / "checkpoints" / ".000000020.e000001.abcdef.tmp"
    left.write_bytes(bytes(3_000_000))
    assert json.loads(CliRunner().invoke(commits, [str(store.root), "--json"]).stdout)["leftover_bytes"] == 3_000_000
    said = CliRunner().invoke(commits, [str(store.root)]).stderr
    line = next(line for line in said.splitlines() if "publishes that were" in line)
    assert line.startswith("3.0 MB are of publishes that were killed or are under way")
    subprocess.run(["bash", "-c", line.partition("alive, ")[2]], check=True)
    assert not left.exists() and len(store.commits()) == 1


def test_get_quotas_is_believed_whatever_names_the_run(
    segue: Segue, run_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_toml.write_text(RUN)
    assert segue("dag", run_toml).code == 0
    staging = run_toml.parent / "staging"
    Store(staging / "segue" / "run").claim(Claimant(), {})
    monkeypatch.setattr("dagman.quotas.asked", lambda: f"{staging} 60 100 990 1000\n")
    told = json.loads(segue("commits", run_toml, "--json").out)["room"]
    assert told[0] == {"source": f"the quota of {staging} (get_quotas)", "bytes": 40_000_000_000, "items": 10}
    assert "the file system" not in [one["source"] for one in told]


def test_verify_exits_1_with_the_list_of_the_bad(root: Path) -> None:
    good = CliRunner().invoke(verify, [str(root)])
    assert (good.exit_code, good.stdout.count(": good")) == (0, 3)
    flip(root / "checkpoints" / "000000020.e000001.tar")
    bad = CliRunner().invoke(verify, [str(root), "--json"])
    assert bad.exit_code == 1
    assert list(json.loads(bad.stdout)["bad"]) == ["000000020.e000001.tar"]


def test_bad_ones_beside_a_good_one_need_nothing(root: Path) -> None:
    flip(root / "checkpoints" / "000000030.e000001.tar")
    done = CliRunner().invoke(verify, [str(root)])
    assert (done.exit_code, done.stderr) == (
        1, "2 good, 1 bad\na restore skips the bad ones by itself; nothing needs to be removed\n",
    )  # fmt: skip


def test_without_a_good_one_the_run_cannot_go_on_and_verify_says_so(root: Path) -> None:
    for step in (10, 20, 30):
        flip(root / "checkpoints" / f"{step:09d}.e000001.tar")
    done = CliRunner().invoke(verify, [str(root)])
    assert done.exit_code == 1
    counted, told, following = done.stderr.splitlines()
    assert counted == "0 good, 3 bad" and "nothing needs to be removed" not in done.stderr
    assert told.startswith("no restore finds a good one, so the run cannot go on")
    assert f"remove {root}/checkpoints/*.tar and the run begins anew" in told
    # What is offered to paste removes nothing: this machine may be the one that reads badly.
    assert following == f"next: segue verify {root}   # on another machine too: this one may read them badly"


def test_commits_of_a_newer_segue_are_not_said_to_be_worth_removing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent.store.errors import NewerFormat

    def newer(self: Store, commit: object) -> list[str]:
        raise NewerFormat("use a newer segue")

    monkeypatch.setattr(Store, "verify", newer)
    done = CliRunner().invoke(verify, [str(root)])
    assert (done.exit_code, done.stderr) == (
        1, "0 good, 3 bad\nnothing is wrong with what a newer segue wrote: verify it with that one\n",
    )  # fmt: skip


def test_prune_says_first_and_removes_then(root: Path) -> None:
    said = CliRunner().invoke(prune, [str(root), "--keep", "2", "--dry-run", "--json"])
    assert json.loads(said.stdout)["removed"] == ["000000010.e000001.tar"]
    assert len(Store(root).commits()) == 3
    done = CliRunner().invoke(prune, [str(root), "--keep", "2"])
    assert done.exit_code == 0 and "removed 000000010.e000001.tar" in done.stdout
    assert [one.step for one in Store(root).commits()] == [30, 20]


def test_prune_removes_what_was_set_aside_only_when_told(root: Path) -> None:
    aside = root / "checkpoints" / "000000030.e000001.tar.bad-e000002"
    (root / "checkpoints" / "000000030.e000001.tar").rename(aside)
    assert CliRunner().invoke(prune, [str(root), "--keep", "2"]).exit_code == 0
    assert aside.exists()
    assert CliRunner().invoke(prune, [str(root), "--keep", "2", "--set-aside"]).exit_code == 0
    assert not aside.exists()


class TestWhatPruneKeeps:
    @pytest.fixture
    def store(self, segue: Segue, run_toml: Path) -> Path:
        run_toml.write_text(RUN + "[retention]\nkeep = 3\nevery = 20\n")
        assert segue("dag", run_toml).code == 0
        store = Store(run_toml.parent / "staging" / "segue" / "run")
        claim = store.claim(Claimant(), {})
        for step in range(10, 80, 10):
            store.publish(claim, make_checkpoint(run_toml.parent / f"made-{step}", step), Metadata(step, str(step)))
        return Path(store.root)

    def goes(self, segue: Segue, *words: str | Path) -> list[int]:
        return [int(name[:9]) for name in json.loads(segue("prune", *words, "--dry-run", "--json").out)["removed"]]

    def test_it_is_what_run_toml_says_now(self, segue: Segue, store: Path, run_toml: Path) -> None:
        assert self.goes(segue, run_toml) == [10, 30]
        run_toml.write_text(run_toml.read_text().replace("keep = 3", "keep = 5"))
        for run in (run_toml, run_toml.parent / "run"):
            assert self.goes(segue, run) == [10]

    def test_workflow_whose_run_toml_is_somewhere_else_keeps_what_it_was_generated_with(
        self, segue: Segue, store: Path, run_toml: Path
    ) -> None:
        assert segue("dag", run_toml, "--to", run_toml.parent / "far" / "flow").code == 0
        assert self.goes(segue, run_toml.parent / "far" / "flow") == [10, 30]

    def test_stores_own_directory_does_not_know_it_and_asks(self, segue: Segue, store: Path) -> None:
        asked = segue("prune", store)
        assert asked.code == 2 and "give run.toml instead, or --keep K" in asked.sentence()
        told = segue("prune", store, "--keep", "3", "--dry-run")
        assert told.code == 0 and "retention.every and retention.best are not known here" in told.err

    def test_next_command_removes_what_was_shown_and_no_more(self, segue: Segue, store: Path, run_toml: Path) -> None:
        shown = segue("prune", run_toml, "--keep", "6", "--set-aside", "--dry-run")
        following = shown.err.splitlines()[-1].removeprefix("next: segue ")
        assert following == f"prune {run_toml} --keep 6 --set-aside"
        done = segue(*following.split())
        assert done.out == shown.out.replace("would remove", "removed") and done.out.count("\n") == 1


def test_a_path_that_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    from agent.errors import BadInput

    done = CliRunner().invoke(commits, [str(tmp_path / "nothing")])
    assert isinstance(done.exception, BadInput)
