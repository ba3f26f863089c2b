"""Archives of a run as consolidation and the agent leave them in staging, with little in them."""

from __future__ import annotations

from pathlib import Path

from agent.store.manifest import Manifest
from jobs.archives import pack

# What OpenPI's server wants of a checkpoint directory: orbax's parameters and the assets with the norm stats.
OPENPI = {
    "params/_METADATA": b"{}",
    "params/d/0123": bytes(range(256)) * 40,
    "params/ocdbt.process_0/empty": b"",
    "assets/local/blocks/norm_stats.json": b'{"norm_stats": {}}',
    "_CHECKPOINT_METADATA": b"{}",
}


def archive(
    staging: Path,
    work: Path,
    *,
    step: int,
    label: str,
    run: str = "demo",
    recipe: str = "reference",
    files: dict[str, bytes] | None = None,
    beside: dict[str, bytes] | None = None,
    epoch: int = 0,
) -> Path:
    """A final archive, or with ``epoch`` a commit; where it lies."""
    root = work / f"made-{step}-{epoch}-{len(list(work.glob('made-*')))}"
    for name, data in {
        **{f"{label}/{name}": data for name, data in (files or OPENPI).items()},
        **(beside or {}),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    about = Manifest(run, step, label, max(epoch, 1), None, recipe, 1_700_000_000.0, ())
    folder = staging / "segue" / run
    target = (
        folder / "checkpoints" / f"{step:09d}.e{epoch:06d}.tar" if epoch else folder / "final" / f"{run}-{step:09d}.tar"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    pack(root, sorted(path.name for path in root.iterdir()), about, target)
    return target


def tree(directory: Path) -> dict[str, bytes]:
    """All files below, by their relative names."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }
