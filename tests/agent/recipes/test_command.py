"""Recipe `command`: any program, told by template or environment; a finished checkpoint by rename, marker or pattern."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import InputArchive
from agent.errors import BadInput, SegueError
from agent.recipes.base import Progress, Start
from agent.recipes.command import Command
from tests.agent.recipes.starts import CODE, python_at, saved, start_of, steps
from tests.agent.support import ROOT


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    made = tmp_path / "scratch"
    made.mkdir()
    return made


def start(scratch: Path, options: dict[str, Any] | None = None, **fields: Any) -> Start:
    return start_of(scratch, "command", options, **{"python": "python3", **fields})


def test_template_is_filled_in(scratch: Path) -> None:
    args = (
        "train.py",
        "--out={checkpoint_dir}",
        "{resume_step}:{last_step}/{steps}",
        "{{as it is}}",
        "{save_interval}",
    )
    words = Command().command(start(scratch, args=args))
    assert words == ["python3", "train.py", f"--out={scratch}/checkpoints", "0:40/100", "{as it is}", "10"]


def test_first_and_resumed_starts_have_words_of_their_own(scratch: Path) -> None:
    options = {"first": ["--fresh"], "resume": ["--from", "{resume_path}"]}
    assert Command().command(start(scratch, options))[1:] == ["--fresh"]
    again = start(scratch, options, resume_step=20, resume_label="step-20")
    assert Command().command(again)[1:] == ["--from", f"{scratch}/checkpoints/step-20"]


def test_unknown_field_of_a_template_is_named(scratch: Path) -> None:
    with pytest.raises(BadInput, match=r"names \{resume\}; there are checkpoint_dir"):
        Command().configure(start(scratch, args=("{resume}",)).job)


def test_pattern_and_offset_say_step_and_label(scratch: Path) -> None:
    job = start(scratch, {"pattern": "model-{step}.pt", "offset": 1})
    root = Command().checkpoint_root(job)
    root.mkdir()
    for name in ("model-9.pt", "model-19.pt", "model-29.pt.tmp", "best.pt"):
        (root / name).touch()
    assert steps(Command().finished(job)) == [(10, "model-9.pt"), (20, "model-19.pt")]


def test_marker_inside_a_directory_or_beside_a_file_says_finished(scratch: Path) -> None:
    inside = start(scratch, {"done": "marker", "marker": "DONE"})
    root = Command().checkpoint_root(inside)
    saved(root, "10", ("weights", "DONE"))
    saved(root, "20", ("weights",))
    assert steps(Command().finished(inside)) == [(10, "10")]
    beside = start(scratch, {"done": "marker", "marker": ".ok", "pattern": "w{step}"})
    for name in ("w10", "w10.ok", "w20"):
        (root / name).touch()
    assert Command().finished(beside)[0].paths == ("w10", "w10.ok")
    assert steps(Command().finished(beside)) == [(10, "w10")]


def test_files_beside_the_checkpoints_travel(scratch: Path) -> None:
    job = start(scratch, {"beside": ["config.json", "absent"]})
    root = Command().checkpoint_root(job)
    saved(root, "10", ("weights",))
    (root / "config.json").touch()
    assert Command().finished(job)[0].paths == ("10", "config.json")


@pytest.mark.parametrize("name", ["20261127", "1764282330"])
def test_a_date_is_no_step(scratch: Path, name: str) -> None:
    """Published, it would be the run's last checkpoint."""
    given = start(scratch)
    root = Command().checkpoint_root(given)
    for made in (name, "120"):
        (root / made).mkdir(parents=True)
    assert given.job.steps < 120 and steps(Command().finished(given)) == [(120, "120")]


def test_leftovers_are_cleaned_before_a_start(scratch: Path) -> None:
    job = start(scratch, {"clean": ["*.tmp"]})
    root = Command().checkpoint_root(job)
    saved(root, "10", ("weights",))
    saved(root, "20.tmp", ("weights",))
    Command().prepare(job)
    assert [path.name for path in root.iterdir()] == ["10"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "x"}, "pattern"),
        ({"pattern": "a/{step}"}, "pattern"),
        ({"done": "timer"}, "done"),
        ({"done": "marker"}, "marker"),
        ({"clean": ["../*"]}, "clean"),
        ({"progress": "("}, "progress"),
        ({"progress": "step"}, "progress"),
        ({"offset": "one"}, "offset"),
        ({"beside": ["../x"]}, "beside"),
        ({"checkpoints": "/var"}, "checkpoints"),
        ({"checkpoints": "../up"}, "checkpoints"),
        ({"patern": "{step}"}, "patern"),
    ],
)
def test_wrong_option_is_named(scratch: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=rf"trainer\.options\.{message}"):
        Command().configure(start(scratch, options).job)


def test_program_that_is_not_there_is_named(scratch: Path) -> None:
    with pytest.raises(Exception, match=r"no such (program|file)"):
        Command().prepare(start(scratch, python=str(scratch / "nothing")))


@pytest.mark.parametrize("directory", ["code", "./code", "."])
def test_a_directory_of_checkpoints_that_holds_the_code_is_refused(scratch: Path, directory: str) -> None:
    """It is emptied before a restore."""
    with pytest.raises(BadInput, match=r"trainer\.options\.checkpoints: .* holds the code"):
        Command().configure(start(scratch, {"checkpoints": directory}, code=CODE).job)
    Command().configure(start(scratch, {"checkpoints": "code/outputs"}, code=CODE).job)


def test_a_directory_of_checkpoints_that_holds_an_input_is_refused(scratch: Path) -> None:
    """A restart would empty it, and the trainer would not find its data any more."""
    job = start(scratch, {"checkpoints": "data"}).job
    job = replace(job, inputs=(InputArchive("set", "set.tar", "0", 1, "data/set"),))
    with pytest.raises(BadInput, match=r"trainer\.options\.checkpoints: .* holds the input 'set'"):
        Command().configure(job)
    Command().configure(replace(job, options={"checkpoints": "data/set/out"}))


def test_leftovers_that_are_read_only_are_cleaned_too() -> None:
    """As an ordinary user: root is refused nothing."""
    code = """
import os, tempfile
from pathlib import Path
from agent.recipes.directories import remove
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
top = Path(tempfile.mkdtemp())
inner = top / "5.tmp" / "assets"
inner.mkdir(parents=True)
(inner / "file").touch()
inner.chmod(0o555)
inner.parent.chmod(0o555)
remove(top)
print(top.exists())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("directory", [".", ".segue", ".segue/out", "logs"])
def test_a_directory_of_checkpoints_that_is_the_agents_is_refused(scratch: Path, directory: str) -> None:
    with pytest.raises(BadInput, match=r"trainer\.options\.checkpoints: .* belongs to the agent"):
        Command().configure(start(scratch, {"checkpoints": directory}).job)


def test_a_trainers_own_directory_beside_the_agents_log_is_not_the_agents(scratch: Path) -> None:
    """Many a trainer writes to logs/<experiment>."""
    Command().configure(start(scratch, {"checkpoints": "logs/arm/checkpoints"}).job)


def test_a_program_of_the_code_that_travels_is_found_where_it_runs(scratch: Path) -> None:
    job = start(scratch, python="./train.sh", code=CODE)
    (scratch / "code").mkdir()
    with pytest.raises(SegueError, match=r"code/train\.sh: no such file"):
        Command().prepare(job)
    program = Path(python_at(scratch / "code/train.sh"))
    Command().prepare(job)
    program.chmod(0o644)
    with pytest.raises(SegueError, match=r"code/train\.sh: is no program: make it executable \(chmod \+x\)"):
        Command().prepare(job)


def test_a_program_is_looked_for_in_the_path_that_the_trainer_will_have(scratch: Path) -> None:
    python_at(scratch / "tools/trainer-of-mine")
    Command().prepare(start(scratch, python="trainer-of-mine", env={"PATH": str(scratch / "tools")}))
    with pytest.raises(SegueError, match=r"no such program in this job's PATH"):
        Command().prepare(start(scratch, python="trainer-of-mine"))
    with pytest.raises(SegueError, match=r"no such program in the PATH of run\.toml's trainer\.env"):
        Command().prepare(start(scratch, python="python3", env={"PATH": str(scratch)}))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("step 12 loss 0.5", Progress(12, 0.5)),
        ("Step 12/200  Loss: 0.5", Progress(12, 0.5)),
        ("[Step: [12/200]", Progress(12)),
        ("{'loss': 0.5, 'global_step': 12}", None),
        ("global_step=12 loss=0.5", Progress(12, 0.5)),
        ("12 steps, step size 3", None),
        ("epoch 1, step=12, loss=0.25, lr=1", Progress(12, 0.25)),
        ("step: 12", Progress(12)),
        ("12 steps to go", None),
    ],
)
def test_progress_by_default(line: str, said: Progress | None) -> None:
    assert Command().progress(line) == said


def test_bar_over_the_runs_steps_is_progress(scratch: Path) -> None:
    command = Command()
    command.prepare(start_of(scratch, "command", resume_step=50, last_step=200))
    bar = "train:  12%|█▏        | {} [00:02<00:15, 11.2it/s, loss=0.5]"
    for count, step in (("60/200", 60), ("60/150", 110), ("60/100", 60), ("10/50", 60)):
        assert command.progress(bar.format(count)) == Progress(step)
    assert command.progress(bar.format("60/61")) is None, "a bar over something else"


def test_progress_by_the_users_own_expression(scratch: Path) -> None:
    made = Command()
    made.configure(start(scratch, {"progress": r"it (?P<step>\d+) L=(?P<loss>\S+)"}).job)
    assert made.progress("it 7 L=0.125") == Progress(7, 0.125)
    assert made.progress("step 7") is None


def test_stop_file_is_used_only_by_programs_that_look_at_it(scratch: Path) -> None:
    plain, asking = Command(), Command()
    plain.configure(start(scratch).job)
    asking.configure(start(scratch, {"stops_on_request": True}).job)
    assert (plain.stops_on_request, asking.stops_on_request) == (False, True)


def test_code_that_travels_is_where_the_program_runs(scratch: Path) -> None:
    (scratch / "code").mkdir()
    job = start(scratch, code=CODE)
    assert Command().working_directory(job) == scratch / "code"
    assert Command().environment(job)["PYTHONPATH"].split(":")[0] == str(scratch / "code")


@pytest.mark.parametrize(
    ("pattern", "clean", "refused"),
    [
        ("{step}", "*", True),
        ("{step}", "[0-9]*", True),
        ("step_{step}", "step_*", True),
        ("step_{step}.pt", "*.pt", True),
        ("{step}", "*.tmp", False),
        ("step_{step}", "step_*.tmp", False),
        ("step_{step}", "*-partial", False),
    ],
)
def test_what_is_cleaned_is_no_finished_checkpoint(scratch: Path, pattern: str, clean: str, refused: bool) -> None:
    job = start(scratch, {"pattern": pattern, "clean": [clean]}).job
    if not refused:
        Command().configure(job)
        return
    with pytest.raises(BadInput, match=r"trainer.options.clean: .* would remove the one to resume from"):
        Command().configure(job)
