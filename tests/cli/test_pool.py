"""`segue pool`: what it says; tests/pool has what it does."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Segue


def test_directory_with_a_space_is_quoted_in_the_command_to_copy(segue: Segue, tmp_path: Path) -> None:
    found = segue("pool", "run", "--directory", tmp_path / "my pool", "--", "true")
    assert found.code == 2
    assert f"segue pool up --directory '{tmp_path / 'my pool'}'" in found.sentence()
