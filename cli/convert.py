"""`segue convert`: recorded robot episodes to a LeRobot dataset, in this Python or, with --python, in one that has lerobot."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import click

from agent.errors import BadInput, SegueError
from cli.ending import clearing_up
from dagman.paths import absolute
from jobs.convert.options import FORMATS, ConvertOptions, checked, default_out
from jobs.convert.reader import READERS

_LAB_ROBOT = "xarm6"


@click.command("convert")
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("--db_dir", "--db-dir", "db_dir", type=click.Path(path_type=Path), help="The same as SRC.")
@click.option(
    "--repo-id", "--repo_name", "--repo-name", "repo_id", required=True, help="Name of the dataset, NAME or OWNER/NAME."
)
@click.option("--fps", type=int, default=10, show_default=True, help="Frames a second of the dataset.")
@click.option(
    "--downsample",
    "--downsample_factor",
    "--downsample-factor",
    type=int,
    default=1,
    show_default=True,
    help="Keep every which frame.",
)
@click.option(
    "--format", "form", type=click.Choice(FORMATS), help="Must be what the installed lerobot writes.  [default: that]"
)
@click.option(
    "--image-size",
    "--image_size",
    "image_size",
    type=int,
    nargs=2,
    metavar="HEIGHT WIDTH",
    help="Resize images.  [default: as recorded]",
)
@click.option(
    "--default-task", "--default_task", "default_task", help="Instruction of episodes that have none of their own."
)
@click.option(
    "--robot-type",
    "--robot_type",
    "robot_type",
    help=f"Kept in the dataset.  [default: {_LAB_ROBOT} for the lab's layout]",
)
@click.option(
    "--video/--images", "video", default=False, help="Cameras as one video an episode, or as PNG.  [default: images]"
)
@click.option("--workers", type=int, default=0, help="Episodes converted side by side.  [default: one for each core]")
@click.option("--skip-bad", is_flag=True, help="Leave bad episodes out, by name, instead of ending.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Directory of the dataset.  [default: $HF_LEROBOT_HOME/REPO-ID]"
)
@click.option(
    "--layout",
    type=click.Choice(("auto", *READERS)),
    default="auto",
    show_default=True,
    help="How the episodes are stored.",
)
@click.option(
    "--rename", multiple=True, metavar="OLD=NEW", help="Another name for a feature; may be given several times."
)
@click.option(
    "--python",
    "interpreter",
    type=click.Path(path_type=str),  # a Path would take ./python for python
    help="Interpreter of the environment that has lerobot.  [default: this one]",
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def command(
    source: Path | None,
    db_dir: Path | None,
    repo_id: str,
    fps: int,
    downsample: int,
    form: str | None,
    image_size: tuple[int, int] | None,
    default_task: str | None,
    robot_type: str | None,
    video: bool,
    workers: int,
    skip_bad: bool,
    out: Path | None,
    layout: str,
    rename: tuple[str, ...],
    interpreter: str | None,
    as_json: bool,
) -> int:
    """Robot episodes in SRC to a LeRobot dataset.

    Everything is checked before anything is written. Interrupted, the same command goes on where it stopped.
    """
    options = ConvertOptions(
        source=str(_source(source, db_dir)),
        repo_id=repo_id,
        out=str(out or default_out(repo_id)),
        fps=fps,
        downsample=downsample,
        format=form,
        layout=layout,
        image_size=(image_size[0], image_size[1]) if image_size else None,
        default_task=default_task,
        robot_type=robot_type,
        video=video,
        workers=workers,
        skip_bad=skip_bad,
        rename=tuple(_pair(each) for each in rename),
    )
    result = _here(options) if interpreter is None else _there(interpreter, checked(options))
    if as_json:
        click.echo(result)
    else:
        found = json.loads(result)
        click.echo(
            f"{found['dataset']}: LeRobot {found['format']}, {found['episodes']} episodes, {found['frames']} frames, {len(found['skipped'])} left out"
        )
    return 0


def _source(source: Path | None, db_dir: Path | None) -> Path:
    named = [path for path in (source, db_dir) if path is not None]
    if len(named) != 1:
        raise BadInput("name the episodes once: segue convert SRC … or --db_dir SRC")
    return named[0]


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise BadInput(f"--rename {text}: must be OLD=NEW")
    return old, new


def _here(options: ConvertOptions) -> str:
    from jobs.convert.conversion import convert

    return convert(options).dump()


def _there(interpreter: str, options: ConvertOptions) -> str:
    """In another environment: jobs.pyz on its PYTHONPATH, so that it needs nothing of segue installed."""
    from agent.bundle import build_jobs

    # A bare name is looked up on PATH; a path is meant from here, and the program is started elsewhere.
    given = interpreter.startswith("~") or os.sep in interpreter
    found = shutil.which(str(absolute(Path(interpreter))) if given else interpreter)
    if found is None:
        raise BadInput(f"--python {interpreter}: is not a program that can be run")
    with clearing_up(), tempfile.TemporaryDirectory(prefix="segue-convert-") as directory:
        archive = Path(directory) / "jobs.pyz"
        build_jobs(archive)
        code, printed = _run([found, "-m", "jobs.convert", options.dump()], archive)
    if code < 0:
        raise SegueError(
            f"{found}: was ended by signal {-code}; run the same command again, it goes on where it stopped"
        )
    if code:
        raise click.exceptions.Exit(code)  # it has said why
    result = printed.strip().rpartition("\n")[2]
    if not result.startswith("{"):
        raise BadInput(
            f"--python {interpreter}: does not answer as a Python does; name the interpreter of an environment"
        )
    return result


def _run(words: list[str], archive: Path) -> tuple[int, str]:
    """Exit code and output. The program ends with this one, however this one ends: it holds the other end of a pipe."""
    environment = {**os.environ, "PYTHONPATH": str(archive), "PYTHONSAFEPATH": "1"}
    theirs, ours = os.pipe()
    child = subprocess.Popen(
        [*words, str(theirs)],
        env=environment,
        cwd=archive.parent,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(theirs,),
        start_new_session=True,  # Ctrl-C at the terminal is for us: while a Python starts, it answers with a traceback
    )
    os.close(theirs)
    try:
        printed, _ = child.communicate()
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None  # it ends its workers and says so
    finally:
        os.close(ours)
        child.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)  # what still imports lerobot, for workers that nobody will ask for
    return child.returncode, printed
