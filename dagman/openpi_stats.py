"""Whether an OpenPI run will have normalisation statistics: said on the access point, before a GPU is waited for.

The trainer ends without them, and a checkout that has them may leave them behind: OpenPI's own .gitignore names `assets/`, and what git ignores
does not travel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from agent.errors import SegueError
from agent.norm_stats import ASSETS, FILE
from agent.recipes.openpi_stats import CONFIGS, needs_own
from dagman.code import TARGET, Checkout, read_checkout
from dagman.paths import beside
from dagman.spec import Spec


def note(spec: Spec, checkout: Checkout | None) -> list[str]:
    """One sentence on statistics that are missing, or that only the image can have. ``checkout``: what travels as `code`, where it is here."""
    options, config = spec.trainer.options, str(spec.trainer.options.get("config", ""))
    if not spec.trainer.recipe.startswith("openpi") or options.get("norm_stats") or config.startswith("debug"):
        return []
    if any(_is_assets(asset.target) for asset in spec.data.assets) or (checkout is None and spec.code is not None):
        return []
    remedy = "set trainer.options.norm_stats = true and they are computed before the first segment"
    lacking = f"norm_stats: nothing that travels has {ASSETS}/{config}/…/{FILE}"
    if checkout is None:
        return [
            f"{lacking}, and without them OpenPI's trainer ends at its start: unless the image's checkout has them, {remedy}"
        ]
    if _has(config, (entry.name for entry in checkout.entries)):
        return []
    try:
        text = (checkout.directory / CONFIGS).read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = ""
    own = needs_own(options, spec.trainer.args, text)
    if own is False:
        return []
    left = " (git ignores those in your checkout)" if _has(config, _below(checkout.directory)) else ""
    if own is None:
        return [
            f"{lacking}{left}, and without them OpenPI's trainer ends at its start: unless config {config!r} reads others, {remedy}"
        ]
    return [f"{lacking}{left}, where OpenPI's config {config!r} reads them, so the job will refuse to start: {remedy}"]


def planned(spec: Spec, directory: Path) -> list[str]:
    """The same where no workflow is made yet; ``directory``: that of run.toml. What is wrong with the code is for others to say."""
    checkout = None
    if spec.code is not None and spec.trainer.recipe.startswith("openpi"):
        with suppress(SegueError, OSError):
            checkout = read_checkout(beside(directory, spec.code))
    return note(spec, checkout)


def _is_assets(target: str) -> bool:
    parts = PurePosixPath(os.path.normpath(target)).parts
    return ASSETS in (parts[:1] if parts[:1] != (TARGET,) else parts[1:2])


def _has(config: str, names: Iterable[str]) -> bool:
    return any(name.startswith(f"{ASSETS}/{config}/") and name.endswith(f"/{FILE}") for name in names)


def _below(directory: Path) -> list[str]:
    return [path.relative_to(directory).as_posix() for path in (directory / ASSETS).rglob(FILE)]
