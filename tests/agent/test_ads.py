"""The little of the ClassAd language that limits are written in."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.ads import Ad, parse, read

TEXT = """
MachineMaxVacateTime = 10 * 60
JobMaxVacateTime = 30
AllowedJobDuration = ifThenElse(IsShort, 12 * 3600, 24 * 3600)
IsShort = true
Limit = min(My.JobMaxVacateTime, MachineMaxVacateTime)
Ratio = 7 / 2
Negative = -(2 + 3) * 2
Name = "slot1@a \\"b\\""
Choice = Missing =?= undefined ? 5 : 6
Unknown = strcat("a", "b")
Loop = Loop + 1
Broken = 10 * (
Compare = 3 >= 2 && !false
"""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MachineMaxVacateTime", 600),
        ("machinemaxvacatetime", 600),
        ("AllowedJobDuration", 43200),
        ("Limit", 30),
        ("Ratio", 3),
        ("Negative", -10),
        ("Choice", 5),
    ],
)
def test_expressions_of_limits_are_evaluated(name: str, value: float) -> None:
    assert parse(TEXT).number(name) == value


@pytest.mark.parametrize("name", ["Unknown", "Loop", "Broken", "Missing", "Name", "IsShort"])
def test_what_is_no_number_or_not_understood_is_none(name: str) -> None:
    assert parse(TEXT).number(name) is None


def test_texts_and_booleans_keep_their_type() -> None:
    ad = parse(TEXT)
    assert ad.text("Name") == 'slot1@a "b"'
    assert ad.value("Compare") is True


def test_an_absent_file_is_an_empty_ad(tmp_path: Path) -> None:
    assert read(tmp_path / "no.ad") == Ad()
    assert read(None) == Ad()


def test_division_by_zero_is_undefined() -> None:
    assert parse("A = 1 / 0\nB = A + 1\nC = 5 % 0").number("B") is None


@pytest.mark.parametrize(
    "expression", ["5 % 0.5", "9" * 400, "9" * 5000, "(" * 3000 + "1" + ")" * 3000, "int(1e400)", "round(1e999)"]
)
def test_what_cannot_be_computed_is_undefined_and_no_error(expression: str) -> None:
    assert parse(f"MachineMaxVacateTime = {expression}\n").number("MachineMaxVacateTime") is None
