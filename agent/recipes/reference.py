"""The reference trainer (jobs.reference.train): everything that an ideal trainer would offer.

It is told its last step and its save interval, can be asked to stop between steps, labels a checkpoint with the updates done, and
finishes one by orbax's rename from `<step>.orbax-checkpoint-tmp…` to `<step>`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from agent.config import JobConfig
from agent.errors import BadInput
from agent.recipes.base import Finished, Progress, Recipe, Start
from agent.recipes.options import only_known

_LINE = re.compile(r"step (\d+) loss (\S+)")
_TEMPORARY = "orbax-checkpoint-tmp"
_CACHE = ".cache/jax"


class ReferenceRecipe(Recipe):
    """`python -m jobs.reference.train --data <the input> <args>`."""

    name = "reference"
    sets_last_step = True
    sets_save_interval = True
    stops_on_request = True

    def configure(self, job: JobConfig) -> None:
        only_known(job, ())

    def checkpoint_root(self, start: Start) -> Path:
        return start.scratch / "checkpoints"

    def command(self, start: Start) -> list[str]:
        words = [start.job.python, "-m", "jobs.reference.train"]
        if not any(word == "--data" or word.startswith("--data=") for word in start.job.args):
            words += ["--data", self._data(start)]
        return [*words, *start.job.args]

    def _data(self, start: Start) -> str:
        for entry in start.job.inputs:
            if entry.name == "dataset":
                return str(start.scratch / entry.target)
        raise BadInput(
            "the reference trainer has no data: name it in run.toml as [data] dataset, or give --data in trainer.args"
        )

    def environment(self, start: Start) -> dict[str, str]:
        """The trainer is found in jobs.pyz, which travelled beside the agent."""
        bundle = start.scratch / "jobs.pyz"
        if not bundle.is_file():
            return {}
        before = start.job.env.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
        return {"PYTHONPATH": f"{bundle}{os.pathsep}{before}" if before else str(bundle)}

    def prepare(self, start: Start) -> None:
        """Remove half-written saves of a killed start: orbax would take one for the oldest step and keep a step too many."""
        self._data_is_there(start)
        root = self.checkpoint_root(start)
        if root.is_dir():
            for path in root.iterdir():
                if _TEMPORARY in path.name:
                    shutil.rmtree(path)

    def _data_is_there(self, start: Start) -> None:
        command = self.command(start)
        for word, following in zip(command, [*command[1:], ""], strict=True):
            name, _, value = word.partition("=")
            data = value or following
            if name == "--data" and not (self.working_directory(start) / data).exists():
                raise BadInput(
                    f"{data}: the data of the reference trainer is not in the job's directory; look at run.toml's [data]"
                )

    def finished(self, start: Start) -> list[Finished]:
        root = self.checkpoint_root(start)
        try:
            names = [name for name in os.listdir(root) if name.isdecimal()]  # noqa: PTH208 (each tick of the agent)
        except FileNotFoundError:
            return []
        return [Finished(int(name), name, root, (name,)) for name in sorted(names, key=int)]

    def progress(self, line: str) -> Progress | None:
        match = _LINE.fullmatch(line.strip())
        if match is None:
            return None
        try:
            return Progress(int(match[1]), float(match[2]))
        except ValueError:
            return Progress(int(match[1]))

    def carried(self, start: Start) -> Sequence[str]:
        """JAX's compiled programs lie under HOME, which is the scratch directory."""
        return (_CACHE,)
