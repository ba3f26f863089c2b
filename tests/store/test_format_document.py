"""docs/format.md names the tests that hold each invariant; the names must exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.store.mutants import MUTANTS

HERE = Path(__file__).parent
TEXT = (HERE.parents[1] / "docs" / "format.md").read_text(encoding="utf-8")


def test_every_test_that_the_format_names_exists_where_it_says() -> None:
    there = {
        f"{path.name}::{name}"
        for path in HERE.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+\.py::test_\w+)`", TEXT))
    assert len(named) > 50 and named <= there
    beside = {"test_format_document.py", "test_histories.py"}
    unnamed = {one for one in there - named if one.partition("::")[0] not in beside}
    assert unnamed <= {
        "test_store.py::test_nothing_to_restore_before_the_first_commit",
        "test_store.py::test_verify_names_what_is_wrong_and_remembers_when_it_was_good",
        "test_corruption.py::test_restoring_twice_gives_the_same_and_replaces_what_was_there",
        "test_shared_disk.py::test_a_commit_whose_attributes_are_hidden_is_listed_all_the_same",
    }, "what does a new test hold? Name it in the table"


def test_every_invariant_says_must_or_should_and_is_held_by_tests() -> None:
    rows = re.findall(r"^\| (I\d(?:\.\d)?) \| (\S+) \| (.*)", TEXT, re.MULTILINE)
    numbers = [number for number, _, _ in rows]
    assert [number for number in numbers if "." not in number] == [f"I{number}" for number in range(1, 9)]
    assert numbers == sorted(set(numbers))
    assert all(kind in ("**must**", "**should**") and "::test_" in row for _, kind, row in rows)
    assert all(f"`{mutant.__name__}`" in TEXT for mutant in MUTANTS)
