"""docs/shipping.md names every option and every field that the two commands have."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from tests.shipping.checkpoints import archive
from tests.shipping.conftest import Run

PAGE = (Path(__file__).parents[2] / "docs" / "shipping.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["stage", "pull"])
def test_every_option_is_documented(name: str) -> None:
    import cli.pull
    import cli.stage

    command = {"stage": cli.stage.command, "pull": cli.pull.command}[name]
    options = [word for entry in command.params if isinstance(entry, click.Option) for word in entry.opts]
    assert [word for word in options if word not in PAGE] == []


def test_every_field_of_the_json_is_documented(run: Run, tmp_path: Path) -> None:
    archive(run.staging, tmp_path, step=100, label="100")
    staged, pulled = run.json("stage"), run.json("pull", "--to", str(tmp_path / "robot"))
    for key in (*staged, *staged["inputs"][0], *pulled):
        assert f'"{key}"' in PAGE
