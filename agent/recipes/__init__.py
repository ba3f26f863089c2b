"""Recipes: how each kind of trainer is started, resumed, watched and stopped (docs/recipes.md).

One module each, imported when it is asked for: a segment needs one of them.
"""

from __future__ import annotations

from agent.errors import BadInput
from agent.recipes.base import Recipe

_HOMES = {
    "reference": ("reference", "ReferenceRecipe"),
    "openpi": ("openpi", "OpenPI"),
    "openpi-pytorch": ("openpi_pytorch", "OpenPIPyTorch"),
    "lerobot": ("lerobot", "LeRobot"),
    "command": ("command", "Command"),
}

NAMES = tuple(_HOMES)
"""All recipes that run.toml may name."""


def recipe(name: str) -> Recipe:
    """The recipe of this name; BadInput when there is none."""
    if name not in _HOMES:
        raise BadInput(f"recipe {name!r} is not known; run.toml's trainer.recipe is one of: {', '.join(NAMES)}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    made: Recipe = getattr(import_module(f"agent.recipes.{module}"), attribute)()
    return made
