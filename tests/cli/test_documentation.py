"""The documentation is held against the code: every command, every key of run.toml with its default, every field of the status."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cli.main import COMMANDS
from dagman.attempts import Attempt
from dagman.history import History, Segment
from dagman.spec import Spec
from dagman.status import as_data

ROOT = Path(__file__).parents[2]
DOCS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}


def tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Rows by first cell, by the heading (or sentence ending in a colon) above each table."""
    found: dict[str, dict[str, list[str]]] = {}
    title = ""
    for line in text.splitlines():
        if line.startswith("#") or line.endswith(":"):
            title = line.lstrip("# ").strip()
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(title, {})[cells[0].strip("`")] = cells[1:]
    return found


RUN_TOML = tables(DOCS["run-toml.md"])


def models(model: type[BaseModel], title: str = "Top level") -> Iterator[tuple[str, type[BaseModel]]]:
    yield title, model
    for name, field in model.model_fields.items():
        for part in [field.annotation, *get_args(field.annotation)]:
            if isinstance(part, type) and issubclass(part, BaseModel):
                inside = "" if title == "Top level" else title.strip("[]") + "."
                many = "tuple" in str(field.annotation)
                yield from models(part, f"[[{inside}{name}]]" if many else f"[{inside}{name}]")


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    for title, model in models(Spec):
        for name, field in model.model_fields.items():
            yield title, field.alias or name, field


@pytest.mark.parametrize(
    ("title", "key", "field"), list(fields()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_key_of_run_toml_is_documented_with_its_default(title: str, key: str, field: FieldInfo) -> None:
    assert key in RUN_TOML.get(title, {}), f"docs/run-toml.md, {title}: {key} is missing"
    kind, default, _ = RUN_TOML[title][key]
    value: Any = field.get_default(call_default_factory=True)
    if field.is_required():
        assert default == "–"
    elif value is None or isinstance(value, BaseModel):
        assert default in ("none", "site")
    else:
        shown = {True: "true", False: "false", (): "[]"}.get(value) if not isinstance(value, dict) else "{}"
        assert default == f"`{shown or (repr(value) if not isinstance(value, str) else chr(34) + value + chr(34))}`"
    annotation = str(field.annotation)
    wanted = {"integer": "int", "number": "float", "boolean": "bool", "list": "tuple", "string": "str|Literal"}.get(
        kind.split()[0]
    )
    assert wanted is None or re.search(wanted, annotation), f"{key} is {annotation}, not a {kind}"


def test_no_key_is_documented_that_does_not_exist() -> None:
    known = {(title, key) for title, key, _ in fields()}
    assert {(title, key) for title, rows in RUN_TOML.items() for key in rows} == known


def test_every_command_is_documented() -> None:
    assert set(tables(DOCS["commands.md"])["Commands"]) == {f"segue {command}" for command in COMMANDS}


def test_every_field_of_the_status_is_documented() -> None:
    attempt = Attempt(1, "1.0", 0.0, None, "running")
    segment = Segment(0, "segment_000", "short", "running", None, (attempt,))
    data = as_data(History("run", "running", 1, 0, (segment,), {}, None, ""), 0.0)
    documented = tables(DOCS["status.md"])
    assert set(data) == set(documented["The JSON object (format 1)"])
    assert set(data["segments"][0]) == set(documented["Each of `segments`:"])
    assert set(data["segments"][0]["attempts"][0]) == set(documented["Each of `attempts`:"])
