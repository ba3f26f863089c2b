"""A recipe's options and the user's arguments, read and checked: a misspelt one must not be ignored in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from agent.config import JobConfig
from agent.errors import BadInput

T = TypeVar("T")


def option(job: JobConfig, key: str, kind: type[T], default: T) -> T:
    """One of the recipe's own options from run.toml's [trainer.options]; BadInput when it is of another type."""
    value: Any = job.options.get(key, default)
    if value is None or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value if value is not None else default
    raise BadInput(f"run.toml: trainer.options.{key} is {value!r}; it must be of type {kind.__name__}")


def at_least_one(job: JobConfig, *keys: str) -> None:
    """BadInput for one of these options that is given and is no number from 1 on."""
    for key in keys:
        if option(job, key, int, 1) < 1:
            raise BadInput(f"run.toml: trainer.options.{key} is {job.options[key]}; it must be at least 1")


def only_known(job: JobConfig, known: tuple[str, ...]) -> None:
    """BadInput for an option that the recipe does not have: a misspelt one would be ignored in silence."""
    for key in job.options:
        if key not in known:
            raise BadInput(
                f"run.toml: trainer.options.{key} is unknown to recipe {job.recipe!r}; it has {', '.join(known) or 'none'}"
            )


def leave_alone(job: JobConfig, taken: Mapping[str, str]) -> None:
    """BadInput for an argument that the recipe sets itself; ``taken``: flag -> where the user says it instead."""
    for flag, instead in taken.items():
        if named(job.args, flag) is not None:
            raise BadInput(f"run.toml: trainer.args: {flag} is set by the recipe; {instead or 'leave it out'}")


def named(args: tuple[str, ...], *names: str) -> str | None:
    """The value that the user's arguments give to one of these flags (`--x=1`, `--x 1`; - and _ alike), None when none does."""
    wanted = {name.replace("_", "-") for name in names}
    for number, word in enumerate(args):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") in wanted:
            return value if equals else "".join(args[number + 1 : number + 2])
    return None
