"""Any program that can save and resume: what it is told by template or environment, and how a finished checkpoint looks, is data.

All of it stands in run.toml's [trainer.options]; docs/recipes.md has the table and examples. Whatever a template names is also in the
environment as SEGUE_…, so a program may take either.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from agent.config import JobConfig
from agent.errors import BadInput
from agent.recipes import checks
from agent.recipes.base import Finished, Progress, Recipe, Start
from agent.recipes.directories import remove
from agent.recipes.options import only_known, option

_FIELD = re.compile(r"\{([a-z_]+)\}")
_LOSS_LINE = r"(?i)(?:\b|_)step[ =:\[]+(?P<step>\d+)\b(?:.*?\bloss[ =:]+(?P<loss>[^\s,;]+))?"
_BAR = re.compile(r"(?<!\d)(\d{1,18})/(\d{1,18}) \[[\d:?]+<")
"""tqdm's: `12/200 [00:01<00:15, …`."""
_MOST_STEP, _MOST_TIMES = 1_000_000, 100
"""A number beyond both, the second in times of the run's steps, is a date and no step: published, it would end the run."""
_SAY = "run.toml: trainer.options"


@dataclass(frozen=True)
class Shape:
    """The options, checked. ``number``: matches a finished checkpoint's name, its group is the number in it."""

    first: tuple[str, ...]
    resume: tuple[str, ...]
    checkpoints: str
    number: re.Pattern[str]
    offset: int
    marker: str
    beside: tuple[str, ...]
    progress: re.Pattern[str]
    clean: tuple[str, ...]
    carry: tuple[str, ...]
    sets_last_step: bool
    sets_save_interval: bool
    stops_on_request: bool


FIELDS = (
    "checkpoint_dir",
    "resume_step",
    "resume_label",
    "resume_path",
    "last_step",
    "steps",
    "save_interval",
    "deadline",
    "scratch",
    "epoch",
    "gpus",
    "run",
)
"""What a template may name."""
OPTIONS = (
    *(name for name in Shape.__dataclass_fields__ if name != "number"),
    "pattern",
    "done",
)


def shape(job: JobConfig) -> Shape:
    """The run's options; BadInput names the one that cannot be meant."""
    only_known(job, OPTIONS)
    given: Mapping[str, Any] = job.options
    done = option(job, "done", str, "rename")
    marker = option(job, "marker", str, "")
    if done not in ("rename", "marker"):
        raise BadInput(f'{_SAY}.done is {done!r}; it must be "rename" or "marker"')
    if done == "marker" and (not marker or "/" in marker):
        raise BadInput(f'{_SAY}.marker must be a file name when done = "marker"')
    return Shape(
        first=_words(given, "first"),
        resume=_words(given, "resume"),
        checkpoints=_inside("checkpoints", option(job, "checkpoints", str, "checkpoints")),
        number=_number(option(job, "pattern", str, "{step}")),
        offset=option(job, "offset", int, 0),
        marker=marker if done == "marker" else "",
        beside=tuple(_inside("beside", name) for name in _words(given, "beside")),
        progress=_progress(option(job, "progress", str, _LOSS_LINE)),
        clean=tuple(_plain("clean", name) for name in _words(given, "clean")),
        carry=tuple(_inside("carry", name) for name in _words(given, "carry")),
        sets_last_step=option(job, "sets_last_step", bool, True),
        sets_save_interval=option(job, "sets_save_interval", bool, True),
        stops_on_request=option(job, "stops_on_request", bool, False),
    )


def _alone(checkpoints: str, job: JobConfig) -> None:
    """BadInput unless the directory of the checkpoints holds nothing else: it is emptied before one is restored."""
    for entry in (*([job.code] if job.code is not None else []), *job.inputs):
        if Path(entry.target).is_relative_to(checkpoints):
            what = "the code" if entry is job.code else f"the input {entry.name!r}"
            raise BadInput(
                f"{_SAY}.checkpoints: {checkpoints!r} holds {what}, and it is emptied before a checkpoint is restored; "
                f"name a directory of its own (checkpoints, {entry.target}/checkpoints)"
            )
    parts = Path(checkpoints).parts
    if parts[:1] in ((), (".segue",)) or parts == ("logs",):
        raise BadInput(
            f"{_SAY}.checkpoints: {checkpoints!r} belongs to the agent; name a directory of its own (checkpoints)"
        )


def _leftovers_only(clean: Sequence[str], pattern: str) -> None:
    """BadInput where `clean` would remove finished checkpoints before each start, the restored one too."""
    for name in (pattern.replace("{step}", digits) for digits in ("1", "250", "0001000", "20000000")):
        for one in clean:
            if fnmatchcase(name, one):
                raise BadInput(
                    f"{_SAY}.clean: {one!r} means finished checkpoints too ({name}), and would remove the one to resume from"
                )


def _words(options: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = options.get(key) or []
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise BadInput(f"{_SAY}.{key} is {value!r}; it must be a list of strings")
    return tuple(value)


def _inside(key: str, path: str) -> str:
    if not path or Path(path).is_absolute() or ".." in Path(path).parts:
        raise BadInput(f"{_SAY}.{key}: {path!r} must be a path below the job's directory, without ..")
    return path


def _plain(key: str, pattern: str) -> str:
    if not pattern or "/" in pattern or ".." in pattern:
        raise BadInput(f"{_SAY}.{key}: {pattern!r} must be a plain name or pattern without /")
    return pattern


def _number(text: str) -> re.Pattern[str]:
    if text.count("{step}") != 1 or "/" in text:
        raise BadInput(f"{_SAY}.pattern is {text!r}; it must contain {{step}} once, and no /")
    before, after = text.split("{step}")
    return re.compile(f"{re.escape(before)}(\\d+){re.escape(after)}")


def _progress(text: str) -> re.Pattern[str]:
    try:
        made = re.compile(text)
    except re.error as error:
        raise BadInput(f"{_SAY}.progress is no regular expression ({error})") from None
    if "step" not in made.groupindex:
        raise BadInput(f"{_SAY}.progress needs a group named step: (?P<step>\\d+)")
    return made


class Command(Recipe):
    """`<python> <args>` with `{…}` filled in; `python` may be any program."""

    name = "command"

    def __init__(self) -> None:
        self._line = re.compile(_LOSS_LINE)
        self._offset = 0
        self._bars: dict[int, int] = {}
        """Totals of a progress bar that counts the run's steps, and what its count lacks."""

    def configure(self, job: JobConfig) -> None:
        """What this program can be told is in its options."""
        found = shape(job)
        _alone(found.checkpoints, job)
        _leftovers_only(found.clean, option(job, "pattern", str, "{step}"))
        for word in (job.python, *job.args, *found.first, *found.resume):
            self.fill(word, dict.fromkeys(FIELDS, ""))
        self._line = found.progress
        self._offset = found.offset
        self.only_named = not found.marker
        self.sets_last_step = found.sets_last_step
        self.sets_save_interval = found.sets_save_interval
        self.stops_on_request = found.stops_on_request

    def checkpoint_root(self, start: Start) -> Path:
        return start.scratch / shape(start.job).checkpoints

    def values(self, start: Start) -> dict[str, str]:
        """The fields' values for this start."""
        root = self.checkpoint_root(start)
        label = start.resume_label or ""
        values = (
            root,
            start.resume_step,
            label,
            root / label if label else "",
            start.last_step,
            start.job.steps,
            start.save_interval or max(1, start.last_step - start.resume_step),
            f"{start.deadline:.0f}",
            start.scratch,
            start.epoch,
            start.gpus,
            start.job.run,
        )
        return {name: str(value) for name, value in zip(FIELDS, values, strict=True)}

    def fill(self, word: str, values: Mapping[str, str]) -> str:
        """One word with its fields filled in; `{{` and `}}` stand for braces."""

        def one(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise BadInput(f"run.toml: {word!r} names {match[0]}; there are {', '.join(sorted(values))}")
            return values[match[1]]

        pieces = re.split(r"(\{\{|\}\})", word)
        return "".join(piece[0] if piece in ("{{", "}}") else _FIELD.sub(one, piece) for piece in pieces)

    def command(self, start: Start) -> list[str]:
        options, values = shape(start.job), self.values(start)
        more = options.resume if start.resume_step > 0 else options.first
        return [self.fill(word, values) for word in (start.job.python, *start.job.args, *more)]

    def working_directory(self, start: Start) -> Path:
        """The code that travels, where there is some."""
        code = start.scratch / (start.job.code.target if start.job.code is not None else "code")
        return code if start.job.code is not None and code.is_dir() else start.scratch

    def environment(self, start: Start) -> dict[str, str]:
        before = start.job.env.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
        if start.job.code is None:
            return {}
        here = str(self.working_directory(start))
        return {"PYTHONPATH": f"{here}{os.pathsep}{before}" if before else here}

    def next_save(self, start: Start, after: int) -> int | None:
        """Names are taken for multiples of the interval."""
        number = super().next_save(start, max(0, after - self._offset))
        return number + self._offset if number is not None else None

    def prepare(self, start: Start) -> None:
        """Remove what `clean` names (leftovers of a killed start)."""
        ends = (start.job.steps, start.last_step)
        self._bars = {end - start.resume_step: start.resume_step for end in ends} | dict.fromkeys(ends, 0)
        options = shape(start.job)
        program = self.fill(start.job.python, self.values(start))
        checks.check_program(program, self.working_directory(start), start.job.env.get("PATH"))
        root = self.checkpoint_root(start)
        for pattern in options.clean:
            for path in list(root.glob(pattern)):
                remove(path)

    def finished(self, start: Start) -> list[Finished]:
        root, options = self.checkpoint_root(start), shape(start.job)
        try:
            names = os.listdir(root)  # noqa: PTH208 (each tick of the agent)
        except FileNotFoundError:
            return []
        found, most = [], max(_MOST_STEP, _MOST_TIMES * start.job.steps)
        for name in names:
            match = options.number.fullmatch(name)
            if match is None or not 0 < int(match[1]) + options.offset <= most:
                continue
            extra = self._marked(root, name, options.marker)
            if extra is None:
                continue
            paths = (name, *extra, *(other for other in options.beside if (root / other).exists()))
            found.append(Finished(int(match[1]) + options.offset, name, root, paths))
        return sorted(found, key=lambda one: one.step)

    def _marked(self, root: Path, name: str, marker: str) -> tuple[str, ...] | None:
        """Paths that the marker adds to a checkpoint; None when the marker is missing."""
        if not marker:
            return ()
        if (root / name).is_dir():
            return () if (root / name / marker).exists() else None
        return (name + marker,) if (root / (name + marker)).exists() else None

    def progress(self, line: str) -> Progress | None:
        match = self._line.search(line)
        if match is None:
            return self._bar(line)
        try:
            step = int(match["step"])
        except (ValueError, TypeError):
            return None
        loss = match["loss"] if "loss" in match.re.groupindex else None
        try:
            return Progress(step, float(loss)) if loss else Progress(step)
        except ValueError:
            return Progress(step)

    def _bar(self, line: str) -> Progress | None:
        """Bars count many things; one with the run's own total counts its steps."""
        match = _BAR.search(line)
        missing = self._bars.get(int(match[2])) if match is not None else None
        return Progress(int(match[1]) + missing) if match is not None and missing is not None else None

    def carried(self, start: Start) -> Sequence[str]:
        return shape(start.job).carry
