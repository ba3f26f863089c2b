"""From what a user types for RUN to its run.toml, its workflow directory, and what was asked for there.

RUN is everywhere the same: a run.toml, a directory with one, the workflow directory that was made from it, or a file in that.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from agent.config import JobConfig, load
from agent.errors import BadInput
from dagman.paths import absolute

RUN_TOML = "run.toml"
JOB_JSON = "job.json"


@dataclass(frozen=True)
class RunPlace:
    """A run's workflow directory (absolute) and its job.json. ``said``: RUN in the user's words, for commands to copy."""

    directory: Path
    job: JobConfig
    said: str

    @property
    def store(self) -> Path:
        """The run's store: in staging, or in the workflow directory where jobs mount none."""
        return self.job.store_seen_from(self.directory)


def run_file(run: Path) -> Path:
    """The run.toml that was named, or that lies in the directory that was; of a workflow directory, or any file in it, its copy. Absolute."""
    path = absolute(run)
    if path.suffix != ".toml" and path.is_file() and (path.parent / JOB_JSON).is_file():
        path = path.parent
    return path / RUN_TOML if path.is_dir() and (path / RUN_TOML).is_file() else path


def own_run_file(run: Path) -> Path:
    """As above, but never the copy in a workflow directory, whose paths were meant from somewhere else: the one it was made from.

    BadInput when that does not lie beside the workflow directory.
    """
    path = run_file(run)
    if not path.with_name(JOB_JSON).is_file():
        return path
    found = _made_from(path.parent)
    if found is None:
        raise BadInput(
            f"{run}: is what `segue dag` wrote, and the run.toml that it was made from is not beside it: give that one, with --to "
            f"{shlex.quote(str(path.parent))}"
        )
    return found


def _made_from(workflow: Path) -> Path | None:
    """The run.toml beside a workflow directory of the default place; None when there is none, or more than one may be meant."""
    from dagman.toml import read_toml

    found = []
    for path in workflow.parent.glob("*.toml"):
        try:
            if read_toml(path).get("name") == workflow.name:
                found.append(path)
        except BadInput:
            continue
    named = [path for path in found if path.name == RUN_TOML]
    return (named or found)[0] if len(named or found) == 1 else None


def find_run(text: str) -> RunPlace:
    """Find a run by what the user typed; BadInput says what is missing."""
    given = absolute(Path(text))
    if given.is_file() and (given.parent / JOB_JSON).is_file():
        given = given.parent  # job.json, the .dag file, the copy of run.toml
    if not given.is_dir() or not (given / JOB_JSON).is_file():
        given = run_file(given)
    if given.suffix == ".toml" and not given.is_dir():
        from dagman.spec import load_spec, workflow_directory

        given = workflow_directory(load_spec(given), given)
        if not (given / JOB_JSON).is_file():
            run = shlex.quote(text)
            raise BadInput(
                f"{text}: not generated yet ({given} has no job.json): run `segue dag {run}` or `segue submit {run}`, or give the directory "
                "that --to named"
            )
    if not given.exists():
        raise BadInput(f"{text}: no such file or directory; give a run.toml or the directory that `segue dag` wrote")
    if not given.is_dir():
        raise BadInput(f"{text}: is no run.toml (its name would end in .toml), nor does it lie in a workflow directory")
    if not (given / JOB_JSON).is_file():
        raise BadInput(
            f"{text}: not a workflow directory (it has no job.json), and no run.toml is in it; give a run.toml or the directory that "
            "`segue dag` wrote"
        )
    try:
        job = load(given / JOB_JSON)
    except BadInput as error:
        remedy = "" if "generate the workflow again" in str(error) else ": generate the workflow again with `segue dag`"
        raise BadInput(f"{error}{remedy}") from None
    return RunPlace(given.resolve(), job, text)
