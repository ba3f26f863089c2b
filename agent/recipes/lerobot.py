"""LeRobot's trainer, `lerobot-train` (0.3.x and 0.4.x).

Label = updates done, in six digits or more. It writes straight into the final directory and then moves the link `last`: the target of
`last` and what is older are complete. Some of its learning-rate schedules are stretched over --steps, so that is always the whole run's,
unless the policy is known to have none.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

from agent.config import JobConfig
from agent.recipes import checks, environment
from agent.recipes.base import Finished, Progress, Recipe, Start
from agent.recipes.directories import numbered, remove, thin_out
from agent.recipes.options import at_least_one, leave_alone, named, only_known, option
from agent.wandb_run import KEPT_BELOW, LEROBOT_OUTPUT, OFFLINE_RUN, WANDB_FILES

OPTIONS = ("program", "fixed_schedule", "log_freq")
_LAST = "last"
_CONFIG = "pretrained_model/train_config.json"
_NO_SCHEDULE = ("act", "tdmpc")
_LINE = re.compile(r"\bstep:\S+ smpl:.*?\bloss:([-+.\deEnaif]+)")
_SAVED = re.compile(r"Checkpoint policy after step (\d+)")
_FRESH = 'rmdir -- "$1/checkpoints" "$1" && shift && exec "$@"'
_TAKEN = {
    "--steps": "give `steps`",
    "--save_freq": "give segments.save_interval",
    "--output_dir": "",
    "--resume": "",
    "--config_path": "",
}
_ANEW = ("--policy.", "--env.type", "--config_path", "--resume", "--output_dir")


class LeRobot(Recipe):
    """`lerobot-train … --save_freq=…`; resumed from the restored checkpoint's own configuration with the new output directory."""

    name = "lerobot"
    labels_wandb = True
    sets_last_step = True
    sets_save_interval = True

    def __init__(self) -> None:
        self._said = 0
        self._log_freq = 0

    def configure(self, job: JobConfig) -> None:
        """Options are known, arguments leave alone what the recipe sets."""
        only_known(job, OPTIONS)
        leave_alone(job, _TAKEN)
        at_least_one(job, "log_freq")
        self.sets_last_step = self.ends_by_steps(job)

    def output(self, start: Start) -> Path:
        """The trainer's output directory."""
        return start.scratch / LEROBOT_OUTPUT

    def checkpoint_root(self, start: Start) -> Path:
        return self.output(start) / "checkpoints"

    def log_freq(self, start: Start) -> int:
        """Steps between two lines of the trainer. It rounds the steps it prints from 1000 on, so lines are counted."""
        given = named(start.job.args, "--log_freq")
        if given is not None and given.isdecimal():
            return max(1, int(given))
        return max(1, option(start.job, "log_freq", int, 50))

    def reports_every(self, start: Start) -> int | None:
        return self.log_freq(start)

    def ends_by_steps(self, job: JobConfig) -> bool:
        """Whether --steps may end a segment: only where no learning-rate schedule depends on it."""
        policy = named(job.args, "--policy.type") or ""
        return option(job, "fixed_schedule", bool, policy in _NO_SCHEDULE)

    def _program(self, start: Start) -> list[str]:
        program = option(start.job, "program", str, "")
        if program:
            return [program]
        beside = Path(environment.python(start.job)).parent / "lerobot-train"
        return [str(beside) if beside.is_file() else "lerobot-train"]

    def command(self, start: Start) -> list[str]:
        out, args = self.output(start), start.job.args
        words = self._program(start)
        if start.resume_step > 0:
            given = [word for word in _single_words(args) if not word.startswith(_ANEW)]
            words += [
                f"--config_path={self.checkpoint_root(start) / str(start.resume_label) / _CONFIG}",
                "--resume=true",
            ]
        else:
            given = _single_words(args)
            # The trainer refuses a directory that is there, and the agent has made it by now.
            words = ["/bin/sh", "-c", _FRESH, "sh", str(out), *words]
            if named(args, "--policy.push_to_hub") is None:
                words.append("--policy.push_to_hub=false")
        words += [*given, f"--output_dir={out}", *self._dataset(start)]
        words.append(f"--steps={start.last_step if self.ends_by_steps(start.job) else start.job.steps}")
        if start.save_interval is not None:
            words.append(f"--save_freq={max(1, start.save_interval)}")
        if named(args, "--log_freq") is None:
            words.append(f"--log_freq={self.log_freq(start)}")
        return [*words, *self._wandb(start)]

    def _wandb(self, start: Start) -> list[str]:
        """What the trainer gives to W&B's client goes before all WANDB_* variables, so it is told the same; its tags are its own."""
        wandb, args = start.job.wandb, start.job.args
        told = {"--wandb.enable": "true" if wandb is not None else "false"}
        if wandb is not None:
            told |= {
                "--wandb.project": wandb.project,
                "--wandb.run_id": wandb.id,
                "--wandb.entity": wandb.entity or "",
                "--job_name": wandb.name or "",
            }
            told["--wandb.mode"] = wandb.mode if wandb.mode in ("online", "offline") else ""
        words = [f"{name}={value}" for name, value in told.items() if value and named(args, name) is None]
        offline = wandb is not None and wandb.mode == "offline"
        if offline and named(args, "--wandb.mode") == "online":  # the last one counts
            words.append("--wandb.mode=offline")
        return words

    def _dataset(self, start: Start) -> list[str]:
        for entry in start.job.inputs:
            if entry.name == "dataset" and named(start.job.args, "--dataset.root") is None:
                path = start.scratch / entry.target
                words = [f"--dataset.root={path}"]
                if named(start.job.args, "--dataset.repo_id") is None:
                    words.append(f"--dataset.repo_id=local/{path.name}")
                return words
        return []

    def environment(self, start: Start) -> dict[str, str]:
        return environment.caches(start)

    def prepare(self, start: Start) -> None:
        """Checks; then what a killed start left half-written goes, and `last` names what is resumed."""
        if not option(start.job, "program", str, ""):
            checks.check_python(environment.python(start.job))
        checks.check_home(start)
        checks.check_certificates(start)
        for dataset in checks.datasets(start):
            checks.check_dataset(dataset)
        root = self.checkpoint_root(start)
        self._keep_offline_runs(start)
        if start.resume_step == 0:
            shutil.rmtree(self.output(start), ignore_errors=True)
        else:
            for number, name in numbered(root).items():
                if number > start.resume_step:
                    remove(root / name)
            remove(root / _LAST)
            (root / _LAST).symlink_to(str(start.resume_label))
        self._log_freq = self.log_freq(start)
        self._said = start.resume_step // self._log_freq

    def _keep_offline_runs(self, start: Start) -> None:
        """W&B's client writes into the output directory, which a fresh start must not find: what an earlier start left there is moved."""
        place = start.scratch / WANDB_FILES / KEPT_BELOW
        with suppress(OSError):  # nothing of the training depends on it
            place.mkdir(parents=True, exist_ok=True)
            for path in (self.output(start) / KEPT_BELOW).glob(OFFLINE_RUN):
                path.rename(place / path.name)

    def finished(self, start: Start) -> list[Finished]:
        root = self.checkpoint_root(start)
        labels = sorted(numbered(root).items())
        try:
            newest = (root / _LAST).readlink().name
        except OSError:  # it is removed and made again at each save, so what is older than the newest was vouched for
            labels = labels[:-1]
        else:
            labels = [item for item in labels if newest.isdecimal() and item[0] <= int(newest)]
        return thin_out(start, [Finished(number, name, root, (name,)) for number, name in labels])

    def progress(self, line: str) -> Progress | None:
        match = _LINE.search(line)
        if match is not None and self._log_freq:
            self._said += 1
            try:
                return Progress(self._said * self._log_freq, float(match[1]))
            except ValueError:
                return Progress(self._said * self._log_freq)
        saved = _SAVED.search(line)
        return Progress(int(saved[1])) if saved is not None else None


def _single_words(args: tuple[str, ...]) -> list[str]:
    """`--name value` as one word `--name=value`, so that a flag can be left out together with its value."""
    words: list[str] = []
    for word in args:
        previous = words[-1] if words else ""
        if not word.startswith("--") and previous.startswith("--") and "=" not in previous:
            words[-1] = f"{previous}={word}"
        else:
            words.append(word)
    return words
