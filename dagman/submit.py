"""Submit descriptions as data and one writer of lines: each non-obvious line carries the reason it is there.

The generator decides what stands in them; nothing here touches the disk. `request` and `requirements` lines follow the site's file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.config import STORE_NAME
from agent.exit_codes import CHECKPOINT
from dagman.site import Site
from dagman.spec import Spec


@dataclass(frozen=True)
class Line:
    """``key = value`` with the reason as a comment above it; a key alone (``queue``) has an empty value."""

    key: str
    value: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        # The checks of run.toml and of site files keep these away; a second command must not slip in by any other road.
        for text in (self.key, self.value, self.why):
            if any(char < " " for char in text) or text.endswith("\\"):
                raise ValueError(f"not one line of a submit description: {text!r}")

    def rendered(self) -> Iterator[str]:
        """The comment, if there is one, and the line."""
        if self.why:
            yield f"# {self.why}"
        yield f"{self.key} = {self.value}" if self.value else self.key


@dataclass(frozen=True)
class Description:
    """A submit description: a sentence on top, lines, then ``queue``."""

    title: str
    lines: Sequence[Line]

    def text(self) -> str:
        """The .sub file."""
        rendered = [f"# {self.title}"]
        for line in self.lines:
            rendered.extend(line.rendered())
        return "\n".join([*rendered, "queue", ""])


@dataclass(frozen=True)
class Places:
    """Absolute paths on the access point that submit descriptions name.

    ``input_urls``: inputs that HTCondor brings from staging; ``code``: the code's archive in the workflow directory, "" without.
    """

    directory: Path
    search_path: str = ""
    wandb_key: Path | None = None
    input_urls: tuple[str, ...] = ()
    code: str = ""


def _container(spec: Spec) -> list[Line]:
    if spec.container is None:
        return [Line("universe", "vanilla")]
    lines = [Line("universe", "container"), Line("container_image", spec.container.image)]
    if not spec.container.transfer:
        lines.append(Line("transfer_container", "false", "the machines see the image where it is"))
    return lines


def _brought(places: Places) -> tuple[str, ...]:
    """Archives that HTCondor brings: those of staging by URL, the code from the workflow directory."""
    return (*places.input_urls, *([places.code] if places.code else ()))


def _log(places: Places, output: str) -> list[Line]:
    return [
        Line("output", f"logs/{output}.out"),
        Line("error", f"logs/{output}.err"),
        Line(
            "log",
            str(places.directory / "events.log"),
            "one event log for the whole run: `segue status` reads it and never polls the queue",
        ),
        Line("notification", "never"),
    ]


def _requirements(site: Site, spec: Spec, own: str | None = None, staging: bool = True) -> list[Line]:
    parts = [site.staging.requirement] if staging and site.staging.requirement else []
    if own:
        parts.append(f"({own})")
    if not parts:
        return []
    why = (
        "only machines that mount staging (the site's guide: file-avail-largedata)"
        if site.staging.requirement and staging
        else ""
    )
    return [Line("requirements", " && ".join(parts), why)]


def _environment(places: Places) -> list[Line]:
    if not places.search_path:
        return []
    return [
        Line(
            "environment",
            f'"PATH={places.search_path}"',
            "this machine's own Python runs the agent and the trainer; nothing else is passed on",
        )
    ]


def segment(spec: Spec, site: Site, places: Places) -> Description:
    """One segment; the DAG's VARS give $(segment) and $(class)."""
    ask, default = spec.resources, site.resources
    gpus = default.gpus if ask.gpus is None else ask.gpus
    inputs = ["job.json", "jobs.pyz", "placeholder/handover.json", *_brought(places)]
    moved = spec.agent.checkpoint_exit
    if moved:
        inputs.append(STORE_NAME)
    if places.wandb_key is not None:
        inputs.append(str(places.wandb_key))
    lines = [
        *_container(spec),
        Line("executable", str(places.directory / "agent.pyz")),
        Line(
            "arguments",
            '"run --config job.json --segment $(segment) --class $(class) --handover handover.json"',
        ),
        Line("initialdir", str(places.directory)),
        *_environment(places),
        Line("should_transfer_files", "YES"),
        Line("transfer_input_files", ", ".join(inputs)),
    ]
    if places.wandb_key is not None:
        lines[-1] = Line(
            "transfer_input_files",
            ", ".join(inputs),
            "the W&B key travels as a file of mode 0600; only its path is in the job ad",
        )
    outputs = ["handover.json", *([STORE_NAME] if moved else ())]
    lines += [
        Line(
            "when_to_transfer_output",
            "ON_EXIT",
            "an eviction goes on from the last checkpoint that HTCondor stored"
            if moved
            else "checkpoints go to staging while training runs; an eviction has nothing to transfer",
        ),
        Line("transfer_output_files", ", ".join(outputs)),
        Line("transfer_output_remaps", '"handover.json = handovers/segment-$(segment).json"'),
    ]
    if moved:
        lines += [
            Line(
                "checkpoint_exit_code",
                str(CHECKPOINT),
                "no staging is mounted: HTCondor moves the checkpoints, and restarts the job with them",
            ),
            Line(
                "transfer_checkpoint_files",
                f"{STORE_NAME}, handover.json",
                "into the access point's SPOOL: no checkpoint_destination, because a plain path there is ignored",
            ),
        ]
    lines += [
        Line(
            "kill_sig",
            "SIGTERM",
            "the agent publishes what is complete and leaves; only this key, or hold and remove would differ",
        ),
        Line(
            "job_max_vacate_time",
            "600",
            "seconds from SIGTERM to SIGKILL; a machine may grant less, and the agent asks it",
        ),
        Line("request_cpus", str(ask.cpus or default.cpus)),
        Line("request_memory", f"{ask.memory_mb or default.memory_mb}MB"),
        Line("request_disk", f"{ask.disk_mb or default.disk_mb}MB"),
    ]
    if gpus:
        lines.append(Line("request_gpus", str(gpus)))
        if ask.gpu_memory_mb:
            lines.append(
                Line(
                    "gpus_minimum_memory",
                    str(ask.gpu_memory_mb),
                    "memory and capability rather than a card's name: more machines match",
                )
            )
        if ask.gpu_capability:
            lines.append(Line("gpus_minimum_capability", f"{ask.gpu_capability:g}"))
    for number, text in enumerate(site.submit.segment):
        key, _, value = text.partition("=")
        why = site.submit.segment_why[number] if number < len(site.submit.segment_why) else ""
        lines.append(Line(key.strip(), value.strip(), why))
    if spec.segments.resumable and site.submit.resumable:
        key, _, value = site.submit.resumable.partition("=")
        lines.append(Line(key.strip(), value.strip(), site.submit.resumable_why))
    if spec.wandb is not None and spec.wandb.oauth:
        lines.append(Line("use_oauth_services", "wandb", "the W&B key lies in the access point's credential store"))
    lines += _requirements(site, spec, ask.requirements, staging=not moved)
    if site.avoid_failed_machine:
        lines += _avoid(places)
    lines += _log(places, "segment-$(segment)")
    where = f"the newest commit in {STORE_NAME}/" if moved else "the newest commit in staging"
    return Description(
        f"One segment of run {spec.name}: resume from {where}, train, hand over before the limit.",
        lines,
    )


def _avoid(places: Places) -> list[Line]:
    path = places.directory / "avoid" / "segment-$(segment).sub"
    return [
        Line("job_machine_attrs", "Machine", "the job ad and the history keep the machines of all attempts"),
        Line("job_machine_attrs_history_length", "5"),
        Line(
            f"include ifexist : {path}",
            "",
            "a retry avoids the machine that failed: the PRE script writes this file from the last handover",
        ),
    ]


def helper(spec: Spec, site: Site, places: Places, node: str) -> Description:
    """The stage or consolidate node: a program of jobs.pyz that needs staging and no GPU."""
    why = {
        "stage": "verifies the inputs in staging before any GPU is asked for",
        "consolidate": "verifies the last commit, writes the inference parameters into final/, prunes",
        "norm_stats": "computes the normalisation statistics once, before the first segment",
    }[node]
    inputs = ["job.json", *(_brought(places) if node == "norm_stats" else ())]
    back = [Line("transfer_output_files", '""', "results go to staging; nothing comes back")]
    if spec.agent.checkpoint_exit and node == "consolidate":
        inputs.append(STORE_NAME)
        back = [
            Line("transfer_output_files", f"{STORE_NAME}/final", "no staging is mounted: the result comes back here"),
            Line("preserve_relative_paths", "true"),
        ]
    lines = [
        *_container(spec),
        Line("executable", str(places.directory / "jobs.pyz")),
        Line("arguments", f'"{node} --config job.json"'),
        Line("initialdir", str(places.directory)),
        *_environment(places),
        Line("should_transfer_files", "YES"),
        Line("transfer_input_files", ", ".join(inputs)),
        Line("when_to_transfer_output", "ON_EXIT"),
        *back,
        Line("request_cpus", str(site.resources.helper_cpus)),
        Line("request_memory", f"{spec.resources.helper_memory_mb or site.resources.helper_memory_mb}MB"),
        Line("request_disk", f"{site.resources.helper_disk_mb}MB"),
        *_requirements(site, spec, staging=not (spec.agent.checkpoint_exit and node != "stage")),
        *_log(places, node),
    ]
    return Description(f"Node {node} of run {spec.name}: {why}.", lines)
