"""`jobs.pyz norm-stats --config job.json`: OpenPI's normalisation statistics, computed once instead of at the start of every job.

Runs the checkout's own `scripts/compute_norm_stats.py` on the staged dataset, without a GPU, and keeps the result with the run in staging
(agent/norm_stats.py), whole or not at all. Where it is already there and was made from the same data, code and config, or came with the
checkout, nothing is computed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from agent import exit_codes
from agent.config import JobConfig, load
from agent.errors import BadInput, SegueError
from agent.inputs import fetch
from agent.norm_stats import ASSETS, DIRECTORY, FILE, MADE_FROM, fits, made_from
from agent.recipes import recipe
from agent.recipes.base import Start
from agent.recipes.openpi import OpenPIBase
from agent.recipes.options import option

_LAST_LINES = 5


def find(directory: Path) -> list[Path]:
    """Statistics below a directory."""
    return sorted(directory.rglob(FILE)) if directory.is_dir() else []


def check(path: Path) -> None:
    """SegueError unless the file holds statistics that the trainer can use: finite, for state and actions."""
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))["norm_stats"]
        for name, entry in stats.items():
            for key in ("mean", "std"):
                if any(not abs(float(value)) < float("inf") for value in entry[key]):
                    raise SegueError(
                        f"{name}.{key} holds a value that is not finite: look at that column of the dataset"
                    )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SegueError(f"{path}: holds no normalisation statistics ({type(error).__name__}: {error})") from error


def compute(job: JobConfig, start: Start, made: OpenPIBase, work: Path) -> list[Path]:
    """Run OpenPI's script in ``work``; returns what it wrote below ``work/assets``. Raises SegueError with its last lines."""
    script = made.norm_stats_script(start)
    words = [made.python(start), str(script), "--config-name", made.config(job)]
    frames = option(job, "norm_stats_frames", int, 0)
    if frames:
        words += ["--max-frames", str(frames)]
    environment = {**os.environ, **dict(job.env), **made.environment(start), "JAX_PLATFORMS": "cpu"}
    print(f"norm-stats: {' '.join(words)}", file=sys.stderr, flush=True)
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(words, cwd=work, env=environment, stdout=said, stderr=subprocess.STDOUT, check=False)
        said.seek(0)
        text = said.read().decode("utf-8", errors="replace")
    sys.stderr.write(text)
    if done.returncode != 0:
        lines = [line.strip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]
        raise SegueError(
            f"{script.name} ended with exit code {done.returncode}: {' | '.join(lines) or 'it said nothing'}"
        )
    found = find(work / ASSETS)
    if not found:
        raise SegueError(f"{script.name} wrote no {FILE} below {work / ASSETS}")
    return found


def keep(job: JobConfig, assets: Path) -> Path:
    """Put the statistics into the run's directory: a temporary directory beside, then a rename. SegueError when the disk refuses.

    Those of another dataset, code or config make way. Who dies between the two renames leaves none, and the node's next try computes them.
    """
    target = job.store_root / DIRECTORY
    temporary = target.with_name(f".{DIRECTORY}.{os.getpid()}.tmp")
    before = target.with_name(f".{DIRECTORY}.{os.getpid()}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        for path in find(assets):
            place = temporary / path.relative_to(assets)
            place.parent.mkdir(parents=True, exist_ok=True)
            _write(place, path.read_bytes())
        _write(temporary / MADE_FROM, json.dumps(made_from(job), indent=1).encode())
        if target.is_dir() and not fits(job, target):
            target.rename(before)
        temporary.rename(target)
    except OSError as error:
        if fits(job, target):
            return target  # another attempt of this node was faster
        raise SegueError(f"{target}: cannot be written: {error.strerror or error}; nothing was left there") from error
    finally:
        for left in (temporary, before):
            shutil.rmtree(left, ignore_errors=True)
    return target


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def norm_stats(job: JobConfig, scratch: Path) -> dict[str, object]:
    """The whole node; what it did, as plain data. Raises BadInput for a run that has no use for it."""
    made = recipe(job.recipe)
    if not isinstance(made, OpenPIBase):
        raise BadInput(f"job.json: recipe {job.recipe!r} has no norm_stats; OpenPI's recipes have")
    if job.checkpoint_exit:
        raise BadInput(
            "job.json: norm_stats needs a mounted staging, and this run has none (agent.checkpoint_exit): compute them once and put them "
            "into your checkout's assets/"
        )
    made.configure(job)
    store = job.store_root / DIRECTORY
    there = find(store)
    if there and fits(job, store):
        return {"norm_stats": [str(path) for path in there], "was_there": True}
    if there:
        print(f"norm-stats: {store}: made from another dataset, code or config: computed anew", file=sys.stderr)
    fetch(job, scratch)
    start = Start(job, scratch, 0, None, job.steps, None, 0.0, 0)
    shipped = find(made.working_directory(start) / ASSETS / made.config(job)) or find(
        scratch / ASSETS / made.config(job)
    )
    if shipped:
        print(f"norm-stats: the run brings its own: {shipped[0]}", file=sys.stderr)
        return {"norm_stats": [str(path) for path in shipped], "was_there": True}
    made.check(start)
    with tempfile.TemporaryDirectory(prefix="norm-stats-", dir=scratch) as temporary:
        work = Path(temporary)
        for path in compute(job, start, made, work):
            check(path)
            _also_as(job, path, work / ASSETS / made.config(job))
        kept = find(keep(job, work / ASSETS))
    return {"norm_stats": [str(path) for path in kept], "was_there": False}


def _also_as(job: JobConfig, path: Path, config: Path) -> None:
    """OpenPI's script writes under the dataset's repo id, its trainer reads under the asset id; where a config names another, copy."""
    asset = option(job, "asset_id", str, "")
    if asset and config / asset != path.parent:
        (config / asset).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, config / asset / FILE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute and keep; JSON on stdout."""
    parser = argparse.ArgumentParser(prog="jobs.pyz norm-stats", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("job.json"))
    options = parser.parse_args(arguments)
    job = load(options.config)
    scratch = Path(os.environ.get("_CONDOR_SCRATCH_DIR") or Path.cwd())
    print(json.dumps(norm_stats(job, scratch)))
    return exit_codes.OK


if __name__ == "__main__":
    from jobs.main import main as jobs_main

    sys.exit(jobs_main(["norm-stats", *sys.argv[1:]]))
