"""`python -m jobs.reference.compare A B`: are two checkpoints the same to the last bit?

Compared are all arrays of the parameters and of the optimizer's state (type, shape, bytes), the step, and the network's description. Files are
not compared: orbax names them at random.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.reference.command_line import run_main

_SHOWN = 10


def contents(path: Path) -> dict[str, Any]:
    """Every array of a checkpoint by its path; ``train_state/…`` only where it was kept."""
    from jobs.reference.checkpoints import read_config, read_parameters, read_train_state
    from jobs.reference.sources import opened

    with opened(path) as directory:
        found: dict[str, Any] = {"config": read_config(directory).as_json(), "label": int(directory.name)}
        found.update(flat("params", read_parameters(directory)))
        if (directory / "train_state").is_dir():
            leaves, step = read_train_state(directory)
            found["train_state/step"] = step
            found.update({f"train_state/optimizer/{number:04d}": leaf for number, leaf in enumerate(leaves)})
    return found


def flat(path: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of nested mappings by their joined keys."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found.update(flat(f"{path}/{name}", value) if isinstance(value, Mapping) else {f"{path}/{name}": value})
    return found


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that is not the same to the last bit."""
    import numpy as np

    found = []
    for name in sorted({*first, *second}):
        if name not in first or name not in second:
            found.append(f"{name}: only in the {'first' if name in first else 'second'}")
            continue
        if isinstance(first[name], dict):
            if first[name] != second[name]:
                found.append(f"{name}: differs")
            continue
        one, other = np.asarray(first[name]), np.asarray(second[name])
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            found.append(f"{name}: {one.dtype}{list(one.shape)} and {other.dtype}{list(other.shape)}")
        elif one.tobytes() != other.tobytes():
            count = int((one.reshape(-1).view(np.uint8) != other.reshape(-1).view(np.uint8)).sum()) if one.size else 0
            found.append(f"{name}: {count} bytes differ")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; JSON on stdout; exit 0 when identical, 1 when not."""
    parser = argparse.ArgumentParser(prog="python -m jobs.reference.compare", description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    options = parser.parse_args(arguments)
    first, second = contents(options.first), contents(options.second)
    found = differences(first, second)
    for line in found[:_SHOWN]:
        print(f"differs: {line}", file=sys.stderr)
    result = {
        "identical": not found,
        "steps": [first["label"], second["label"]],
        "arrays": sum(not isinstance(value, (dict, int)) for value in first.values()),
        "optimizer": any(name.startswith("train_state/") for name in first),
        "differences": len(found),
    }
    print(json.dumps(result))
    return 0 if not found else 1


if __name__ == "__main__":
    sys.exit(run_main(main))
