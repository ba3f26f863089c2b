"""Where one of OpenPI's configs reads its normalisation statistics, as far as its text says so without being run.

Without them the trainer ends, after the GPU has been waited for: "Normalization stats not found". Most configs read
`<assets base dir>/<config>/<asset id>/norm_stats.json`, some a base checkpoint's assets, by `AssetsConfig(assets_dir=…)`, or none at all. What cannot
be told for certain is not guessed: a run that would have worked must not be refused.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path("src/openpi/training/config.py")
"""In OpenPI's checkout."""
_BASE = "DataConfigFactory"


def reads_own(text: str, config: str) -> bool | None:
    """True: from its own directory below the assets base dir; False: from somewhere else, or none; None: the text does not say."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _word(node, "name") == config]
    if len(found) != 1:
        return None
    data = _argument(found[0], "data")
    if not isinstance(data, ast.Call) or not isinstance(data.func, ast.Name):
        return None
    if data.func.id == "FakeDataConfig" or _word(data, "repo_id") == "fake":
        return False
    if not _only_keywords(data) or not _usual(tree, data.func.id):
        return None
    assets = _argument(data, "assets")
    if assets is None:
        return True
    if not isinstance(assets, ast.Call) or not _only_keywords(assets):
        return None
    return _argument(assets, "assets_dir") is None


def needs_own(options: Mapping[str, Any], args: Sequence[str], text: str) -> bool | None:
    """As ``reads_own``, for a run with these options and arguments, some of which may change the place."""
    flags = [word.partition("=")[0].replace("_", "-") for word in args]
    moved = options.get("script") or any(flag.startswith(("--assets-base-dir", "--data")) for flag in flags)
    return None if moved else reads_own(text, str(options.get("config", "")))


def _usual(tree: ast.Module, factory: str) -> bool:
    """Whether a class of this module leaves to OpenPI's base class where statistics are read from."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    while factory != _BASE:
        made = classes.get(factory)
        if made is None or len(made.bases) != 1 or not isinstance(made.bases[0], ast.Name):
            return False
        if any(_names(node) & {"norm_stats", "_load_norm_stats"} or _sets(node, "assets") for node in ast.walk(made)):
            return False
        factory = made.bases[0].id
    return factory in classes


def _names(node: ast.AST) -> set[str]:
    return {str(value) for key in ("id", "attr", "arg", "name") if isinstance(value := getattr(node, key, None), str)}


def _sets(node: ast.AST, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _only_keywords(call: ast.Call) -> bool:
    return not call.args and all(keyword.arg is not None for keyword in call.keywords)


def _argument(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _word(call: ast.Call, name: str) -> object:
    value = _argument(call, name)
    return value.value if isinstance(value, ast.Constant) else None
