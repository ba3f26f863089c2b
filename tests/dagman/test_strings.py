"""Any string in run.toml reaches the trainer unchanged or is refused: never a macro, never a second command.

Hypothesis writes strings at every key that takes one; the workflow that comes out has the same commands as one of harmless strings.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import htcondor2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from agent.config import JobConfig, parse
from agent.errors import BadInput
from dagman.paths import beside
from dagman.prepare import ask, prepare
from dagman.spec import Spec
from dagman.workflow import Workflow
from tests.dagman.samples import toml

# A site whose inputs travel by URL, so that their names come into submit language.
SITE = """
default_class = "short"
title = "test"
retries = 1
scan_interval_s = 1
avoid_failed_machine = true
[staging]
path = "{directory}/staging"
[[staging.transfers]]
most_bytes = 1_000_000
url = "file://{path}"
[classes.short]
limit_s = 1000
[margin]
fraction = 0.1
least_s = 1
kill_grace_s = 1
[defaults]
step_s = 1
startup_s = 1
restore_s = 1
save_s = 1
publish_s = 1
queue_s = 1
[submit]
segment = ['+Class = "$(class)"']
"""
HARMLESS: dict[str, Any] = {
    "name": "run", "site": "site.toml", "user": "bbadger", "steps": 10, "staging": "staging", "transfer_host": "host", "code": "code",
    "trainer": {"recipe": "command", "python": "python3", "args": ["word", "last"], "env": {"NAME": "value"},
                "options": {"marker": "value", "first": ["value"]}},
    "data": {"dataset": "data", "dataset_target": "inputs/data", "assets": [{"source": "weights", "target": "inputs/w"}]},
    "segments": {"class": "short"},
    "retention": {"best": "loss"},
    "resources": {"requirements": "TARGET.Cpus > 0"},
    "container": {"image": "docker://image:1"},
    "wandb": {"project": "p", "entity": "e", "group": "g", "tags": ["t"], "name": "n", "id": "i", "mode": "offline"},
    "agent": {"carry": ["cache"]},
}  # fmt: skip
# Key of run.toml -> where the string must be found, unchanged, in job.json (None: nowhere, or as part of a path).
PLACES: dict[tuple[str | int, ...], Callable[[JobConfig], str | None] | None] = {
    ("name",): lambda job: job.run,
    ("site",): None,
    ("user",): None,
    ("staging",): None,
    ("transfer_host",): None,
    ("code",): None,
    ("trainer", "recipe"): None,
    ("trainer", "python"): lambda job: job.python,
    ("trainer", "args", 0): lambda job: job.args[0],
    ("trainer", "args", 1): lambda job: job.args[1],
    ("trainer", "env", "NAME"): lambda job: job.env["NAME"],
    ("trainer", "options", "marker"): lambda job: job.options["marker"],
    ("trainer", "options", "first", 0): lambda job: job.options["first"][0],
    ("data", "dataset"): None,
    ("data", "dataset_target"): lambda job: job.inputs[0].target,
    ("data", "assets", 0, "source"): None,
    ("data", "assets", 0, "target"): lambda job: job.inputs[1].target,
    ("data", "assets", 0, "name"): lambda job: job.inputs[1].name,
    ("segments", "class"): None,
    ("retention", "best"): lambda job: job.retention.best,
    ("resources", "requirements"): None,
    ("container", "image"): lambda job: job.fingerprint["image"],
    ("wandb", "project"): lambda job: job.wandb.project if job.wandb else None,
    ("wandb", "entity"): lambda job: job.wandb.entity if job.wandb else None,
    ("wandb", "group"): lambda job: job.wandb.group if job.wandb else None,
    ("wandb", "tags", 0): lambda job: job.wandb.tags[0] if job.wandb else None,
    ("wandb", "name"): lambda job: job.wandb.name if job.wandb else None,
    ("wandb", "id"): lambda job: job.wandb.id if job.wandb else None,
    ("wandb", "mode"): None,
    ("agent", "carry", 0): lambda job: job.carry[0],
}
OUR_MACROS = {"$(segment)", "$(class)"}

HAZARDS = [
    "\n", "\r\n", "\r", "\x0b", "\x85", "\u2028", "$(segment)", "$$(Machine)", "$ENV(HOME)", "$(", "$F(x)", "$CHOICE(0,a,b)",
    "$$([ 1 ])", '"', "'", "\\", "\\\n", "queue 2", "\nqueue 2\n", "\nexecutable = /bin/sh\n", "+Evil = 1", "#", ",", ";", " ", "\t",
    "\0", "SCRIPT PRE segment_000 /bin/sh", "{this}", "{path}", "%s", "é", "機", "🦾", "..", "/", "//", "/*", "`id`", "$HOME", "&&", "=",
    "~", "|",
]  # fmt: skip
STRINGS = st.lists(
    st.sampled_from(HAZARDS) | st.text(alphabet='ab$(")\\ \n.-', min_size=1, max_size=4), min_size=0, max_size=5
).map("".join)


def put(data: dict[str, Any], key: tuple[str | int, ...], value: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(data))
    place: Any = made
    for part in key[:-1]:
        place = place[part]
    place[key[-1]] = value
    return made


def make_file(directory: Path, name: str) -> None:
    """A source under this name, where the disk takes it."""
    try:
        (directory / name).write_text("data")
    except (OSError, ValueError):
        return


def generated(directory: Path, data: Mapping[str, Any]) -> Workflow:
    (directory / "run.toml").write_text(toml(dict(data)), encoding="utf-8")
    return prepare(ask(directory / "run.toml"), directory / "out")


def shape(workflow: Workflow) -> dict[str, list[str]]:
    """The commands of every submit file and the keywords of the DAG, in order; macros are checked on the way."""
    found = {}
    for file in workflow.files:
        if file.path.endswith(".sub"):
            commands = [line for line in file.text.splitlines() if not line.startswith("#")]
            found[file.path] = [line.partition("=")[0] for line in commands]
            assert set(re.findall(r"\$+[A-Za-z]*\([^)]*\)?", file.text)) <= OUR_MACROS
            assert commands.count("queue") == 1 and commands[-1] == "queue"
            read = htcondor2.Submit(file.text)
            found[f"{file.path} as HTCondor reads it"] = sorted(read.keys())
        elif file.path.endswith(".dag"):
            found["dag"] = [" ".join(line.split()[:2]) for line in file.text.splitlines() if not line.startswith("#")]
            assert "$(" not in file.text
    return found


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    from tests.conftest import _fresh

    for made in _fresh("s-"):
        for name in ("data", "weights"):
            (made / name).write_text(name)
        (made / "code").mkdir()
        (made / "code" / "train.py").write_text("pass")
        (made / "staging").mkdir()
        (made / "site.toml").write_text(SITE)
        yield made


def keys_of_strings(model: type[BaseModel], prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key of run.toml that takes a string, from the models themselves; lists at index 0, free tables at no key."""
    for name, field in model.model_fields.items():
        key = (*prefix, field.alias or name)
        parts = [field.annotation, *get_args(field.annotation)]
        tables = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        if tables:
            many = "tuple" in str(field.annotation)
            yield from keys_of_strings(tables[0], (*key, 0) if many else key)
        elif "tuple" in str(field.annotation):
            yield (*key, 0)
        elif any(kind in str(field.annotation) for kind in ("dict", "str", "Literal")):
            yield key


def test_every_key_that_takes_a_string_is_tried() -> None:
    wanted = set(keys_of_strings(Spec))
    tried = set(PLACES) | {("trainer", "env"), ("trainer", "options")}
    assert wanted <= tried, f"add {wanted - tried} to PLACES"


@example(("resources", "requirements"), "true) || (true")
@example(("container", "image"), "image\nqueue 5")
@example(("data", "assets", 0, "source"), "a$(segment),b\nqueue 2")
@example(("trainer", "args", 0), "a\nqueue 5 $(segment) $$(x) $ENV(HOME) \"'\\")
@example(("container", "image"), ".")
@given(st.sampled_from(sorted(PLACES, key=str)), STRINGS)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_string_arrives_unchanged_or_is_refused(place: Path, key: tuple[str | int, ...], text: str) -> None:
    if key in {("data", "dataset"), ("data", "assets", 0, "source")}:
        make_file(place, text)
    (place / "run.staged.json").unlink(missing_ok=True)
    try:
        workflow = generated(place, put(HARMLESS, key, text))
    except BadInput as error:
        said = str(error)
        assert said.splitlines()[0] and "Traceback" not in said and "\0" not in said
        return
    expected = shape(generated(place, HARMLESS))
    found = shape(workflow)
    if key == ("name",):  # the name stands in file names alone
        assert found.keys() == expected.keys()
    assert found == expected
    (job_json,) = (file.text for file in workflow.files if file.path == "job.json")
    arrived = PLACES[key]
    # An image that lies on this machine is named by its absolute path.
    wanted = str(beside(place, text)) if key == ("container", "image") and "://" not in text else text
    if arrived is not None:
        assert arrived(parse(json.loads(job_json))) == wanted


@given(
    st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,5}", fullmatch=True), STRINGS, max_size=4),
    st.lists(STRINGS, max_size=5),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arguments_and_environment_arrive_word_by_word(place: Path, env: dict[str, str], args: list[str]) -> None:
    data = put(HARMLESS, ("name",), "run")
    data["trainer"] |= {"env": env, "args": args}
    try:
        workflow = generated(place, data)
    except BadInput:
        assert any("\0" in word or "{" in word for word in (*args, *env.values())), "only NUL can reach no program"
        return
    (job_json,) = (file.text for file in workflow.files if file.path == "job.json")
    job = parse(json.loads(job_json))
    assert (list(job.args), dict(job.env)) == (args, env)
    others = "".join(file.text for file in workflow.files if file.path.endswith((".sub", ".dag")))
    assert "Evil" not in others and "/bin/sh" not in others


@pytest.fixture(autouse=True)
def _tidy(place: Path) -> Iterator[None]:
    yield
    shutil.rmtree(place / "out", ignore_errors=True)
