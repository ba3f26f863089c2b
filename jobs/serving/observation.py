"""An observation to check a policy server with: from what the server says of itself, from a file, or from OpenPI's own example for a config.

Only its shape matters here, so numbers are zeros unless a file gives them. In a description an array is `{"shape": [14], "dtype": "float32"}`; texts
and numbers stand for themselves, maps may hold further maps.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import BadInput, SegueError

_KINDS = "biuf"
_EXAMPLE_LIMIT_S = 300.0
_LARGEST = 100_000_000
_MARK = "segue-observation "


def from_metadata(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Zeros of the shapes in the server's metadata; None when it says nothing of observations."""
    description = metadata.get("observation")
    return filled(description, "the server's metadata") if isinstance(description, dict) and description else None


def from_file(path: Path) -> dict[str, Any]:
    """A .json description, or an .npz file: its arrays by name, where a dot leads into a map (`images.cam_high`). BadInput names the file."""
    if path.suffix not in (".json", ".npz"):
        raise BadInput(f"--observation {path}: must be a .json or an .npz file (docs/serving.md)")
    try:
        if path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or not found:
                raise ValueError("it holds no map of names")
            return filled(found, f"--observation {path}")
        return _nested(path)
    except BadInput:
        raise
    except Exception as error:  # zip, numpy and JSON have their own
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInput(f"--observation {path}: cannot be read ({reason})") from error


def _nested(path: Path) -> dict[str, Any]:
    import numpy as np

    found: dict[str, Any] = {}
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        for name in arrays.files:
            *above, last = name.split(".")
            place = found
            for part in above:
                place = place.setdefault(part, {})
                if not isinstance(place, dict):
                    raise ValueError(f"{name!r} lies in an array")
            value = arrays[name]
            place[last] = value.item() if value.dtype.kind in "US" and value.ndim == 0 else value
    if not found:
        raise ValueError("it holds no arrays")
    return found


def filled(description: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The observation of a description. Raises BadInput naming the entry that makes no array."""
    return {str(name): _value(value, f"{where}: {name!r}") for name, value in description.items()}


def _value(value: Any, where: str) -> Any:
    import numpy as np

    if isinstance(value, dict):
        if set(value) != {"shape", "dtype"}:
            return filled(value, where)
        try:
            kind, shape = np.dtype(value["dtype"]), tuple(int(side) for side in value["shape"])
            if kind.kind not in _KINDS or min(shape, default=0) < 0 or np.prod(shape, dtype=float) > _LARGEST:
                raise ValueError(f"{shape} of {kind}")
            return np.zeros(shape, kind)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{where} is no array that can be sent ({error})") from error
    if isinstance(value, list):
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise BadInput(f"{where} is a list whose rows differ in length") from error
        if array.dtype.kind not in _KINDS:
            raise BadInput(f"{where} is a list of something else than numbers")
        return array.astype(np.float32) if array.dtype.kind == "f" else array
    return value


def from_openpi(python: Sequence[str], checkout: Path, config: str) -> dict[str, Any] | None:
    """OpenPI's own example for the config, asked of the checkout (openpi_example.py); None where it has none.

    Raises SegueError when the checkout cannot be asked, naming the reason it gave.
    """
    program = Path(__file__).with_name("openpi_example.py").read_text(encoding="utf-8")
    try:
        done = subprocess.run(
            [*python, "-c", program, config], cwd=checkout, capture_output=True, text=True, timeout=_EXAMPLE_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SegueError(f"{checkout}: cannot be asked for an example observation ({error})") from error
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            description = json.loads(line.removeprefix(_MARK))
            return filled(description, f"OpenPI's example for {config}") if description else None
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    raise SegueError(
        f"{checkout}: OpenPI gives no example observation for {config} ({said[-1][:300] if said else 'it said nothing'}); "
        "give one with --observation FILE"
    )
