"""Run in OpenPI's own Python, as a text given to `-c`: which observation does a config take? Prints one line, a description in JSON.

The module of a config's input transform has, by OpenPI's convention, a function `make_…_example`; a config without input transforms takes the
model's own observation. Any other config: `null`.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def described(value: Any) -> Any:
    """Arrays as shape and type, all else as it is."""
    if isinstance(value, dict):
        return {name: described(part) for name, part in value.items() if part is not None}
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return {"shape": list(value.shape), "dtype": str(value.dtype)}
    return value


def example(name: str) -> Any:
    """The observation, or None when the config has no example."""
    from openpi.training import config as training  # type: ignore[import-not-found]

    config = training.get_config(name)
    inputs = config.data.create(config.assets_dirs, config.model).data_transforms.inputs
    for transform in inputs:
        module = sys.modules[type(transform).__module__]
        for named in sorted(vars(module)):
            if named.startswith("make_") and named.endswith("_example"):
                return getattr(module, named)()
    if inputs:
        return None
    observation = config.model.fake_obs().to_dict()

    def first(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: first(below) for key, below in part.items() if below is not None}
        return part[0]

    return first(observation)


if __name__ == "__main__":
    print("segue-observation " + json.dumps(described(example(sys.argv[1]))), flush=True)
