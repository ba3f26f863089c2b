"""What the agent and the jobs are told: job.json, written by dagman.workflow and read here (docs/architecture.md).

Unknown keys are ignored, because a newer generator may know more; missing ones take the default. No string of the user's run.toml
reaches a trainer by any other road, so nothing has to be quoted for submit language.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from agent.errors import BadInput, CannotRead

FORMAT = 1
STORE_NAME = "segue-store"
"""The store's directory where no staging is mounted: in the job's scratch and in the workflow directory; HTCondor moves it."""
T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """How long things take here, in seconds: one step, the blocking and unblocking parts of a save, a publish, a restore, and the
    trainer's start up to its first step. Estimates at first, measurements from the first commit on.
    """

    step_s: float = 1.0
    save_s: float = 5.0
    publish_s: float = 30.0
    restore_s: float = 30.0
    startup_s: float = 60.0


@dataclass(frozen=True)
class InputArchive:
    """One archive in staging. ``sha256`` is of the whole archive, ``bytes`` its size; ``target`` is relative to the scratch directory.

    ``source`` is the original's absolute path on the access point, empty where jobs cannot see it. ``travels``: how it reaches the job's
    scratch directory: "" it is read from mounted staging, "plain" HTCondor brings it from the workflow directory (it is not in staging),
    else the URL by which HTCondor brings it from staging. ``about``: of code, what `git describe` says.
    """

    name: str
    archive: str
    sha256: str
    bytes: int
    target: str
    source: str = ""
    travels: str = ""
    about: str = ""


@dataclass(frozen=True)
class RetentionRule:
    """Commits to keep: the newest ``keep``, the first at or after each multiple of ``every``, and the best by ``best`` (a metric's name)."""

    keep: int = 2
    every: int | None = None
    best: str | None = None


@dataclass(frozen=True)
class BudgetRule:
    """What the run may occupy in staging; None: no bound of its own."""

    bytes: int | None = None
    items: int | None = None


@dataclass(frozen=True)
class Wandb:
    """One Weights & Biases run over all segments; the key itself is never here."""

    project: str
    id: str
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    name: str | None = None
    mode: str = "auto"
    key_file: str | None = None


@dataclass(frozen=True)
class ClassLimit:
    """A queue class as a job sees it: the longest execution in seconds."""

    limit_s: float


@dataclass(frozen=True)
class JobConfig:
    """job.json."""

    run: str
    staging: str
    steps: int
    recipe: str
    python: str = "python3"
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[InputArchive, ...] = ()
    code: InputArchive | None = None
    classes: Mapping[str, ClassLimit] = field(default_factory=dict)
    margin_s: float = 300.0
    kill_grace_s: float = 20.0
    pace: Pace = Pace()
    save_interval: int | None = None
    retention: RetentionRule = RetentionRule()
    budget: BudgetRule = BudgetRule()
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    accept_change: tuple[str, ...] = ()
    wandb: Wandb | None = None
    telemetry_s: float = 15.0
    hang_factor: float = 20.0
    hang_min_s: float = 300.0
    carry: tuple[str, ...] = ()
    checkpoint_exit: bool = False
    publish_bytes_per_s: float | None = None
    format: int = FORMAT

    @property
    def store_root(self) -> Path:
        """The run's directory in staging; without a mounted staging one relative to the job's scratch directory (or the workflow's)."""
        return Path(STORE_NAME) if self.checkpoint_exit else Path(self.staging) / "segue" / self.run

    def store_seen_from(self, workflow: Path) -> Path:
        """The run's store on the access point; ``workflow`` is the workflow directory."""
        return workflow / self.store_root

    @property
    def inputs_root(self) -> Path:
        """Where input archives lie in staging, shared by all runs of a user."""
        return Path(self.staging) / "segue" / "_inputs"


def _known(cls: type[T], data: Mapping[str, Any]) -> T:
    names = {entry.name for entry in fields(cls)}  # type: ignore[arg-type]
    return cls(**{key: value for key, value in data.items() if key in names})


def parse(data: Mapping[str, Any]) -> JobConfig:
    """A JobConfig from job.json's parsed content; BadInput when something needed is missing or the format is newer."""
    number = data.get("format", FORMAT)
    if not isinstance(number, int) or number > FORMAT:
        raise BadInput(
            f"job.json has format {number!r}, this agent reads up to {FORMAT}: generate the workflow again with `segue dag`"
        )
    values: dict[str, Any] = dict(data)
    try:
        values["args"] = tuple(values.get("args", ()))
        values["inputs"] = tuple(_known(InputArchive, entry) for entry in values.get("inputs") or ())
        values["code"] = _known(InputArchive, values["code"]) if values.get("code") else None
        values["classes"] = {name: _known(ClassLimit, entry) for name, entry in (values.get("classes") or {}).items()}
        values["pace"] = _known(Pace, values.get("pace") or {})
        values["retention"] = _known(RetentionRule, values.get("retention") or {})
        values["budget"] = _known(BudgetRule, values.get("budget") or {})
        values["accept_change"] = tuple(values.get("accept_change") or ())
        values["carry"] = tuple(values.get("carry") or ())
        if values.get("wandb"):
            wandb = dict(values["wandb"])
            wandb["tags"] = tuple(wandb.get("tags") or ())
            values["wandb"] = _known(Wandb, wandb)
        return _known(JobConfig, values)
    except (TypeError, AttributeError) as error:
        raise BadInput(f"job.json is not one that `segue dag` writes ({error}): generate the workflow again") from error


def load(path: Path) -> JobConfig:
    """Read job.json; BadInput when it is not there or not JSON."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; `segue dag run.toml` writes it") from None
    except OSError as error:
        raise CannotRead(
            f"{path}: cannot be read ({error.strerror}); is its disk well, and may you read it?"
        ) from error
    except ValueError as error:
        raise BadInput(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: not a JSON object; generate the workflow again with `segue dag`")
    return parse(data)


def dump(config: JobConfig) -> str:
    """The text of job.json; ``parse(json.loads(dump(c))) == c``."""
    return json.dumps(asdict(config), indent=1, sort_keys=False, ensure_ascii=False) + "\n"
