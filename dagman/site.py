"""A site: what a pool offers and forbids, as data (dagman/sites/*.toml), so that another pool is another file and no code.

A site file of the user's own is named by its path in run.toml; nothing but paths and limits differs between a site and its twin.
"""

from __future__ import annotations

import fnmatch
import getpass
import os
import re
import socket
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.errors import BadInput
from dagman.paths import beside
from dagman.toml import explain, read_toml, suggestion

# What a step or a wait may be thought to take, in seconds: arithmetic and clocks overflow far beyond.
LEAST_STEP_S, MOST_S = 1e-6, 1e9
_LINE = r"^[^\x00-\x1f\x7f]*$"
SubmitLine = Annotated[str, Field(pattern=r"^\+?[A-Za-z_][A-Za-z0-9_.]* *= *[^\x00-\x1f\x7f]*[^\x00-\x1f\x7f\\]$")]
OneLine = Annotated[str, Field(pattern=_LINE)]
ClassName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
_FIELD = re.compile(r"\{([^{}]*)\}")


def _fields(*allowed: str) -> AfterValidator:
    """A pattern that names these fields in braces and no others."""

    def check(text: str) -> str:
        bare = _FIELD.sub("", text)
        found = [name for name in _FIELD.findall(text) if name not in allowed]
        if found or "{" in bare or "}" in bare:
            raise ValueError(f"may hold {' and '.join('{' + name + '}' for name in allowed)} and no other braces")
        return text

    return AfterValidator(check)


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class QueueClass(_Data):
    """A bound on one job's time: ``limit_s`` seconds; ``share`` says what a user may have of it."""

    limit_s: float = Field(gt=0, le=MOST_S)
    share: str = ""


class Gpu(_Data):
    """One kind of GPU: memory in MB, CUDA capability, how many servers with how many each."""

    name: str
    memory_mb: int
    capability: float
    machines: int
    per_machine: int


class TransferRule(_Data):
    """How HTCondor brings an input archive of at most ``most_bytes`` from staging: ``url`` with {path}, its absolute path in staging.

    ``under``: only for staging directories below this one.
    """

    most_bytes: int = Field(gt=0)
    url: Annotated[OneLine, _fields("path")]
    under: str = ""


class Staging(_Data):
    """Where checkpoints go. ``path`` may hold {user}, {initial} and {directory} (of run.toml); 0 bytes or items: no quota known."""

    path: Annotated[str, _fields("user", "initial", "directory")]
    environment: str = ""
    bytes: int = Field(default=0, ge=0)
    items: int = Field(default=0, ge=0)
    requirement: OneLine = ""
    transfers: tuple[TransferRule, ...] = ()


class Margin(_Data):
    """What a segment keeps free before its class's limit: the larger of a fraction of it and ``least_s``."""

    fraction: float = Field(ge=0, lt=1)
    least_s: float = Field(ge=0, le=MOST_S)
    kill_grace_s: float = Field(gt=0, le=MOST_S)


class Estimates(_Data):
    """Seconds that things take before anything was measured."""

    step_s: float = Field(ge=LEAST_STEP_S, le=MOST_S)
    startup_s: float = Field(ge=0, le=MOST_S)
    restore_s: float = Field(ge=0, le=MOST_S)
    save_s: float = Field(ge=0, le=MOST_S)
    publish_s: float = Field(ge=0, le=MOST_S)
    queue_s: float = Field(ge=0, le=MOST_S)


class SubmitLines(_Data):
    """Lines that the site wants in the submit description of a segment, each with its reason."""

    segment: tuple[SubmitLine, ...] = ()
    segment_why: tuple[OneLine, ...] = ()
    resumable: SubmitLine | Literal[""] = ""
    resumable_why: OneLine = ""


class Resources(_Data):
    """What a segment asks for when run.toml is silent; ``helper_``: stage, norm_stats and consolidate."""

    gpus: int = 0
    cpus: int = 1
    memory_mb: int = 1024
    disk_mb: int = 1024
    helper_cpus: int = 1
    helper_memory_mb: int = 1024
    helper_disk_mb: int = 1024


class Site(_Data):
    """One site file."""

    name: str
    title: str
    default_class: str
    retries: int = Field(ge=0, le=2)
    avoid_failed_machine: bool = False
    scan_interval_s: int = Field(ge=1)
    python: Annotated[str, _fields("this")] = "python3"
    transfer_host: str = ""
    submit_forbidden_under: tuple[str, ...] = ()
    access_points: tuple[str, ...] = ()
    staging: Staging
    classes: dict[ClassName, QueueClass] = Field(min_length=1)
    margin: Margin
    defaults: Estimates
    submit: SubmitLines = SubmitLines()
    resources: Resources = Resources()
    gpus: tuple[Gpu, ...] = ()

    @model_validator(mode="after")
    def _default_class_exists(self) -> Site:
        if self.default_class not in self.classes:
            raise ValueError(f"default_class {self.default_class!r} is not one of {', '.join(self.classes)}")
        return self

    def margin_s(self, queue_class: str) -> float:
        """Seconds kept free before the limit of the class."""
        return max(self.margin.least_s, self.margin.fraction * self.classes[queue_class].limit_s)

    def staging_path(self, directory: Path, user: str | None = None) -> Path:
        """The user's staging directory. ``directory``: of run.toml. The site's environment variable goes before the pattern."""
        given = os.environ.get(self.staging.environment) if self.staging.environment and user is None else None
        if given:
            return Path(given)
        name = user or _account()
        return Path(self.staging.path.format(user=name, initial=name[0], directory=directory))

    def python_path(self) -> str:
        """The Python that starts the trainer when run.toml names none."""
        return self.python.format(this=sys.executable)

    def transfer_url(self, archive: Path, size: int) -> str:
        """The URL of an input archive (``size`` bytes) in staging by the first rule that fits, "" where jobs read it from mounted staging.

        BadInput when the site has rules and it is too large for all of them.
        """
        rules = [rule for rule in self.staging.transfers if archive.is_relative_to(rule.under or "/")]
        for rule in rules:
            if size <= rule.most_bytes:
                return rule.url.format(path=archive)
        if rules:
            most = max(rule.most_bytes for rule in rules)
            raise BadInput(
                f"{archive.name}: an input of {size / 1e9:.1f} GB is more than {self.title} lets a job transfer ({most / 1e9:.0f} GB): make it "
                "smaller, split it into several assets, or ask the site's staff"
            )
        return ""

    def is_here(self) -> bool:
        """Whether this machine is an access point of the site."""
        return any(fnmatch.fnmatch(socket.getfqdn(), pattern) for pattern in self.access_points)

    def fitting_gpus(self, memory_mb: int | None, capability: float | None) -> list[Gpu]:
        """The site's GPUs with at least so much memory and capability."""
        return [gpu for gpu in self.gpus if gpu.memory_mb >= (memory_mb or 0) and gpu.capability >= (capability or 0)]


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise BadInput("user: this account has no name here: give `user` in run.toml") from None


def shipped_sites() -> list[str]:
    """Names of the sites that come with segue."""
    return sorted(
        Path(entry.name).stem
        for entry in resources.files("dagman").joinpath("sites").iterdir()
        if entry.name.endswith(".toml")
    )


def load_site(name: str, directory: Path) -> Site:
    """A shipped site by name, or a site file by its path (ending in .toml, relative to ``directory``); BadInput names what is wrong."""
    if name.endswith(".toml"):
        try:
            path = beside(directory, name)
        except BadInput as error:
            raise BadInput(f"site: {error}") from None
        if not path.is_file():
            raise BadInput(f"site: {path}: no such site file")
        data, where = read_toml(path), str(path)
    elif name in shipped_sites():
        text = resources.files("dagman").joinpath("sites", f"{name}.toml")
        data, where = read_toml(Path(str(text))), f"site {name}"
    else:
        raise BadInput(
            f"site: no site named {name!r}; there are {', '.join(shipped_sites())}, or give the path of a site file (….toml)"
            f"{suggestion(name, shipped_sites())}"
        )
    try:
        return Site.model_validate({"name": Path(name).stem, **data})
    except ValidationError as error:
        raise BadInput(explain(error, where)) from None
