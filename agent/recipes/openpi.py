"""OpenPI's JAX trainer, `scripts/train.py <config>` (observed at commit 15a9616).

Label k has k+1 updates done. It saves at `step % save_interval == 0` and at `num_train_steps - 1`; its learning-rate schedule counts by a
`decay_steps` of its own, so a segment may be ended by --num-train-steps. The data order starts anew at every resume: a fresh --seed for
each start lets short segments see all of the data. It has no handling of signals.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from agent.config import JobConfig
from agent.errors import BadInput
from agent.norm_stats import ASSETS
from agent.recipes import checks, environment
from agent.recipes.base import Finished, Progress, Recipe, Start
from agent.recipes.directories import numbered, remove
from agent.recipes.openpi_stats import CONFIGS, needs_own
from agent.recipes.options import at_least_one, leave_alone, named, only_known, option

OPTIONS = (
    "config",
    "exp_name",
    "app",
    "script",
    "fsdp_devices",
    "fresh_seed",
    "seed",
    "tokenizer",
    "norm_stats",
    "norm_stats_frames",
    "asset_id",
    "bfloat16",
    "compile_cache",
)
TOKENIZER = "big_vision/paligemma_tokenizer.model"
IMAGE_APP = "/app"
CODE = "code"
WANDB_ID = "wandb_id.txt"

_TEMPORARY = "orbax-checkpoint-tmp"
_ITEMS = ("params", "train_state")
_STEP_LINE = re.compile(r"\bStep (\d+): (.*)")
_DIRECTORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LOSS = re.compile(r"\bloss=([-+.\deEnaif]+)")
_BAR = re.compile(r"(?:\||Progress on:\S*)\s*(\d+(?:\.\d+)?)(k?)(?:it)?/(\d+(?:\.\d+)?)(k?)(?:it)?\b")
_EPOCH_SEEDS = 1000
# XLA's own caches put their path, which holds the scratch directory's, into the key of jax's compile cache: it would never be hit again.
_JAX = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none"}
_JAX_WITHOUT_CACHE = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", "JAX_ENABLE_COMPILATION_CACHE": "false"}
_TAKEN = {
    "--exp-name": "give options.exp_name",
    "--num-train-steps": "give `steps`",
    "--save-interval": "give segments.save_interval",
    "--checkpoint-base-dir": "",
    "--resume": "",
    "--no-resume": "",
    "--overwrite": "",
    "--no-overwrite": "",
}


class OpenPIBase(Recipe):
    """What OpenPI's two trainers share: the checkout, the config, the places of data and checkpoints, the checks."""

    script = ""
    labels_wandb = True

    def __init__(self) -> None:
        self._total = 0

    def configure(self, job: JobConfig) -> None:
        """Options are known and whole, arguments leave alone what the recipe sets."""
        only_known(job, OPTIONS)
        self.config(job)
        leave_alone(job, _TAKEN)
        at_least_one(job, "norm_stats_frames", "fsdp_devices")
        asset = option(job, "asset_id", str, "")
        if asset.startswith("/") or ".." in asset.split("/"):
            raise BadInput(
                f"run.toml: trainer.options.asset_id is {asset!r}; it must name a directory below assets/{self.config(job)}"
            )

    # --- places ---------------------------------------------------------------------------------------------------

    def config(self, job: JobConfig) -> str:
        """The name of OpenPI's training config."""
        name = option(job, "config", str, "")
        if not name:
            raise BadInput("run.toml: trainer.options.config is missing: the name of one of OpenPI's training configs")
        return name

    def exp_name(self, start: Start) -> str:
        """OpenPI's experiment name, under which W&B shows the run: options.exp_name, else wandb.name where it can name a directory, else
        the run's name.
        """
        wandb = start.job.wandb
        shown = wandb.name if wandb is not None and wandb.name and _DIRECTORY.fullmatch(wandb.name) else None
        return option(start.job, "exp_name", str, shown or start.job.run)

    def working_directory(self, start: Start) -> Path:
        """The user's checkout that travelled as `code`, else the one in the image."""
        code = start.scratch / (start.job.code.target if start.job.code is not None else CODE)
        return code if (code / "scripts").is_dir() else Path(option(start.job, "app", str, IMAGE_APP))

    def checkpoint_root(self, start: Start) -> Path:
        return start.scratch / "checkpoints" / self.config(start.job) / self.exp_name(start)

    def assets(self, start: Start) -> Path:
        """Where `<config>/<asset id>/norm_stats.json` are looked for: those staged or computed for this run, else the checkout's."""
        own, shipped = start.scratch / ASSETS, self.working_directory(start) / ASSETS
        config = self.config(start.job)
        return shipped if not (own / config).is_dir() and (shipped / config).is_dir() else own

    # --- start ----------------------------------------------------------------------------------------------------

    def seed(self, start: Start) -> int:
        """The first attempt has the user's own seed, each later start another one."""
        base = option(start.job, "seed", int, 42)
        return base + _EPOCH_SEEDS * max(0, start.epoch - 1) + start.start_number - 1

    def words(self, start: Start) -> list[str]:
        """The script, the config and the arguments that both trainers take."""
        args = start.job.args
        script = self.working_directory(start) / option(start.job, "script", str, self.script)
        words = [
            str(script),
            self.config(start.job),
            f"--exp-name={self.exp_name(start)}",
            f"--checkpoint-base-dir={start.scratch / 'checkpoints'}",
            "--no-overwrite",
        ]
        if named(args, "--assets-base-dir") is None:
            words.append(f"--assets-base-dir={self.assets(start)}")
        if option(start.job, "fresh_seed", bool, True) and named(args, "--seed") is None:
            words.append(f"--seed={self.seed(start)}")
        if start.job.wandb is not None:
            words.append(f"--project-name={start.job.wandb.project}")
        elif not any("wandb-enabled" in word.replace("_", "-") for word in args):
            words.append("--no-wandb-enabled")
        return [*words, *args]

    def environment(self, start: Start) -> dict[str, str]:
        here = self.working_directory(start)
        before = start.job.env.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
        paths = [str(here / "src"), str(here / "packages/openpi-client/src"), *([before] if before else [])]
        told = environment.caches(start)
        told.update(environment.yielding(start, _JAX if self._caches_programs(start) else _JAX_WITHOUT_CACHE))
        return {**told, "PYTHONPATH": os.pathsep.join(paths)}

    def python(self, start: Start) -> str:
        """The trainer's Python: the image's environment unless run.toml names another."""
        return environment.python(start.job)

    # --- before a start -------------------------------------------------------------------------------------------

    def prepare(self, start: Start) -> None:
        """Checks first, then cleaning."""
        self.check(start)
        self._norm_stats_are_there(start)
        root = self.checkpoint_root(start)
        root.mkdir(parents=True, exist_ok=True)
        self.clean(start, root)
        self._total = self.told_steps(start)
        (start.scratch / environment.WANDB_FILES).mkdir(exist_ok=True)
        if start.job.wandb is not None and start.resume_step > 0 and not (root / WANDB_ID).is_file():
            (root / WANDB_ID).write_text(start.job.wandb.id, encoding="utf-8")

    def check(self, start: Start) -> None:
        """All that can be seen to be missing before a GPU waits for it."""
        checks.check_python(self.python(start))
        checks.check_home(start)
        checks.check_certificates(start)
        here = self.working_directory(start)
        script = here / option(start.job, "script", str, self.script)
        if not script.is_file():
            raise BadInput(
                f"{script}: OpenPI's trainer is not there: give your checkout as `code` in run.toml, or its place in the "
                "image as trainer.options.app"
            )
        for dataset in checks.datasets(start):
            checks.check_dataset(dataset)
        self._place_tokenizer(start)

    def norm_stats_script(self, start: Start) -> Path:
        """OpenPI's program that computes normalisation statistics."""
        return self.working_directory(start) / "scripts/compute_norm_stats.py"

    def _norm_stats_are_there(self, start: Start) -> None:
        config = self.assets(start) / self.config(start.job)
        if next(config.rglob("norm_stats.json"), None) is not None:
            return
        if start.job.options.get("norm_stats"):
            raise BadInput(
                f"{config}: no norm_stats.json below it, and options.norm_stats is set: node norm_stats should have computed them "
                "(those of another dataset, code or config are not taken): look at logs/norm_stats.err in the workflow directory; `segue "
                "submit` runs it again"
            )
        try:
            text = (self.working_directory(start) / CONFIGS).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return
        if needs_own(start.job.options, start.job.args, text):
            raise BadInput(
                f"{config}: no norm_stats.json below it, where OpenPI's config {self.config(start.job)!r} reads its normalisation statistics: set "
                "trainer.options.norm_stats = true in run.toml, or let them travel with the code (OpenPI's .gitignore names assets/)"
            )

    def _place_tokenizer(self, start: Start) -> None:
        """PaliGemma's tokenizer cannot be downloaded any more: it comes with the run, or from the image."""
        wanted: object = start.job.options.get("tokenizer", True)
        if wanted is False or self.config(start.job).startswith("debug"):
            return
        home = Path(start.job.env.get("OPENPI_DATA_HOME", str(start.scratch / environment.OPENPI_HOME)))
        target = home / TOKENIZER
        if target.is_file():
            return
        image = os.environ.get("OPENPI_DATA_HOME", "")
        here = self.working_directory(start)
        places = [here / "assets" / target.name, here / target.name]
        if isinstance(wanted, str):
            places.insert(0, start.scratch / wanted)
        if image:
            places.append(Path(image) / TOKENIZER)
        for place in places:
            if place.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place, target)
                return
        raise BadInput(
            f"{target}: PaliGemma's tokenizer is missing and cannot be downloaded in a job: add to run.toml's data.assets "
            f'{{source = "paligemma_tokenizer.model", target = "{environment.OPENPI_HOME}/big_vision"}}, or set '
            "trainer.options.tokenizer = false if your config needs none"
        )

    def clean(self, start: Start, root: Path) -> None:
        """Remove what a killed start left: both trainers resume from the greatest number whatever is in it."""
        for path in list(root.iterdir()):
            if _TEMPORARY in path.name or path.name.startswith("tmp_"):
                remove(path)
        for number, name in numbered(root).items():
            if self.step_of(number) > start.resume_step:
                remove(root / name)

    def step_of(self, label: int) -> int:
        """Updates done in the checkpoint of that label."""
        return label

    def told_steps(self, start: Start) -> int:
        """--num-train-steps for this start."""
        return start.last_step

    # --- while it runs --------------------------------------------------------------------------------------------

    def beside(self, root: Path) -> tuple[str, ...]:
        """Files beside the steps that travel with each."""
        return (WANDB_ID,) if (root / WANDB_ID).is_file() else ()

    def bar(self, line: str) -> int | None:
        """The count of a progress bar over this start's steps, None for any other line. From 1000 on it is rounded: the least it can mean."""
        match = _BAR.search(line)
        if match is None:
            return None
        (done, half), (total, unsure) = (_rounded(match[n], match[n + 1]) for n in (1, 3))
        least = math.ceil(done - half)
        return least if abs(total - self._total) <= unsure and least > 0 else None

    def reports_every(self, start: Start) -> int | None:
        """The bar counts each step, rounded to hundreds at worst."""
        return 100

    def carried(self, start: Start) -> Sequence[str]:
        return (environment.JAX_CACHE,) if self._caches_programs(start) else ()

    def _caches_programs(self, start: Start) -> bool:
        """Without a GPU never: there, programs that jax 0.5.3 takes from its cache gave other numbers, and broke the heap."""
        return start.gpus > 0 and option(start.job, "compile_cache", bool, True)


def _rounded(digits: str, kilo: str) -> tuple[float, float]:
    """A number of a progress bar and half of its last digit's weight."""
    if not kilo:
        return float(digits), 0.0
    return float(digits) * 1000, 0.5 * 1000 / 10 ** len(digits.partition(".")[2])


class OpenPI(OpenPIBase):
    """`python scripts/train.py <config> --resume …`; always with --resume, which starts afresh where nothing is to be resumed."""

    name = "openpi"
    script = "scripts/train.py"
    sets_last_step = True
    sets_save_interval = True

    def step_of(self, label: int) -> int:
        return label + 1

    def next_save(self, start: Start, after: int) -> int | None:
        """Labels are multiples of the interval, and label k has k + 1 updates."""
        label = super().next_save(start, max(0, after - 1))
        return label + 1 if label is not None else None

    def told_steps(self, start: Start) -> int:
        """At least two: a run that has saved label 0 alone is started afresh by the trainer, so that one would be lost."""
        return max(start.last_step, min(2, start.job.steps))

    def command(self, start: Start) -> list[str]:
        words = [self.python(start), *self.words(start), "--resume", f"--num-train-steps={self.told_steps(start)}"]
        if start.save_interval is not None:
            words.append(f"--save-interval={max(1, start.save_interval)}")
        if named(start.job.args, "--keep-period") is None:
            words.append("--keep-period=None")
        devices = option(start.job, "fsdp_devices", int, max(1, start.gpus))
        if devices > 1 and named(start.job.args, "--fsdp-devices") is None:
            words.append(f"--fsdp-devices={devices}")
        return words

    def finished(self, start: Start) -> list[Finished]:
        """The rename from the temporary name is the commit; both items must be there, for the trainer never falls back to an older step."""
        root = self.checkpoint_root(start)
        found = []
        for label, name in sorted(numbered(root).items()):
            whole = all((root / name / item).is_dir() for item in _ITEMS)
            if whole and (label > 0 or start.job.steps == 1):
                found.append(Finished(label + 1, name, root, (name, *self.beside(root))))
        return found

    def progress(self, line: str) -> Progress | None:
        match = _STEP_LINE.search(line)
        if match is not None:
            loss = _LOSS.search(match[2])
            try:
                return Progress(int(match[1]) + 1, float(loss[1]) if loss else None)
            except ValueError:
                return Progress(int(match[1]) + 1)
        done = self.bar(line)
        return Progress(done) if done is not None else None
