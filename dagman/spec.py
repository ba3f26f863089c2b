"""run.toml: what the user asks for, checked whole before anything is done.

Two strings stand in HTCondor's submit language, `container.image` and `resources.requirements`: they are refused when they hold a line end
or a macro. All others travel in job.json and reach the trainer unchanged. docs/run-toml.md is the reference for users.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    field_validator,
    model_validator,
)

from agent.errors import BadInput
from dagman.paths import absolute
from dagman.site import LEAST_STEP_S, MOST_S
from dagman.toml import explain, read_toml

MOST_GB = 1e9
RECIPES = ("reference", "openpi", "openpi-pytorch", "lerobot", "command")
_SECRETS = r"(?:(?:API|ACCESS|PRIVATE|SIGNING|DEPLOY|AUTH|SSH|WANDB|HF)_?KEY|TOKEN(?![A-Z])|SECRET|PASSW(?:ORD)?|PASSPHRASE|CREDENTIAL)"
_SECRET = re.compile(_SECRETS, re.IGNORECASE)
# Of an option only the end counts: --max-token-len is none.
_SECRET_OPTION = re.compile(rf"{_SECRETS}S?(?:_ID)?$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_ACCOUNT = r"^[a-z0-9][a-z0-9._-]*$"
_HOST = r"^[A-Za-z0-9][A-Za-z0-9.@_-]*$"
_INPUT = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_WANDB_ID = r"^[A-Za-z0-9_-]{1,64}$"
_FORMS = {
    _NAME: "letters, digits, dot, underscore or hyphen, at most 64, the first a letter or a digit",
    _ACCOUNT: "an account's name: lower-case letters, digits, dot, underscore or hyphen",
    _HOST: "a host's name, or user@host",
    _INPUT: "letters, digits, dot, underscore or hyphen, the first a letter or a digit",
    _WANDB_ID: "letters, digits, underscore or hyphen, at most 64",
}


def _for_submit(text: str) -> str:
    if any(char < " " or char in "\x7f\x85\u2028\u2029" for char in text):
        raise ValueError(
            "must be one line without control characters: in a submit description a second line would be a second command"
        )
    if "$" in text or text.endswith("\\"):
        raise ValueError(
            "must not hold $ nor end in a backslash: HTCondor would expand the one and join lines at the other"
        )
    if text != text.strip() or not text:
        raise ValueError("must not be empty, nor begin or end with a blank")
    return text


def _image(text: str) -> str:
    if set(text) & set(" \"',;"):
        raise ValueError("must not hold a blank, a quote, a comma or a semicolon")
    return text


def _expression(text: str) -> str:
    from classad2 import ClassAdException, ExprTree

    if "//" in text or "/*" in text:
        raise ValueError("must not hold a comment (// or /*)")
    try:
        # Alone and in parentheses: it must be one expression, and nothing may follow its end.
        ExprTree(text)
        ExprTree(f"({text})")
    except ClassAdException:
        raise ValueError(
            'is not a ClassAd expression; one is: TARGET.CUDADriverVersion >= 12 && regexp("H100|H200", TARGET.GPUs_DeviceName)'
        ) from None
    return text


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character: no program can be given one")
    return text


def _as_json(value: Any, place: str = "") -> Any:
    """Options travel in job.json: what JSON does not know, or no program can be given, is refused by name."""
    if isinstance(value, dict):
        return {key: _as_json(entry, f"{place}.{key}" if place else key) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(entry, f"{place}[{number}]") for number, entry in enumerate(value)]
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{place} must not hold a NUL character: no program can be given one")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} must be a finite number")
    if not isinstance(value, str | int | float | bool):
        raise ValueError(f"{place} is a date or time; write it as a string")
    return value


SubmitText = Annotated[str, AfterValidator(_for_submit)]
Image = Annotated[SubmitText, AfterValidator(_image)]
Requirements = Annotated[SubmitText, AfterValidator(_expression)]
Text = Annotated[str, AfterValidator(_no_nul)]
Named = Annotated[Text, Field(min_length=1)]
Options = Annotated[dict[str, Any], AfterValidator(_as_json)]
Texts = Annotated[tuple[Text, ...], Strict(False)]


def _a_step(seconds: float) -> float:
    if seconds < LEAST_STEP_S:
        raise ValueError("must be 0.000001 or more: no step of a training takes less")
    return seconds


Seconds = Annotated[float, Field(ge=0, le=MOST_S)]
StepSeconds = Annotated[float, Field(gt=0, le=MOST_S), AfterValidator(_a_step)]


def _relative_target(text: str) -> str:
    parts = Path(text).parts
    if not parts or Path(text).is_absolute() or ".." in parts:
        raise ValueError("must be a path relative to the job's scratch directory, without ..")
    if parts[0] in (".segue", "checkpoints", "logs"):
        raise ValueError(f"must not lie under {parts[0]}/, which belongs to the agent or the trainer")
    return text


Target = Annotated[Text, AfterValidator(_relative_target)]


class _Table(BaseModel):
    # TOML has types: "400" is no number, and true is none either.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Trainer(_Table):
    """How training is started. ``args`` are given to the trainer word by word; ``options`` are the recipe's own (docs/recipes.md)."""

    recipe: Literal["reference", "openpi", "openpi-pytorch", "lerobot", "command"]
    python: Named | None = None
    args: Texts = ()
    env: dict[str, Text] = Field(default_factory=dict)
    options: Options = Field(default_factory=dict)

    @field_validator("env")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not a name of an environment variable")
            if _SECRET.search(name):
                raise ValueError(
                    f"{name} looks like a secret, and run.toml is copied into jobs: for W&B use `segue login`"
                )
            if name.startswith(("SEGUE_", "_CONDOR_")):
                raise ValueError(f"{name} is set by the agent or by HTCondor")
        return value


class Asset(_Table):
    """A file or directory that jobs need: ``source`` here (relative to run.toml), ``target`` in the job's scratch directory."""

    source: Named
    target: Target
    name: Annotated[str, Field(pattern=_INPUT)] | None = None


class Data(_Table):
    """What is staged once. ``dataset``: a directory or file; ``dataset_target``: where the recipe looks unless said otherwise."""

    dataset: Named | None = None
    dataset_target: Target | None = None
    assets: Annotated[tuple[Asset, ...], Strict(False)] = ()


class Segments(_Table):
    """The chain. ``class``: of the site; ``count``: instead of the plan's estimate; ``reserve``: segments beyond it."""

    queue_class: str | None = Field(default=None, alias="class")
    count: int | None = Field(default=None, ge=1, le=10_000)
    reserve: int | None = Field(default=None, ge=0, le=10_000)
    save_interval: int | None = Field(default=None, ge=1)
    resumable: bool = False


class PaceGuess(_Table):
    """Seconds, where the user knows them; the site's estimates otherwise, measurements as soon as there are any."""

    step_s: StepSeconds | None = None
    startup_s: Seconds | None = None
    restore_s: Seconds | None = None
    save_s: Seconds | None = None
    publish_s: Seconds | None = None


class Retention(_Table):
    """Commits to keep in staging: the newest ``keep``, the first at or after each multiple of ``every``, the best by the metric ``best``."""

    keep: int = Field(default=2, ge=2)
    every: int | None = Field(default=None, ge=1)
    best: Named | None = None


class Budget(_Table):
    """What the run may occupy in staging. ``checkpoint_gb``: what one checkpoint takes, so that the plan can say whether it fits."""

    gb: float | None = Field(default=None, gt=0, le=MOST_GB)
    items: int | None = Field(default=None, ge=12)
    checkpoint_gb: float | None = Field(default=None, gt=0, le=MOST_GB)


class ResourceRequest(_Table):
    """What a segment asks of a machine, and ``helper_memory_mb`` what the other nodes do; memory and disk in MB."""

    gpus: int | None = Field(default=None, ge=0)
    cpus: int | None = Field(default=None, ge=1)
    memory_mb: int | None = Field(default=None, ge=1)
    disk_mb: int | None = Field(default=None, ge=1)
    helper_memory_mb: int | None = Field(default=None, ge=1)
    gpu_memory_mb: int | None = Field(default=None, ge=1)
    gpu_capability: float | None = Field(default=None, gt=0)
    requirements: Requirements | None = None


class Container(_Table):
    """The image jobs run in: `docker://…`, a .sif file or a sandbox directory that the machines see."""

    image: Image
    transfer: bool = True


class WandbTable(_Table):
    """Weights & Biases; the key comes from `segue login` or ~/.netrc, never from here."""

    project: Named
    entity: Named | None = None
    group: Named | None = None
    tags: Annotated[tuple[Named, ...], Strict(False)] = ()
    name: Named | None = None
    id: Annotated[str, Field(pattern=_WANDB_ID)] | None = None
    mode: Literal["auto", "online", "offline"] = "auto"
    oauth: bool = False


class AgentTable(_Table):
    """The agent's own settings, in seconds unless named otherwise."""

    telemetry_s: float = Field(default=15.0, gt=0, le=MOST_S)
    hang_factor: float = Field(default=20.0, gt=1, le=MOST_S)
    hang_min_s: float = Field(default=300.0, gt=0, le=MOST_S)
    margin_s: Seconds | None = None
    carry: Annotated[tuple[Target, ...], Strict(False)] = ()
    checkpoint_exit: bool = False
    publish_mb_per_s: float | None = Field(default=None, ge=50)


def secret_options(args: Sequence[str]) -> list[str]:
    """Options among the trainer's arguments whose names look like those of secrets; never their values."""
    names = [text.partition("=")[0] for text in args if text.startswith("-")]
    return [name for name in names if _SECRET_OPTION.search(name.replace("-", "_"))]


def name_problem(name: str) -> str | None:
    """Why this cannot name a run, which is a directory in staging and begins the names of files; None when it can."""
    if not re.fullmatch(_NAME, name):
        return f"must be {_FORMS[_NAME]}"
    if name.endswith((".tar", ".toml", ".dag")) or ".." in name:
        return "must not end in .tar, .toml or .dag, nor hold two dots in a row"
    return None


class Spec(_Table):
    """run.toml."""

    name: str = Field(pattern=_NAME)
    site: Named = "chtc"
    user: Annotated[str, Field(pattern=_ACCOUNT)] | None = None
    steps: int = Field(ge=1, le=999_999_999)
    staging: Named | None = None
    transfer_host: Annotated[str, Field(pattern=_HOST)] | None = None
    code: Named | None = None
    trainer: Trainer
    data: Data = Data()
    segments: Segments = Segments()
    pace: PaceGuess = PaceGuess()
    retention: Retention = Retention()
    budget: Budget = Budget()
    resources: ResourceRequest = ResourceRequest()
    container: Container | None = None
    wandb: WandbTable | None = None
    agent: AgentTable = AgentTable()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        wrong = name_problem(value)
        if wrong is not None:
            raise ValueError(wrong)
        return value

    @model_validator(mode="after")
    def _together(self) -> Spec:
        if self.agent.checkpoint_exit and self.staging:
            raise ValueError(
                "agent.checkpoint_exit is for sites without a mounted staging: take `staging` out, or checkpoint_exit"
            )
        return self


def _allowed_keys() -> dict[str, list[str]]:
    tables: dict[str, type[BaseModel]] = {"": Spec, "data.assets": Asset}
    for name, entry in Spec.model_fields.items():
        for part in getattr(entry.annotation, "__args__", (entry.annotation,)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                tables[name] = part
    return {table: [entry.alias or key for key, entry in model.model_fields.items()] for table, model in tables.items()}


def load_spec(path: Path) -> Spec:
    """Read and check a run.toml; BadInput names file, key and what is allowed, all findings at once."""
    data = read_toml(path)
    if not data:
        raise BadInput(f"{path}: is empty, or holds comments alone; `segue init` writes one to start from")
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        raise BadInput(explain(error, str(path), _allowed_keys(), _FORMS)) from None


def workflow_directory(spec: Spec, run_toml: Path) -> Path:
    """Where `segue dag` writes unless told otherwise: beside run.toml, named as the run; absolute."""
    return absolute(run_toml).parent / spec.name
