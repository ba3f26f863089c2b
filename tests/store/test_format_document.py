"""docs/format.md names the tests that hold each invariant; the names must exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.store.mutants import MUTANTS

HERE = Path(__file__).parent
TEXT = (HERE.parents[1] / "docs" / "format.md").read_text(encoding="utf-8")


def test_every_test_that_the_format_names_exists() -> None:
    functions = {
        name for path in HERE.glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))
    }
    named = set(re.findall(r"::(test_\w+)", TEXT))
    assert len(named) > 10 and named <= functions
    assert all((HERE / name).exists() for name in re.findall(r"`(test_\w+\.py)", TEXT))


def test_every_invariant_has_a_row_and_every_mutant_a_place() -> None:
    rows = re.findall(r"^\| (I\d) \| (.*)", TEXT, re.MULTILINE)
    assert [number for number, _ in rows] == [f"I{number}" for number in range(1, 9)]
    assert all("**must**" in row and "test_" in row for _, row in rows)
    assert all(f"`{mutant.__name__}`" in TEXT for mutant in MUTANTS)
