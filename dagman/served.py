"""From RUN to a policy server's command line: which server fits the recipe, where the pulled policy lies, which checkout serves it.

Pure lookups on the disk; starting and asking the server is `jobs.serving`.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import BadInput
from dagman.paths import absolute, beside
from dagman.runs import run_file

SERVED = ("openpi", "openpi-pytorch", "reference")
CHECKOUT_VARIABLE = "OPENPI_DIR"
_SCRIPT = Path("scripts") / "serve_policy.py"
_WEIGHTS = ("params", "model.safetensors")


@dataclass(frozen=True)
class Asked:
    """What of a run matters here. ``code``: the user's own checkout (absolute), where run.toml names one that is on this machine."""

    run: str
    recipe: str
    options: Mapping[str, Any]
    code: Path | None


@dataclass(frozen=True)
class Policy:
    """A pulled policy: ``path`` a directory (or, for the reference trainer, an archive); ``config`` the name of OpenPI's config, else empty."""

    recipe: str
    path: Path
    config: str = ""


def asked(run: str) -> Asked:
    """From a run.toml (it need not be generated: a laptop has no workflow) or a workflow directory. Raises BadInput."""
    given = run_file(Path(run))
    if given.suffix == ".toml" and not given.with_name("job.json").is_file():
        from dagman.spec import load_spec

        spec = load_spec(given)
        code = None if spec.code is None else beside(given.parent, spec.code)
        found = Asked(spec.name, spec.trainer.recipe, spec.trainer.options, code)
    else:
        from dagman.runs import find_run

        job = find_run(run).job
        code = Path(job.code.source) if job.code is not None and job.code.source else None
        found = Asked(job.run, job.recipe, job.options, code)
    if found.recipe not in SERVED:
        raise BadInput(
            f"{run}: trainer.recipe = {found.recipe!r}: segue serves what the recipes {', '.join(SERVED)} train; pull the policy with "
            "`segue pull` and serve it with its own program"
        )
    return found


def pulled(run: Asked, said: str, given: Path | None, places: Sequence[Path]) -> Policy:
    """The policy in ``given``, else the newest step that `segue pull` left below the first of ``places`` that has one.

    ``said``: RUN in the user's words. Raises BadInput with the command that pulls when there is none.
    """
    config = str(run.options.get("config") or "")
    if run.recipe != "reference":
        if not config:
            raise BadInput(f"{said}: trainer.options.config is missing: the name of one of OpenPI's training configs")
        below = Path("checkpoints", config, str(run.options.get("exp_name") or run.run))
    else:
        below = Path("checkpoints", run.run)
    if given is not None:
        path = absolute(given)
        if not path.exists():
            raise BadInput(f"--dir {given}: no such file or directory; it is the directory of one pulled step")
        if path.is_file() and run.recipe == "reference":
            return Policy(run.recipe, path, config)
        found = newest(path)
        if found is None:
            raise BadInput(
                f"--dir {given}: holds no policy (neither {' nor '.join(_WEIGHTS)}, nor a numbered directory with one)"
            )
        return Policy(run.recipe, found, config)
    for place in places:
        found = newest(place / below)
        if found is not None:
            return Policy(run.recipe, found, config)
    looked = ", ".join(str(place / below) for place in places)
    raise BadInput(
        f"{looked}: no pulled policy is there: run `segue pull {shlex.quote(said)}` first, or name its directory with --dir"
    )


def newest(place: Path) -> Path | None:
    """The directory itself when it holds weights, else its highest numbered one that does."""
    if not place.is_dir():
        return None
    if _has_weights(place):
        return place
    steps = sorted((path for path in place.iterdir() if path.name.isdecimal() and _has_weights(path)), key=_number)
    return steps[-1] if steps else None


def _has_weights(path: Path) -> bool:
    return any((path / name).exists() for name in _WEIGHTS)


def _number(path: Path) -> int:
    return int(path.name)


def _checkouts(run: Asked, given: Path | None, environment: Mapping[str, str]) -> list[tuple[str, Path]]:
    """Who names an OpenPI checkout, and which, the first to be used."""
    named = environment.get(CHECKOUT_VARIABLE)
    candidates = (
        ("--openpi", given),
        (CHECKOUT_VARIABLE, Path(named) if named else None),
        ("run.toml's `code`", run.code),
    )
    return [(name, path) for name, path in candidates if path is not None]


def places(run: Asked, openpi: Path | None, environment: Mapping[str, str], here: Path) -> list[Path]:
    """Where `segue pull` may have left the policy: here, or in the checkout that serves it (``--to``)."""
    own = [] if run.recipe == "reference" else _checkouts(run, openpi, environment)[:1]
    return list(dict.fromkeys([here, *(absolute(path) for _, path in own)]))


def checkout(run: Asked, given: Path | None, environment: Mapping[str, str]) -> Path:
    """The OpenPI checkout: --openpi, else OPENPI_DIR, else run.toml's `code`. Raises BadInput when none has the server's script."""
    for name, path in _checkouts(run, given, environment):
        found = absolute(path)
        if not (found / _SCRIPT).is_file():
            raise BadInput(f"{name} {path}: is no checkout of OpenPI (it has no {_SCRIPT})")
        return found
    raise BadInput(
        f"no checkout of OpenPI is known: name it with --openpi DIR, {CHECKOUT_VARIABLE}, or `code` in run.toml; it serves the policy"
    )


def python_of(place: Path, given: Path | None) -> list[str]:
    """The words that start the checkout's Python: --python, its `.venv`, else `uv run`. Raises BadInput when there is none."""
    if given is not None:
        found = shutil.which(os.path.expanduser(given))  # noqa: PTH111  (a name without a directory is looked for on PATH)
        if found is None:
            raise BadInput(f"--python {given}: is not a program that can be run")
        return [os.path.abspath(found)]  # noqa: PTH100  (not resolved: a virtual environment is known by its link)
    own = place / ".venv" / "bin" / "python"
    if own.exists():
        return [str(own)]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "run", "python"]
    raise BadInput(
        f"{place}: has no .venv, and uv is not on PATH: make the checkout's environment (OpenPI's README), or give its interpreter with --python"
    )


def openpi_server(python: Sequence[str], place: Path, policy: Policy, port: int) -> list[str]:
    """OpenPI's own server on the policy, to be run in its checkout."""
    return [
        *python,
        str(place / _SCRIPT),
        f"--port={port}",
        "policy:checkpoint",
        f"--policy.config={policy.config}",
        f"--policy.dir={policy.path}",
    ]


def reference_server(python: str, policy: Policy, host: str, port: int) -> list[str]:
    """The reference trainer's own server."""
    words = [python, "-m", "jobs.reference.serve", "--checkpoint", str(policy.path)]
    return [*words, "--host", host, "--port", str(port)]
