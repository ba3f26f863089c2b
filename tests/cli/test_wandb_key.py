"""The key that travels: of `segue login`, else the newest of ~/.netrc; nothing is written to look at a workflow, and a lack of it is said."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from dagman.wandb_key import from_netrc, key_file, write_key
from tests.cli.conftest import RUN, Segue

OLD, NEW = "0ld" * 10, "n3w" * 10
WITH_WANDB = RUN + '[data]\ndataset = "data"\n[wandb]\nproject = "arm"\n'


@pytest.fixture
def home(run_toml: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a run that reports to W&B."""
    here = run_toml.parent
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "config"))
    monkeypatch.setenv("NETRC", str(here / "netrc"))
    (here / "data").write_text("x")
    run_toml.write_text(WITH_WANDB)
    return here


def netrc(home: Path, key: str) -> None:
    (home / "netrc").write_text(f"machine api.wandb.ai login user password {key}\n")
    (home / "netrc").chmod(0o600)


def test_either_host_of_wandbs_service_has_the_key_and_no_other(home: Path) -> None:
    lines = {
        "old": f"machine api.wandb.ai login user password {OLD}\n",
        "new": f"machine api.forge.coreweave.com login user password {NEW}\n",
        "other": "machine example.org login user password zebra\ndefault login user password zebra\n",
    }
    for told, found in ((("old",), OLD), (("new",), NEW), (("old", "new", "other"), NEW), (("other",), None)):
        (home / "netrc").write_text("".join(lines[one] for one in told))
        assert from_netrc() == found


def test_new_key_of_netrc_is_taken_and_that_of_login_goes_before_it(home: Path) -> None:
    netrc(home, OLD)
    path = key_file()
    assert path is not None and path.read_text().strip() == OLD
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    netrc(home, NEW)
    assert key_file() == path and path.read_text().strip() == NEW
    own = write_key("own" * 10)
    assert key_file() == own != path


def test_dry_run_writes_neither_key_nor_record(segue: Segue, home: Path) -> None:
    netrc(home, OLD)
    before = sorted(home.rglob("*"))
    shown = segue("dag", home / "run.toml", "--dry-run")
    assert shown.code == 0 and "wandb.netrc.key" in shown.out and OLD not in shown.out
    assert segue("plan", home / "run.toml").code == 0
    assert sorted(home.rglob("*")) == before
    assert segue("dag", home / "run.toml").code == 0
    assert (home / "config/segue/wandb.netrc.key").is_file() and (home / "run.staged.json").is_file()


@pytest.mark.parametrize("command", ["plan", "dag"])
def test_no_key_is_said(segue: Segue, home: Path, command: str) -> None:
    said = segue(command, home / "run.toml").err
    assert "wandb: there is no key on this machine" in said and "run `segue login`" in said
    (home / "run.toml").write_text(WITH_WANDB + 'mode = "offline"\n')
    assert "no key" not in segue(command, home / "run.toml").err


def test_key_that_others_can_read_is_foreseen(segue: Segue, home: Path) -> None:
    write_key(OLD).chmod(0o644)
    assert "chmod 600" in segue("plan", home / "run.toml").err
    assert "chmod 600" in segue("dag", home / "run.toml").sentence()
    assert "chmod 600" in json.loads(segue("plan", home / "run.toml", "--json").out)["refused"][0]
