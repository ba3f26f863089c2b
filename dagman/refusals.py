"""What `segue dag` and `segue submit` would refuse of a run.toml, found without reading what its sources hold and without writing.

Each check is one that `dagman.prepare` makes itself; here one that fails does not hide the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from agent.config import InputArchive
from agent.errors import BadInput, SegueError
from agent.pack import archive_size, members
from dagman.code import NAME as CODE
from dagman.code import read_checkout
from dagman.inputs import InputRequest, NotHere, read_record, recorded, same_source
from dagman.paths import beside
from dagman.prepare import (
    Asked,
    check_directory,
    check_image,
    check_staging,
    placed,
    record_path,
    requests,
    search_path,
    travelling,
    wandb_key,
)
from dagman.spec import workflow_directory
from dagman.write import check_unoccupied


@dataclass(frozen=True)
class Refusal:
    """``text`` begins with the key in run.toml; ``staging_too``: `segue stage` would stumble over it as well."""

    text: str
    staging_too: bool = False


Check = tuple[str, bool, Callable[[], object]]
"""The key that a finding belongs to, whether `segue stage` would find it as well, and the check itself."""


def refusals(asked: Asked) -> tuple[Refusal, ...]:
    """All that is refused, as far as it is known without reading much."""
    found = []
    for key, staging_too, check in _checks(asked):
        try:
            check()
        except (BadInput, SegueError) as error:
            text = str(placed(asked.run_toml, key, error)) if key and isinstance(error, BadInput) else str(error)
            # What is not here may be staged from where it is.
            too = staging_too and not isinstance(error, NotHere)
            found.append(Refusal(text.removeprefix(f"{asked.run_toml}: "), too))
        except OSError as error:
            found.append(Refusal(f"{key}: {error.filename}: cannot be looked at: {error.strerror}", staging_too))
    return tuple(found)


def _checks(asked: Asked) -> Iterator[Check]:
    directory = workflow_directory(asked.spec, asked.run_toml)
    yield "", False, partial(check_directory, asked, directory)
    yield "", False, partial(check_unoccupied, directory)
    yield "data", True, partial(requests, asked.spec, asked.run_toml)
    yield "data", True, partial(read_record, record_path(asked.run_toml))
    for request in _requests(asked):
        yield "data", True, partial(_input, asked, request)
    yield "code", True, partial(_code, asked)
    yield "", False, partial(check_image, asked)
    yield "", False, partial(check_staging, asked)
    yield "", False, partial(wandb_key, asked, keep=False)
    yield "", False, partial(search_path, asked.site)


def _requests(asked: Asked) -> list[InputRequest]:
    try:
        read_record(record_path(asked.run_toml))
        return requests(asked.spec, asked.run_toml)
    except (BadInput, OSError):
        return []  # said already


def _input(asked: Asked, request: InputRequest) -> None:
    source, size = "", 0
    if request.source.exists():
        source, size = str(request.source), archive_size(members(request.source))
    else:
        size = recorded(request, read_record(record_path(asked.run_toml))).bytes
    travelling(InputArchive(request.name, f"{request.name}.tar", "", size, request.target, source), asked)


def _code(asked: Asked) -> None:
    if asked.spec.code is None:
        return
    directory = beside(asked.run_toml.parent, asked.spec.code)
    if directory.exists() or not same_source(read_record(record_path(asked.run_toml)).get(CODE), directory):
        read_checkout(directory)
