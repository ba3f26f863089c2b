"""From spec, site and plan to the files of the workflow directory: a pure function; dagman.write puts them on the disk.

stage -> segment_000 -> segment_001 -> ... -> consolidate, and a FINAL node that fails when the DAG failed. Every path is absolute, so
`condor_submit_dag` works from any directory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.config import STORE_NAME, BudgetRule, ClassLimit, InputArchive, JobConfig, RetentionRule, Wandb, dump
from agent.errors import BadInput
from agent.exit_codes import PERMANENT
from agent.pack import Member
from dagman import submit
from dagman.code import Checkout
from dagman.dag import Dag, Node, Script, text
from dagman.paths import absolute, beside
from dagman.plan import Plan
from dagman.scripts import FINAL_SCRIPT, PRE_SEGMENT, PRE_SKIP_EXIT
from dagman.site import Site
from dagman.spec import Spec

_STORE_NOTE = (
    "The run's checkpoints, where jobs mount no staging: HTCondor brings this directory to each segment and back.\n"
    "`segue commits`, `segue verify` and `segue prune` work on it.\n"
)
PLACEHOLDER = "placeholder/handover.json"
_UNSAFE = set(" \t\n\r\"'$%\\;#,=<>*?[]{}()|&`!")

ANOTHER_STAGING = "give another `staging`"
_WORDS = {" ": "a space", "\n": "a line feed"}


@dataclass(frozen=True)
class File:
    """A file of the workflow directory, relative to it."""

    path: str
    text: str
    mode: int = 0o644


@dataclass(frozen=True)
class Archive:
    """A small archive that travels with each job from the workflow directory: its file name, what is in it, and its promised digest."""

    name: str
    entries: Sequence[Member]
    sha256: str


@dataclass(frozen=True)
class Workflow:
    """What `segue dag` writes; agent.pyz and jobs.pyz are built beside by dagman.write.

    ``directories``: to be made where they are missing (the staging directory of a site that has its own beside run.toml); ``notes``: what
    the user is told of it, one sentence each.
    """

    directory: Path
    dag: str
    files: Sequence[File]
    job: JobConfig
    archives: Sequence[Archive] = ()
    directories: Sequence[Path] = ()
    notes: Sequence[str] = ()


def check_path(path: Path, what: str, remedy: str = "move it, or give another with --to") -> None:
    """BadInput for a path that HTCondor's languages cannot carry."""
    bad = sorted(char for char in set(str(path)) if char in _UNSAFE or not char.isprintable())
    if bad:
        shown = " ".join(_WORDS.get(char, char if char.isprintable() else ascii(char)) for char in bad)
        raise BadInput(
            f"{str(path)!r}: {what} holds {shown}, which DAG and submit files cannot carry in a path: {remedy}"
        )
    for forbidden in ("/tmp", "/var/tmp"):
        if path.is_relative_to(forbidden) and what == "the workflow directory":
            raise BadInput(
                f"{path}: DAGMan refuses to keep its log under {forbidden}: put run.toml somewhere else, or give another directory with --to"
            )


def check_directory(directory: Path, site: Site) -> None:
    """BadInput for a workflow directory whose path no file can carry, or from which the site lets nobody submit."""
    check_path(directory, "the workflow directory")
    for forbidden in site.submit_forbidden_under:
        if directory.is_relative_to(forbidden):
            raise BadInput(
                f"{directory}: site {site.name} forbids submitting from {forbidden}: put run.toml under your home directory"
            )


def fingerprint(spec: Spec, inputs: Sequence[InputArchive], code: InputArchive | None) -> dict[str, str]:
    """What must not change between segments, field by field; `steps` may (a run can be made longer)."""
    fields = {"recipe": spec.trainer.recipe, "args": json.dumps(list(spec.trainer.args), ensure_ascii=False)}
    for key, value in sorted(spec.trainer.options.items()):
        fields[f"options.{key}"] = json.dumps(value, ensure_ascii=False, sort_keys=True)
    for entry in inputs:
        fields["dataset" if entry.name == "dataset" else f"asset.{entry.name}"] = f"sha256:{entry.sha256}"
    if spec.container is not None:
        fields["image"] = spec.container.image
    if code is not None:
        fields["code"] = f"sha256:{code.sha256}"
    return fields


def staging_of(spec: Spec, site: Site, run_toml: Path) -> Path:
    """The user's staging directory, absolute."""
    if spec.agent.checkpoint_exit and not site.staging.transfers:
        return Path()
    if spec.staging is not None:
        try:
            return beside(absolute(run_toml).parent, spec.staging)
        except BadInput as error:
            raise BadInput(f"staging: {error}") from None
    return absolute(site.staging_path(absolute(run_toml).parent, spec.user))


def job_config(
    spec: Spec,
    site: Site,
    plan: Plan,
    staging: Path,
    inputs: Sequence[InputArchive] = (),
    code: InputArchive | None = None,
    accept_change: Sequence[str] = (),
    wandb_key: str | None = None,
) -> JobConfig:
    """job.json's content."""
    wandb = None
    if spec.wandb is not None:
        given = spec.wandb
        own = f"{spec.name}-{hashlib.sha256(f'{staging}/{spec.name}'.encode()).hexdigest()[:8]}".replace(".", "-")
        wandb = Wandb(
            given.project,
            given.id or own,
            given.entity,
            given.group or spec.name,
            given.tags,
            given.name or str(spec.trainer.options.get("exp_name") or spec.name),
            given.mode,
            wandb_key,
        )
    # Every class of the site travels: a segment's class is in its VARS, and may be changed there without a new job.json.
    classes = {name: ClassLimit(entry.limit_s) for name, entry in site.classes.items()}
    room = int(spec.budget.gb * 1e9) if spec.budget.gb is not None else site.staging.bytes
    return JobConfig(
        run=spec.name,
        staging="" if staging == Path() else str(staging),
        steps=spec.steps,
        recipe=spec.trainer.recipe,
        python=spec.trainer.python or site.python_path(),
        args=spec.trainer.args,
        env=spec.trainer.env,
        options=spec.trainer.options,
        inputs=tuple(inputs),
        code=code,
        classes=classes,
        margin_s=plan.margin_s,
        kill_grace_s=site.margin.kill_grace_s,
        pace=plan.pace,
        save_interval=plan.save_interval,
        retention=RetentionRule(spec.retention.keep, spec.retention.every, spec.retention.best),
        budget=BudgetRule(room or None, (spec.budget.items or site.staging.items) or None),
        fingerprint=fingerprint(spec, inputs, code),
        accept_change=tuple(accept_change),
        wandb=wandb,
        telemetry_s=spec.agent.telemetry_s,
        hang_factor=spec.agent.hang_factor,
        hang_min_s=spec.agent.hang_min_s,
        carry=spec.agent.carry,
        checkpoint_exit=spec.agent.checkpoint_exit,
        publish_bytes_per_s=spec.agent.publish_mb_per_s * 1e6 if spec.agent.publish_mb_per_s else None,
    )


def segment_name(number: int) -> str:
    """The DAG node of a segment."""
    return f"segment_{number:03d}"


def make_dag(spec: Spec, site: Site, plan: Plan, directory: Path, norm_stats: bool = False) -> Dag:
    """The chain as nodes and edges."""
    first = [Node("stage", str(directory / "stage.sub"), retries=site.retries, unless_exit=PERMANENT)]
    if norm_stats:
        first.append(Node("norm_stats", str(directory / "norm_stats.sub"), retries=site.retries, unless_exit=PERMANENT))
    segments = [
        Node(
            segment_name(number),
            str(directory / "segment.sub"),
            vars={"segment": f"{number:03d}", "class": plan.queue_class},
            pre=Script(str(directory / "scripts/pre_segment"), (f"{number:03d}", str(spec.steps), "$RETRY")),
            pre_skip=PRE_SKIP_EXIT,
            retries=site.retries,
            unless_exit=PERMANENT,
        )
        for number in range(plan.segments)
    ]
    last = Node("consolidate", str(directory / "consolidate.sub"), retries=site.retries, unless_exit=PERMANENT)
    nodes = [*first, *segments, last]
    edges = [(parent.name, child.name) for parent, child in itertools.pairwise(nodes)]
    summary = Script(str(directory / "scripts/final"), ("$DAG_STATUS", "$FAILED_COUNT"))
    return Dag(
        nodes,
        edges,
        final=Node("summary", str(directory / "stage.sub"), post=summary, noop=True),
        config=str(directory / "dagman.config"),
        notes=[
            f"Run {spec.name}: {spec.steps} steps; segments of class {plan.queue_class}: {plan.needed} needed, {plan.reserve} in reserve.",
            "Each segment resumes from the newest commit in staging. One that starts after the run is complete is skipped by its PRE script",
            f"(exit {PRE_SKIP_EXIT} = PRE_SKIP) and asks for no machine. Exit {PERMANENT} says that a retry cannot help.",
            "FINAL runs no job; its POST script fails when the DAG failed, because HTCondor takes its result for the whole DAG's.",
        ],
    )


def generate(
    spec: Spec,
    site: Site,
    plan: Plan,
    directory: Path,
    job: JobConfig,
    run_toml_text: str,
    places: submit.Places,
    code: Checkout | None = None,
) -> Workflow:
    """All files of the workflow directory."""
    check_directory(directory, site)
    if job.staging:
        check_path(Path(job.staging), "staging", ANOTHER_STAGING)
    norm_stats = bool(spec.trainer.options.get("norm_stats")) and spec.trainer.recipe.startswith("openpi")
    dag = make_dag(spec, site, plan, directory, norm_stats)
    config = (
        "# DAGMan looks at the event log this often (seconds); a hand-over between segments takes one to two of these.\n"
        f"DAGMAN_USER_LOG_SCAN_INTERVAL = {site.scan_interval_s}\n"
    )
    files = [
        File(f"{spec.name}.dag", text(dag)),
        File("dagman.config", config),
        File("stage.sub", submit.helper(spec, site, places, "stage").text()),
        File("segment.sub", submit.segment(spec, site, places).text()),
        File("consolidate.sub", submit.helper(spec, site, places, "consolidate").text()),
        File("scripts/pre_segment", PRE_SEGMENT, 0o755),
        File("scripts/final", FINAL_SCRIPT, 0o755),
        File(PLACEHOLDER, json.dumps({"format": 1, "state": "pending"}) + "\n"),
        File("run.toml", run_toml_text),
        File("job.json", dump(job)),
    ]
    if spec.agent.checkpoint_exit:
        files.append(File(f"{STORE_NAME}/README", _STORE_NOTE))
    if norm_stats:
        files.append(File("norm_stats.sub", submit.helper(spec, site, places, "norm_stats").text()))
    archives = []
    if code is not None and job.code is not None:
        archives.append(Archive(job.code.archive, code.entries, job.code.sha256))
        about = {
            "directory": str(code.directory),
            "describe": code.describe,
            "sha256": job.code.sha256,
            "bytes": job.code.bytes,
        }
        files += [File("code.json", json.dumps(about, indent=1) + "\n"), File("code.diff", code.diff)]
    own = "{directory}" in site.staging.path and spec.staging is None and job.staging
    return Workflow(directory, f"{spec.name}.dag", files, job, archives, [Path(job.staging)] if own else [])
