"""From what a user types for RUN to the workflow directory and what was asked for there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.config import JobConfig, load
from agent.errors import BadInput
from dagman.paths import absolute


@dataclass(frozen=True)
class RunPlace:
    """A run's workflow directory (absolute) and its job.json."""

    directory: Path
    job: JobConfig

    @property
    def store(self) -> Path:
        """The run's store: in staging, or in the workflow directory where jobs mount none."""
        return self.job.store_seen_from(self.directory)


def find_run(text: str) -> RunPlace:
    """Find a run by its run.toml, its workflow directory or its job.json; BadInput says what is missing."""
    given = absolute(Path(text))
    if given.suffix == ".toml":
        from dagman.spec import load_spec, workflow_directory

        if (given.parent / "job.json").is_file():
            given = given.parent
        else:
            given = workflow_directory(load_spec(given), given)
            if not (given / "job.json").is_file():
                raise BadInput(
                    f"{text}: not generated yet ({given} has no job.json): run `segue dag {text}` or `segue submit {text}`"
                )
    if given.name == "job.json" and given.is_file():
        given = given.parent
    if not given.exists():
        raise BadInput(f"{text}: no such file or directory; give a run.toml or the directory that `segue dag` wrote")
    if not (given / "job.json").is_file():
        raise BadInput(
            f"{text}: not a workflow directory (it has no job.json); give a run.toml or the directory that `segue dag` wrote"
        )
    return RunPlace(given.resolve(), load(given / "job.json"))
