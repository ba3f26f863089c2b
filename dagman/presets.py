"""Presets (dagman/presets/*.toml) and what `segue init` makes of them; warnings that `segue plan` gives before the queue does."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from agent.errors import BadInput
from agent.recipes.environment import OPENPI_HOME
from dagman.openpi_stats import planned
from dagman.prepare import Asked
from dagman.site import load_site, shipped_sites
from dagman.spec import secret_options
from dagman.toml import read_toml, suggestion

REPORTED = 0.98
"""Share of its nominal memory that a card reports at least; drivers keep one to two percent."""


def presets() -> list[str]:
    """Names of the shipped presets."""
    folder = resources.files("dagman").joinpath("presets")
    return (
        sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))
        if folder.is_dir()
        else []
    )


def load_preset(name: str) -> dict[str, Any]:
    """A preset's tables, as in run.toml; BadInput for an unknown name."""
    if name not in presets():
        raise BadInput(
            f"--preset {name}: no such preset; there are {', '.join(presets())}{suggestion(name, presets())}"
        )
    return read_toml(Path(str(resources.files("dagman").joinpath("presets", f"{name}.toml"))))


def warnings(asked: Asked) -> list[str]:
    """What is legal and still likely to hurt."""
    spec, site, plan = asked.spec, asked.site, asked.plan
    found = []
    reach = plan.segments * plan.steps_per_segment
    if reach < spec.steps:
        found.append(
            f"segments.count: {plan.segments} segments make about {reach} of {spec.steps} steps at this pace; the rest needs another submission"
        )
    if plan.gpus:
        count = sum(gpu.machines * gpu.per_machine for gpu in plan.gpus)
        everything = sum(gpu.machines * gpu.per_machine for gpu in site.gpus)
        if count <= everything // 4:
            named = ("gpu_memory_mb", "gpu_capability", "requirements")
            given = [key for key in named if getattr(spec.resources, key) is not None] or ["gpus"]
            found.append(
                f"resources: only {count} of {everything} GPUs fit; asking for less with {' or '.join(given)} would shorten the queue"
            )
    found += _reports_less(asked)
    if spec.retention.every is not None and spec.retention.every <= spec.steps:
        found.append(
            f"retention.every: up to {spec.steps // spec.retention.every} checkpoints stay in staging beside the newest {spec.retention.keep} and "
            "count against its quota"
        )
    found += [
        f"trainer.args: {name} looks like a secret, and arguments are copied into jobs and staging for many to read: let the trainer find it "
        "where only you can read"
        for name in secret_options(spec.trainer.args)
    ]
    found += _of_trainer(asked)
    if spec.container is not None and "YOUR-ACCOUNT" in spec.container.image:
        found.append("container.image: still names YOUR-ACCOUNT: name the image that you pushed (docs/images.md)")
    return found


def _reports_less(asked: Asked) -> list[str]:
    """A card whose nominal memory is asked for reports a little less than that, and is then never matched."""
    wanted = asked.spec.resources.gpu_memory_mb or 0
    close = [gpu for gpu in asked.plan.gpus if wanted > REPORTED * gpu.memory_mb]
    if not close:
        return []
    enough = int(REPORTED * min(gpu.memory_mb for gpu in close)) // 1000 * 1000
    return [
        f"resources.gpu_memory_mb: a card reports a little less than its nominal memory (an H100 of 80 GB: 81559 MB), so {wanted} may shut out "
        f"{', '.join(gpu.name for gpu in close)}: ask for {enough}"
    ]


def _of_trainer(asked: Asked) -> list[str]:
    """What the trainers would stumble over in the job."""
    spec, found = asked.spec, []
    options = spec.trainer.options
    if spec.trainer.recipe == "command":
        words = [str(word) for word in (*spec.trainer.args, *options.get("first", ()), *options.get("resume", ()))]
        if not any("{resume_" in word for word in words):
            found.append(
                "trainer.options.resume: no word names {resume_path} or another {resume_…}: unless the program looks at SEGUE_RESUME_STEP itself, "
                "each start begins anew"
            )
    if spec.trainer.recipe.startswith("openpi"):
        tokenizers = (OPENPI_HOME, f"{OPENPI_HOME}/big_vision")
        travels = any(asset.target in tokenizers for asset in spec.data.assets)
        debug = str(options.get("config", "")).startswith("debug")
        if options.get("tokenizer", True) is True and not debug and not travels:
            found.append(
                "data.assets: PaliGemma's tokenizer is not among them and jobs cannot download it; unless your image has it, add "
                f'{{ source = "paligemma_tokenizer.model", target = "{OPENPI_HOME}/big_vision" }}'
            )
        found += planned(spec, asked.run_toml.parent)
        if options.get("fresh_seed", True):
            found.append(
                "trainer.options.fresh_seed: each attempt gets its own --seed, because OpenPI starts its data order anew at every resume"
            )
        if spec.data.dataset is None and not spec.data.assets:
            found.append("data: no dataset and no assets are staged: every job would have to download them")
    return found


def initial_text(name: str, site_name: str, preset: str | None, directory: Path = Path()) -> str:
    """A commented run.toml. Without a preset: the reference recipe at `local`, a `command` elsewhere.

    ``site_name``: a shipped site, or the path of a site file, relative to ``directory``, where run.toml will lie.
    """
    site = load_site(site_name, directory)
    if preset is not None:
        return _from_preset(name, site_name, load_preset(preset))
    recipe = "reference" if site_name == "local" else "command"
    trainer = ['recipe = "reference"', 'args = ["--batch-size", "64"]'] if recipe == "reference" else [
        'recipe = "command"                    # docs/recipes.md: how your program learns where to resume and when to end',
        'python = "python3"',
        'args = ["train.py", "--out", "{checkpoint_dir}", "--from-step", "{resume_step}", "--last-step", "{last_step}"]',
    ]  # fmt: skip
    classes = ", ".join(f"{key} {entry.limit_s:g} s" for key, entry in site.classes.items())
    return "\n".join(
        [
            f"# {name}: one training. `segue plan run.toml` says what it means, `segue submit run.toml` runs it.",
            f'name = "{name}"                      # unique among your runs in staging',
            f"site = {_value(site_name)}                     # {', '.join(shipped_sites())}, or the path of a site file",
            "steps = 600                           # optimizer updates of the whole training",
            '# staging = "/path"                   # default: the site\'s',
            '# code = "../my-checkout"             # travels as one archive; the image stays',
            "",
            "[trainer]",
            *trainer,
            '# env = { NAME = "value" }            # never a secret: for W&B use `segue login`',
            "",
            "[data]",
            'dataset = "data"                      # a directory or file beside this one; staged once, by digest',
            "",
            "[segments]",
            f'class = "{site.default_class}"                       # {classes}',
            "# save_interval = 100                 # steps; the agent chooses when left out",
            "",
            "[pace]                                # seconds, where you know them; measured as soon as the first segment ran",
            f"step_s = {site.defaults.step_s:g}",
            "",
            "[retention]",
            "keep = 2                              # newest checkpoints kept in staging; every = N keeps one for each N steps too",
            "",
            "# [budget]                            # gb, items: your quota in staging; checkpoint_gb: of one checkpoint, so that plan can tell",
            "# [resources]                         # gpus, cpus, memory_mb, disk_mb, gpu_memory_mb, gpu_capability",
            '# [container]                         # image = "docker://…"',
            '# [wandb]                             # project = "…", entity, group, tags, name, mode',
            "",
        ]
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        return "[\n" + "".join(f"    {_value(entry)},\n" for entry in value) + "]"
    if isinstance(value, list):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(entry)}" for key, entry in value.items()) + " }"
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _from_preset(name: str, site_name: str, preset: dict[str, Any]) -> str:
    lines = [
        f"# {name}: {preset.get('title', 'a training')}. `segue plan run.toml` says what it means, `segue submit run.toml` runs it.",
        *(f"# - {note}" for note in preset.get("notes", ())),
        f'name = "{name}"',
        f"site = {_value(site_name)}",
        f"steps = {preset.get('steps', 25_000)}",
        '# code = "../openpi"                  # your checkout travels as one archive; the image stays',
        "",
    ]
    if "container" not in preset:
        lines += ["[container]", 'image = "docker://YOUR-ACCOUNT/openpi:1"   # images/: how it is built', ""]
    if "data" not in preset:
        lines += [
            "[data]",
            'dataset = "my_dataset"                # a LeRobot dataset: the directory that has meta/ and data/',
            "",
        ]
    for table, values in preset.items():
        if not isinstance(values, dict):
            continue
        lines.append(f"[{table}]")
        for key, value in values.items():
            if not isinstance(value, dict):
                lines.append(f"{key} = {_value(value)}")
        for key, value in values.items():
            if isinstance(value, dict):
                lines += [
                    "",
                    f"[{table}.{key}]",
                    *(f"{inner} = {_value(entry)}" for inner, entry in value.items()),
                ]
        lines.append("")
    return "\n".join(lines)
