"""Checkpoints of the reference trainer: `<root>/<step>/{params,train_state,config}` by orbax, saved while training goes on.

Parameters stand apart from the optimizer's state, so that consolidation keeps one and drops the other. Everything is handed to orbax as copies
in host memory: the next step may overwrite its arrays while the save is under way.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import BadInput, SegueError
from jobs.reference.policy import PolicyConfig, from_json

_TEMPORARY = "orbax-checkpoint-tmp"


@dataclass(frozen=True)
class TrainState:
    """All that a resumed training needs. ``optimizer``: the state's leaves in tree order. ``step``: updates done."""

    step: int
    config: PolicyConfig
    parameters: Mapping[str, Any]
    optimizer: tuple[Any, ...]


def steps_in(root: Path) -> list[int]:
    """Finished steps, ascending: orbax renames a step into place when all of it is written."""
    if not root.is_dir():
        return []
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit() and path.is_dir())


def clean(root: Path, resume_step: int) -> None:
    """Remove what a killed save left, and steps beyond the one to resume from: they will be made again."""
    if not root.is_dir():
        return
    for path in root.iterdir():
        if _TEMPORARY in path.name or (path.name.isdigit() and int(path.name) > resume_step):
            shutil.rmtree(path)


class Saver:
    """Writes checkpoints in the background. ``padding``: bytes of ballast that make each as large as a bigger model's."""

    def __init__(self, root: Path, keep: int, padding: int = 0) -> None:
        import numpy as np
        import orbax.checkpoint as ocp

        quiet()
        root.mkdir(parents=True, exist_ok=True)
        self._padding = np.random.default_rng(0).integers(0, 256, padding, np.uint8) if padding else None
        self._manager = ocp.CheckpointManager(
            root.resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
            item_names=("params", "train_state", "config"),
        )

    def save(self, state: TrainState) -> None:
        """Begin to save; returns when the arrays are copied. A save under way is waited for first."""
        import jax
        import numpy as np
        import orbax.checkpoint as ocp

        def copied(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)

        train_state: dict[str, Any] = {
            "optimizer": {f"{number:04d}": copied(leaf) for number, leaf in enumerate(state.optimizer)},
            "step": np.array(state.step, np.int64),
        }
        if self._padding is not None:
            train_state["padding"] = self._padding
        self._manager.save(
            state.step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(copied(dict(state.parameters))),
                train_state=ocp.args.StandardSave(train_state),
                config=ocp.args.JsonSave(state.config.as_json()),
            ),
            force=True,
        )

    def finish(self) -> None:
        """Wait until the last save is complete."""
        self._manager.wait_until_finished()
        self._manager.close()


def quiet() -> None:
    """Orbax speaks of each save; only its errors are wanted."""
    import logging

    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        from absl import logging as absl_logging
    except ImportError:
        return
    absl_logging.set_verbosity(absl_logging.ERROR)


def _item(directory: Path, name: str) -> Any:
    import orbax.checkpoint as ocp

    quiet()
    path = directory.resolve() / name
    if not path.is_dir():
        raise BadInput(f"{directory}: has no {name}/; it is not a whole checkpoint of the reference trainer")
    handler: Any = ocp.JsonCheckpointHandler() if name == "config" else ocp.StandardCheckpointHandler()
    arguments: Any = ocp.args.JsonRestore() if name == "config" else ocp.args.StandardRestore()
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            return checkpointer.restore(path, args=arguments)
    except Exception as error:  # orbax and tensorstore raise many kinds
        raise SegueError(f"{path}: orbax cannot restore it ({_first_line(error)}); take another checkpoint") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


def read_config(directory: Path) -> PolicyConfig:
    """The network's description in a checkpoint."""
    return from_json(_item(directory, "config"))


def read_parameters(directory: Path) -> Mapping[str, Any]:
    """Parameters of a checkpoint, or of what consolidation left of one."""
    found: Mapping[str, Any] = _item(directory, "params")
    return found


def read_train_state(directory: Path) -> tuple[tuple[Any, ...], int]:
    """(leaves of the optimizer's state, step)."""
    found = _item(directory, "train_state")
    try:
        leaves = found["optimizer"]
        return tuple(leaves[name] for name in sorted(leaves)), int(found["step"])
    except (KeyError, TypeError) as error:
        raise BadInput(f"{directory}: its train_state is not one of the reference trainer ({error})") from error


def restore(root: Path, step: int) -> TrainState:
    """The checkpoint of ``step`` under ``root``. Raises BadInput when it is not there or something else, SegueError when it is damaged."""
    directory = root / str(step)
    if not directory.is_dir():
        there = ", ".join(map(str, steps_in(root))) or "none"
        raise BadInput(f"{directory}: no checkpoint of step {step} to resume from (there: {there})")
    optimizer, saved = read_train_state(directory)
    if saved != step:
        raise BadInput(f"{directory}: says that it is of step {saved}; it was renamed or damaged")
    return TrainState(step, read_config(directory), read_parameters(directory), optimizer)
