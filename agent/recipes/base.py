"""The contract between the agent and a kind of trainer.

A recipe is data and a few small functions; it starts no process and reads nothing but the scratch directory. The agent
asks it where to restore to, how to start, which checkpoints are finished and what a line of output says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.config import JobConfig


@dataclass(frozen=True)
class Start:
    """What the agent knows when it starts the trainer.

    ``resume_step`` is 0 and ``resume_label`` is None when there is nothing to resume. ``last_step``: end after this
    step, with a save. ``save_interval`` is in steps, None where the trainer keeps its own. ``deadline`` is in Unix seconds.
    ``start_number`` counts the trainer's starts over the whole run's life in this attempt, from 1.
    """

    job: JobConfig
    scratch: Path
    resume_step: int
    resume_label: str | None
    last_step: int
    save_interval: int | None
    deadline: float
    epoch: int
    start_number: int = 1
    gpus: int = 0
    secured_step: int = 0
    """Step of the newest checkpoint that is a commit or has its snapshot: the trainer's own files of it and of older ones may go."""


@dataclass(frozen=True)
class Finished:
    """A checkpoint that the trainer has finished writing.

    ``paths`` are relative to ``root`` and go into the commit: the checkpoint's directory and the files beside it. ``seen``: the
    fingerprint of its snapshot, once there is one.
    """

    step: int
    label: str
    root: Path
    paths: tuple[str, ...]
    seen: str | None = None


@dataclass(frozen=True)
class Progress:
    """What one line of the trainer's output says; ``step`` counts updates done."""

    step: int
    loss: float | None = None


class Recipe(ABC):
    """How one kind of trainer is started, resumed, watched and stopped."""

    name: str
    """As in run.toml."""
    sets_last_step: bool = False
    """The trainer can be told at its start after which step to end, with a save."""
    sets_save_interval: bool = False
    """The trainer can be told at its start how often to save."""
    stops_on_request: bool = False
    """The trainer looks at SEGUE_STOP_FILE between steps and stops after saving at the step named in it."""

    labels_wandb: bool = False
    """The trainer gives its W&B run a name or tags of its own, which go before the WANDB_* variables."""
    only_named: bool = False
    """Nothing but a checkpoint's name tells that it is finished, on the word of whoever wrote the trainer: the agent looks whether it stays as
    it is."""

    def configure(self, job: JobConfig) -> None:  # noqa: B027  (most need nothing)
        """Look at the run before anything else is asked; raises BadInput for options that cannot be meant."""

    @abstractmethod
    def checkpoint_root(self, start: Start) -> Path:
        """The directory that holds the checkpoints, absolute; a commit is unpacked into it."""

    @abstractmethod
    def command(self, start: Start) -> list[str]:
        """The trainer's argument vector for this start (first or resumed)."""

    @abstractmethod
    def finished(self, start: Start) -> list[Finished]:
        """Every finished checkpoint under the root, oldest step first; told by the trainer's own commit marker."""

    def next_save(self, start: Start, after: int) -> int | None:
        """The first step after ``after`` that the trainer saves at, by the interval that it was told; None when it was told none."""
        interval = start.save_interval
        if interval is None or not self.sets_save_interval:
            return None
        return (after // interval + 1) * interval

    def environment(self, start: Start) -> dict[str, str]:
        """Variables to add to the trainer's environment."""
        return {}

    def working_directory(self, start: Start) -> Path:
        """Where the trainer runs."""
        return start.scratch

    def prepare(self, start: Start) -> None:  # noqa: B027  (most trainers need nothing)
        """Clean up what a killed start left and put things in place; raises SegueError with a sentence on what is missing."""

    def progress(self, line: str) -> Progress | None:
        """The step that a line of the trainer's stdout or stderr reports, if it does."""
        return None

    def reports_every(self, start: Start) -> int | None:
        """Steps between two lines that report one; None where it is not known that any line does."""
        return None

    def carried(self, start: Start) -> Sequence[str]:
        """Directories relative to scratch (compile caches) that travel from attempt to attempt."""
        return ()
