"""From run.toml to a checked workflow: what `segue plan`, `dag` and `submit` share. It reads; dagman.write writes."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.config import InputArchive, JobConfig
from agent.errors import BadInput
from agent.pack import members
from agent.recipes import recipe
from agent.recipes.base import Start
from agent.recipes.checks import check_dataset, is_lerobot_dataset
from agent.recipes.options import option
from agent.store.claims import differences
from dagman import openpi_stats, submit, workflow
from dagman.code import Checkout
from dagman.inputs import InputRequest, Recorded, read_record, resolve_inputs
from dagman.paths import absolute, beside
from dagman.plan import Plan, make_plan
from dagman.runs import own_run_file
from dagman.site import Site, load_site
from dagman.spec import Spec, load_spec, workflow_directory
from dagman.workflow import (
    ANOTHER_STAGING,
    Archive,
    Workflow,
    check_path,
    fingerprint,
    generate,
    job_config,
    staging_of,
)

# Where recipes look for the dataset unless run.toml says otherwise, relative to the scratch directory; {name}: of the dataset.
DATASET_TARGETS = {
    "reference": "inputs/dataset",
    "command": "inputs/dataset",
    "openpi": ".cache/huggingface/lerobot/local/{name}",
    "openpi-pytorch": ".cache/huggingface/lerobot/local/{name}",
    "lerobot": ".cache/huggingface/lerobot/local/{name}",
}

_NOWHERE = Path("/nonexistent")
# Options that the nodes norm_stats and consolidate read, not the trainer's start.
_OF_OTHER_NODES: dict[str, type] = {"norm_stats": bool, "norm_stats_frames": int, "asset_id": str, "bfloat16": bool}

# (field, before, now)
Difference = tuple[str, str | None, str | None]
# The agent asks for a word all the same: what the first claim recorded is not its to overwrite.
UNTOUCHED = "; no checkpoint is there yet, so accepting mixes nothing"


@dataclass(frozen=True)
class Asked:
    """A run.toml that was read and planned; ``run_toml`` and ``staging`` are absolute."""

    run_toml: Path
    spec: Spec
    site: Site
    plan: Plan
    staging: Path


def ask(run_toml: Path) -> Asked:
    """Read, check and plan a run.toml, that of a directory, or that which a workflow directory was made from.

    BadInput for anything wrong in it.
    """
    run_toml = own_run_file(run_toml)
    spec = _with_image(load_spec(run_toml), run_toml)
    try:
        site = load_site(spec.site, run_toml.parent)
        plan = make_plan(spec, site)
        trainer = spec.trainer
        told = JobConfig(spec.name, "", spec.steps, trainer.recipe, args=trainer.args, options=trainer.options)
        made = recipe(trainer.recipe)
        made.configure(told)
        if trainer.options:
            # The words of a first start, for nobody: an option of the wrong type is found by who reads it, and here no GPU waits for it.
            start = Start(told, _NOWHERE, 0, None, spec.steps, None, 0.0, epoch=1, gpus=1)
            made.command(start)
            made.environment(start)
            for key, kind in _OF_OTHER_NODES.items():
                option(told, key, kind, kind())
        staging = staging_of(spec, site, run_toml)
    except BadInput as error:
        raise BadInput(f"{run_toml}: {str(error).removeprefix('run.toml: ')}") from None
    return Asked(run_toml, spec, site, plan, staging)


def _with_image(spec: Spec, run_toml: Path) -> Spec:
    """The image as submit descriptions name it: a URL as it is, a file by its absolute path."""
    if spec.container is None or "://" in spec.container.image:
        return spec
    image = str(beside(run_toml.parent, spec.container.image))
    return spec.model_copy(update={"container": spec.container.model_copy(update={"image": image})})


def check_image(asked: Asked) -> None:
    """BadInput when HTCondor is to bring an image file that is not here, or the path cannot stand in a submit description."""
    container = asked.spec.container
    if container is None or "://" in container.image:
        return
    try:
        check_path(Path(container.image), "its path", "move the image, or name it by a link somewhere else")
    except BadInput as error:
        raise BadInput(f"{asked.run_toml}: container.image: {error}") from None
    if container.transfer and not Path(container.image).exists():
        raise BadInput(
            f"{asked.run_toml}: container.image: {container.image}: no such file; an image of a registry is written docker://…, and with "
            "transfer = false the machines are asked for the path"
        )


def requests(spec: Spec, run_toml: Path) -> list[InputRequest]:
    """What run.toml wants in staging; sources are absolute."""
    here = run_toml.parent
    wanted = []
    if spec.data.dataset is not None:
        source = beside(here, spec.data.dataset)
        target = spec.data.dataset_target or DATASET_TARGETS[spec.trainer.recipe].format(name=source.name)
        if source.is_dir() and is_lerobot_dataset(spec.trainer.recipe, "dataset", target):
            check_dataset(source)
        wanted.append(InputRequest("dataset", source, target))
    for asset in spec.data.assets:
        source = beside(here, asset.source)
        wanted.append(InputRequest(asset.name or _input_name(source), source, asset.target))
    targets = [os.path.normpath(entry.target) for entry in wanted]
    for target in targets:
        if targets.count(target) > 1:
            raise BadInput(
                f"{run_toml}: data: two inputs have the target {target!r}, and one would hide the other: give each its own `target`"
            )
    names = [entry.name for entry in wanted]
    for name in names:
        if name == "code":
            raise BadInput(
                f"{run_toml}: data.assets: the name 'code' belongs to the checkout: give this input another `name`"
            )
        if names.count(name) > 1:
            raise BadInput(f"{run_toml}: data.assets: two inputs are named {name!r}: give each its own `name`")
    return wanted


def _input_name(source: Path) -> str:
    """A name for an input that may stand in a URL and in submit language, whatever the file is called."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", source.name).lstrip("._-") or "asset"


def record_path(run_toml: Path) -> Path:
    """What `segue stage` writes beside run.toml: digests of staged inputs, for machines that do not have the sources."""
    return run_toml.with_name(f"{run_toml.stem}.staged.json")


def search_path(site: Site) -> str:
    """PATH for jobs of a site whose machines are this machine: the Python that runs segue comes first. Empty elsewhere."""
    if "{this}" not in site.python:
        return ""
    directory = Path(sys.executable).parent
    check_path(directory, "the directory of this Python", "install segue somewhere else")
    return f"{directory}:/usr/local/bin:/usr/bin:/bin"


def travelling(entry: InputArchive, asked: Asked) -> InputArchive:
    """How the site brings an input: by URL, from mounted staging, or from the workflow directory. BadInput when it cannot."""
    original = entry
    if "{this}" not in asked.site.python:
        # Jobs of a real site do not see the access point's disk: `segue stage` is the only road.
        entry = replace(entry, source="")
    try:
        url = asked.site.transfer_url(asked.staging / "segue" / "_inputs" / entry.archive, entry.bytes)
    except BadInput as error:
        raise BadInput(f"{asked.run_toml}: data: {error}") from None
    # Where jobs see no staging and the site brings nothing from it, inputs travel from the workflow directory.
    entry = replace(entry, travels=url or ("plain" if asked.spec.agent.checkpoint_exit else ""))
    if entry.travels == "plain" and not original.source:
        raise BadInput(
            f"{asked.run_toml}: data: {entry.name} is not on this machine; with agent.checkpoint_exit inputs travel with each job from here: "
            "bring it here first"
        )
    return entry


def _packed(entry: InputArchive, original: InputArchive) -> Archive:
    """A plain input as an archive to be made in the workflow directory."""
    return Archive(entry.archive, members(Path(original.source)), entry.sha256)


def code_archive(asked: Asked, keep: bool = True) -> tuple[InputArchive | None, Checkout | None]:
    """The user's checkout as an archive entry and what is in it; None, None when run.toml names none."""
    if asked.spec.code is None:
        return None, None
    from dagman.code import resolve_code

    return resolve_code(beside(asked.run_toml.parent, asked.spec.code), record_path(asked.run_toml), keep)


def check_directory(asked: Asked, directory: Path) -> None:
    """BadInput when no workflow can be written or submitted there."""
    workflow.check_directory(directory, asked.site)
    if directory.exists() and not directory.is_dir():
        raise BadInput(
            f"{directory}: is a file where the workflow directory would be: give another directory with --to"
        )


def wandb_key(asked: Asked, keep: bool = True) -> tuple[Path | None, list[str]]:
    """The file with the W&B key that travels with the jobs, and what is to be said where there is none. BadInput when others can read it."""
    wandb = asked.spec.wandb
    if wandb is None or wandb.mode == "offline" or wandb.oauth:
        return None, []
    from dagman.wandb_key import key_file

    key = key_file(keep)
    if key is None:
        return None, [
            f"wandb: there is no key on this machine, so jobs write offline whatever wandb.mode says ({wandb.mode}): run `segue login`, or "
            "send it later with `segue wandb sync`"
        ]
    check_path(key, "the path of the W&B key", "set XDG_CONFIG_HOME to another directory, then segue login")
    return key, []


def is_staged(asked: Asked, known: Recorded) -> bool:
    """Whether the record says so, of the staging that run.toml names now; the site's own has another path for each account."""
    place = f"{asked.staging}/segue/_inputs/{known.archive}"
    return known.staged.endswith(place) if asked.spec.staging is not None else bool(known.staged)


def _not_staged(asked: Asked, inputs: Sequence[InputArchive]) -> list[str]:
    """What is to be said of inputs of which no record says that they are in staging, where staging cannot be looked at from here."""
    if asked.staging.is_dir():
        return []
    record = read_record(record_path(asked.run_toml))
    staged = {entry.archive for entry in record.values() if is_staged(asked, entry)}
    absent = [one.name for one in inputs if not one.source and one.travels != "plain" and one.archive not in staged]
    if not absent:
        return []
    return [
        f"{', '.join(absent)}: nothing here says that it is in staging as it is now, and without it the node `stage` fails before any GPU is "
        "asked for: run `segue stage` first"
    ]


def prepare(asked: Asked, to: Path | None = None, accept_change: Sequence[str] = (), dry_run: bool = False) -> Workflow:
    """The whole workflow, checked against the staging directory where it is visible from here.

    What was read once is remembered beside run.toml, and a key of ~/.netrc is copied for the jobs, but not in a ``dry_run``.
    """
    spec, site, keep = asked.spec, asked.site, not dry_run
    directory = absolute(to) if to is not None else workflow_directory(spec, asked.run_toml)
    check_directory(asked, directory)
    try:
        wanted = requests(spec, asked.run_toml)
        inputs = resolve_inputs(wanted, record_path(asked.run_toml), keep)
    except BadInput as error:
        raise placed(asked.run_toml, "data", error) from None
    try:
        code, checkout = code_archive(asked, keep)
    except BadInput as error:
        raise placed(asked.run_toml, "code", error) from None
    originals, inputs = inputs, [travelling(entry, asked) for entry in inputs]
    packed = [
        _packed(entry, original) for entry, original in zip(inputs, originals, strict=True) if entry.travels == "plain"
    ]
    check_image(asked)
    check_staging(asked)
    check_fingerprint(asked, fingerprint(spec, inputs, code), accept_change)
    key, said = wandb_key(asked, keep)
    said += _not_staged(asked, inputs)
    said += openpi_stats.note(spec, checkout)
    job = job_config(spec, site, asked.plan, asked.staging, inputs, code, accept_change, key.name if key else None)
    urls = tuple(entry.archive if entry.travels == "plain" else entry.travels for entry in inputs if entry.travels)
    places = submit.Places(directory, search_path(site), key, urls, code.archive if code and code.travels else "")
    text = asked.run_toml.read_text(encoding="utf-8")
    made = generate(spec, site, asked.plan, directory, job, text, places, checkout)
    return replace(made, archives=[*made.archives, *packed], notes=said)


def placed(run_toml: Path, key: str, error: BadInput) -> BadInput:
    """What is wrong with a source, with the file and the key that name it."""
    text = str(error)
    if text.startswith((str(run_toml), str(record_path(run_toml)))):
        return error
    return BadInput(f"{run_toml}: {key}: {text.removeprefix(f'{key}: ')}")


def check_staging_path(run_toml: Path, staging: Path) -> None:
    """BadInput when the path of staging can stand in no submit description."""
    try:
        check_path(staging, "its path", ANOTHER_STAGING)
    except BadInput as error:
        raise BadInput(f"{run_toml}: staging: {error}") from None


def check_staging(asked: Asked) -> None:
    """BadInput when staging should be visible from here and is missing or read-only, or its path can stand in no submit description."""
    spec, site, staging = asked.spec, asked.site, asked.staging
    if spec.agent.checkpoint_exit:
        return
    check_staging_path(asked.run_toml, staging)
    visible = spec.staging is not None or not site.access_points or site.is_here()
    if not visible:
        return
    if not staging.is_dir():
        if "{directory}" in site.staging.path and spec.staging is None and not staging.exists():
            return  # the local site's own directory: the writer makes it
        raise BadInput(f"{asked.run_toml}: staging: {staging} is not a directory here: make it, or correct `staging`")
    if not os.access(staging, os.W_OK | os.X_OK):
        raise BadInput(
            f"{asked.run_toml}: staging: {staging} is not writable by you here: correct its mode, or give another `staging`"
        )
    if os.statvfs(staging).f_flag & os.ST_RDONLY:
        raise BadInput(f"{asked.run_toml}: staging: {staging} is mounted read-only here: give another `staging`")


def check_fingerprint(asked: Asked, wanted: dict[str, str], accept_change: Sequence[str]) -> None:
    """BadInput when the run's name is taken in staging by another configuration; the agent checks again at each claim."""
    if asked.spec.agent.checkpoint_exit:
        return
    path = asked.staging / "segue" / asked.spec.name
    try:
        recorded = recorded_fingerprint(path)
    except OSError as error:
        raise BadInput(
            f"{asked.run_toml}: name: {path} cannot be read by you here ({error.strerror}): correct its mode, or give another `name`"
        ) from None
    if recorded is None and not asked.staging.is_dir():
        return
    before = recorded or {}
    unknown = [name for name in accept_change if name not in wanted and name not in before]
    if unknown:
        raise BadInput(
            f"--accept-change {unknown[0]}: no such field; there are {', '.join(sorted({*wanted, *before}))}"
        )
    refused = [one for one in differences(before, wanted) if one[0] not in accept_change]
    if refused:
        lines = [f"  {name}: was {was}, is now {'(not set)' if now is None else now}" for name, was, now in refused]
        raise BadInput(
            f"{asked.run_toml}: name: run {asked.spec.name!r} was begun in {path} with another configuration:\n"
            + "\n".join(lines)
            + f"\ngive the new run another `name`, or accept the change for the old one: {accepting(refused)}"
            + ("" if any(path.glob("checkpoints/[0-9]*.tar")) else UNTOUCHED)
        )


def accepting(changed: Sequence[Difference]) -> str:
    """The options of `segue submit` that say of each changed field that it is deliberate."""
    return " ".join(f"--accept-change {shlex.quote(name)}" for name, _, _ in changed)


def recorded_fingerprint(run: Path) -> dict[str, str] | None:
    """The fingerprint that the newest claim recorded (run.json's before any claim), None when the run has not begun."""
    candidates = sorted((run / "epochs").glob("[0-9]*.json"), reverse=True) if (run / "epochs").is_dir() else []
    for path in [*candidates, run / "run.json"]:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found = data.get("fingerprint") if isinstance(data, dict) else None
        if isinstance(found, dict):
            return {str(key): str(value) for key, value in found.items()}
    return None
