"""What inference needs of each trainer's checkpoint, and how to know that it is whole. Nothing but the parameters' own library is imported.

Each kind is told a checkpoint's label and the members below it; it chooses, then looks at what was unpacked, and may make it smaller.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.config import JobConfig
from agent.errors import BadInput, SegueError

_LONGEST_HEADER = 100 << 20
_SLICE = 1 << 20
"""Numbers looked at in one piece."""


class Kind:
    """Keeps the whole checkpoint: right for any trainer that is not known better (recipe ``command``)."""

    keep: tuple[str, ...] = ()
    """Entries of the checkpoint's directory that inference needs; empty: all."""
    must: tuple[str, ...] = ()
    """Those without which the checkpoint is none."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def wanted(self, label: str, path: str) -> bool:
        """Whether this member of the commit goes into the final archive; what lies beside the checkpoint's directory goes too without ``keep``."""
        if not self.keep:
            return True
        parts = path.split("/")
        return parts[0] == label and (len(parts) == 1 or parts[1] in self.keep)

    def prepare(self, checkpoint: Path) -> None:
        """Check what was unpacked, by restoring it. Raises SegueError saying what is wrong."""
        missing = [name for name in self.must if not (checkpoint / name).exists()]
        if missing:
            raise SegueError(
                f"the commit has no {checkpoint.name}/{missing[0]}: it is no whole checkpoint of this trainer"
            )
        self.check(checkpoint)

    def check(self, checkpoint: Path) -> None:
        """As ``prepare``, with all that must be there."""

    def versions(self) -> dict[str, str]:
        """Of the libraries that wrote the parameters anew, for the manifest."""
        return {}


class Reference(Kind):
    """Parameters and the network's description; the optimizer's state stays behind."""

    keep = ("params", "config")
    must = ("params", "config")

    def check(self, checkpoint: Path) -> None:
        on_cpu()
        from jobs.reference.checkpoints import read_config, read_parameters
        from jobs.reference.policy import Actor

        all_finite(checkpoint, read_parameters(checkpoint))
        Actor(read_config(checkpoint), read_parameters(checkpoint))


class OpenPI(Kind):
    """`params/` and `assets/`: what `serve_policy.py` reads. ``options.bfloat16``: store parameters in half the bytes."""

    keep = ("params", "assets", "_CHECKPOINT_METADATA")
    must = ("params", "assets")

    def check(self, checkpoint: Path) -> None:
        on_cpu()
        try:
            import jax
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise SegueError(
                f"orbax is needed to restore OpenPI's parameters ({error}): run consolidation in the training's image"
            ) from error
        params = checkpoint / "params"
        try:
            with (
                ocp.PyTreeCheckpointer() as checkpointer
            ):  # its peak, 1.4 times the parameters, is about that of the whole node
                host = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=_array()), _tree(checkpointer, params))
                found = checkpointer.restore(params.resolve(), args=ocp.args.PyTreeRestore(restore_args=host))
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise SegueError(f"{params}: orbax cannot restore it: {_first_line(error)}") from error
        all_finite(checkpoint, found)
        if self.options.get("bfloat16"):
            leaves, shape = jax.tree_util.tree_flatten(found)
            del found  # the list alone holds them, so that each goes when it is halved
            halve(leaves)
            self._replace(params, jax.tree_util.tree_unflatten(shape, leaves))

    def _replace(self, params: Path, tree: Any) -> None:
        import orbax.checkpoint as ocp

        smaller = params.with_name("params.bfloat16")
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(smaller.resolve(), tree)
        shutil.rmtree(params)
        smaller.rename(params)

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version

        return {"orbax-checkpoint": version("orbax-checkpoint")} if self.options.get("bfloat16") else {}


class OpenPIPyTorch(Kind):
    """`model.safetensors` and `assets/`."""

    keep = ("model.safetensors", "assets", "metadata.pt", "config.json")
    must = ("model.safetensors",)

    def check(self, checkpoint: Path) -> None:
        check_safetensors(checkpoint / "model.safetensors")


class LeRobot(Kind):
    """`pretrained_model/`: what LeRobot's policies load."""

    keep = ("pretrained_model",)
    must = ("pretrained_model",)

    def check(self, checkpoint: Path) -> None:
        found = sorted((checkpoint / "pretrained_model").glob("*.safetensors"))
        if not found:
            raise SegueError(
                f"{checkpoint.name}/pretrained_model holds no .safetensors file: it is no whole checkpoint of LeRobot"
            )
        for path in found:
            check_safetensors(path)


_KINDS: dict[str, type[Kind]] = {
    "reference": Reference,
    "openpi": OpenPI,
    "openpi-pytorch": OpenPIPyTorch,
    "lerobot": LeRobot,
    "command": Kind,
}


def kind_of(job: JobConfig) -> Kind:
    """By the run's recipe; BadInput when that is not known."""
    if job.recipe not in _KINDS:
        raise BadInput(f"job.json: recipe {job.recipe!r} is not known here; it is one of: {', '.join(_KINDS)}")
    return _KINDS[job.recipe](job.options)


def on_cpu() -> None:
    """Restoring must not need a GPU: this node has none."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def all_finite(checkpoint: Path, parameters: Any) -> None:
    """Raise SegueError naming the first array with a value that is not finite, or when there is no array at all."""
    import jax
    import numpy as np

    leaves = jax.tree_util.tree_flatten_with_path(parameters)[0]
    if not leaves:
        raise SegueError(f"{checkpoint.name}/params holds no array")
    for path, leaf in leaves:
        array = np.asarray(leaf)
        if array.dtype.kind not in "biu" and not _finite(array):
            name = jax.tree_util.keystr(path)
            raise SegueError(
                f"{checkpoint.name}: parameter {name} holds a value that is not finite: the training has diverged; take an older commit"
            )


def _finite(array: Any) -> bool:
    """Slice by slice: the largest array of a full fine-tuning has 5 GB, and a copy of it might not find room."""
    import numpy as np

    flat = array.ravel(order="K")
    slices = (flat[begin : begin + _SLICE] for begin in range(0, flat.size, _SLICE))
    return all(bool(np.isfinite(part.astype(np.float32)).all()) for part in slices)


def halve(leaves: list[Any]) -> None:
    """Put bfloat16 in the place of each float32 array, one after the other: both are in memory for one array only."""
    import ml_dtypes
    import numpy as np

    for place in range(len(leaves)):  # enumerate would hold the one before
        array = np.asarray(leaves[place])
        leaves[place] = array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array
        del array


def check_safetensors(path: Path) -> None:
    """Raise SegueError unless the file is a whole one: its header says which bytes belong to which tensor, and they end where the file ends.

    Format: 8 bytes little-endian header length, JSON header, data (safetensors' README).
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise ValueError("its header is cut short")
            header = json.loads(file.read(length))
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        if not ends:
            raise ValueError("it holds no tensor")
        if max(ends) != size - 8 - length:
            raise ValueError(f"its header tells of {max(ends)} bytes of data, there are {size - 8 - length}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SegueError(f"{path.name}: is no whole safetensors file ({error})") from error


def _array() -> Any:
    import numpy as np

    return np.ndarray


def _tree(checkpointer: Any, params: Path) -> Any:
    """The tree of what is stored; orbax returned it bare in 0.11 and wraps it since."""
    metadata = checkpointer.metadata(params.resolve())
    metadata = getattr(metadata, "item_metadata", metadata)
    return getattr(metadata, "tree", metadata)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
