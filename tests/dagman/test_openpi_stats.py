"""What `segue plan` and `segue submit` say of an OpenPI run that nothing gives normalisation statistics to."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import segue
from dagman.foreseen import before_submitting
from dagman.openpi_stats import planned
from dagman.prepare import ask, prepare
from tests.agent.recipes.test_openpi_stats import TEXT

RUN = """
name = "arm"
site = "local"
steps = 100
code = "openpi"
[trainer]
recipe = "openpi"
options = { config = "own" }
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A checkout that ignores `assets/`, as OpenPI's own does, beside a run.toml."""
    configs = tmp_path / "openpi/src/openpi/training/config.py"
    configs.parent.mkdir(parents=True)
    configs.write_text(TEXT)
    (tmp_path / "openpi/.gitignore").write_text("assets/\n")
    subprocess.run(["git", "init", "-q", str(tmp_path / "openpi")], check=True)
    (tmp_path / "run.toml").write_text(RUN)
    return tmp_path


def said(here: Path, text: str = RUN) -> str:
    (here / "run.toml").write_text(text)
    return "\n".join(planned(ask(here / "run.toml").spec, here))


def with_statistics(directory: Path) -> None:
    path = directory / "own/local/arm/norm_stats.json"
    path.parent.mkdir(parents=True)
    path.touch()


def test_plan_and_submit_say_that_the_statistics_will_lack(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = (
        "norm_stats: nothing that travels has assets/own/…/norm_stats.json, where OpenPI's config 'own' reads them, so the job will refuse to "
        "start: set trainer.options.norm_stats = true and they are computed before the first segment"
    )
    planned = CliRunner().invoke(segue, ["plan", str(here / "run.toml"), "--json"])
    assert sentence in json.loads(planned.stdout)["warnings"]
    monkeypatch.setattr("dagman.workflow.check_path", lambda path, what, remedy="": None)
    assert sentence in before_submitting(prepare(ask(here / "run.toml"), here / "workflow", dry_run=True))


def test_those_that_git_ignores_do_not_travel_and_that_is_said(here: Path) -> None:
    with_statistics(here / "openpi/assets")
    assert "(git ignores those in your checkout), where OpenPI's config 'own' reads them" in said(here)
    (here / "openpi/.gitignore").unlink()
    assert said(here) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RUN.replace('"own"', '"own", norm_stats = true'), ""),
        (RUN.replace('"own"', '"base"'), ""),
        (RUN.replace('"own"', '"debug_restore"'), ""),
        (RUN.replace('openpi"\noptions', 'command"\noptions').replace("config", "checkpoints"), ""),
        (RUN + '[[data.assets]]\nsource = "openpi"\ntarget = "assets/own"\n', ""),
        (RUN.replace('code = "openpi"', 'code = "nowhere"'), ""),
        (
            RUN.replace('"own"', '"imported"'),
            "unless config 'imported' reads others, set trainer.options.norm_stats = true",
        ),
        (
            RUN.replace('code = "openpi"', ""),
            "unless the image's checkout has them, set trainer.options.norm_stats = true",
        ),
    ],
)
def test_what_may_be_found_elsewhere_is_said_with_that_doubt_or_not_at_all(here: Path, text: str, words: str) -> None:
    found = said(here, text)
    assert words in found and bool(words) == bool(found)
