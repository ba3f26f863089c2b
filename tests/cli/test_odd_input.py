"""Values at the edge of what a file or a path may be: still one sentence, and never a fault of segue's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import RUN, Segue

NOBODY = "~nobody-here/x"
UNKNOWN = f"{NOBODY}: this machine knows no such user"


class TestHomeOfNobody:
    @pytest.mark.parametrize("command", ["plan", "dag", "stage"])
    def test_as_the_site(self, segue: Segue, run_toml: Path, command: str) -> None:
        run_toml.write_text(RUN.replace('"local"', '"~nobody-here/x.toml"'))
        said = segue(command, run_toml)
        assert said.code == 2 and "site: ~nobody-here/x.toml: this machine knows no such user" in said.sentence()

    @pytest.mark.parametrize("data", [f'dataset = "{NOBODY}"', f'assets = [{{ source = "{NOBODY}", target = "x" }}]'])
    def test_as_a_source_plan_foresees_it(self, segue: Segue, run_toml: Path, data: str) -> None:
        run_toml.write_text(f"{RUN}[data]\n{data}\n")
        assert segue("dag", run_toml).code == 2
        asked = segue("plan", run_toml)
        assert asked.code == 0 and UNKNOWN in asked.err

    def test_on_the_command_line(self, segue: Segue, run_toml: Path) -> None:
        for words in (
            ["pull", str(run_toml), "--to", NOBODY],
            ["image", "build", "--openpi", NOBODY, "--print"],
            ["image", "sif", "--definition", __file__, "--to", f"{NOBODY}.sif", "--print"],
            ["convert", ".", "--repo-id", "x", "--python", NOBODY],
            ["convert", NOBODY, "--repo-id", "x"],
        ):
            said = segue(*words)
            assert said.code == 2 and "this machine knows no such user" in said.sentence(), words


@pytest.mark.parametrize("text", [f"{RUN}[budget]\nitems = {'9' * 5000}\n", RUN + f"x = {'[' * 3000}{']' * 3000}\n"])
def test_toml_that_python_cannot_hold(segue: Segue, run_toml: Path, text: str) -> None:
    assert segue("dag", run_toml).code == 0
    run_toml.with_name("other.toml").write_text(text)
    said = segue("plan", run_toml.with_name("other.toml"))
    assert said.code == 2 and "other.toml: cannot be read as TOML: " in said.sentence()
    assert segue("status", run_toml.parent / "run").code == 0, "it only lies beside this run"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pace]\nstep_s = 1e-320", "pace.step_s: must be 0.000001 or more"),
        ("[pace]\nstartup_s = 1e308", "pace.startup_s: must be at most 1000000000"),
        ("[agent]\nmargin_s = 1e308", "agent.margin_s: must be at most 1000000000"),
        ("[budget]\ngb = 1e300", "budget.gb: must be at most 1000000000"),
    ],
)
def test_number_beyond_all_arithmetic(segue: Segue, run_toml: Path, text: str, said: str) -> None:
    run_toml.write_text(RUN + text)
    found = segue("plan", run_toml)
    assert found.code == 2 and said in found.sentence()


@pytest.mark.parametrize("name", ["[/lab]", "[lab]"])
def test_brackets_in_a_path_are_shown_as_they_are(segue: Segue, run_toml: Path, name: str) -> None:
    (run_toml.parent / name).mkdir(parents=True)
    run_toml.write_text(RUN.replace('"staging"', f'"{name}"'))
    asked = segue("plan", run_toml)
    assert asked.code == 0 and f"checkpoints in {run_toml.parent}/{name}/segue/run\n" in asked.out
    refused = segue("dag", run_toml)
    assert refused.code == 2
    assert "run.toml: staging: " in refused.sentence() and "holds [ ], which" in refused.sentence()


def test_control_character_in_a_directory_is_refused(segue: Segue, run_toml: Path) -> None:
    here = run_toml.parent / "a\x01b"
    here.mkdir()
    (here / "staging").mkdir()
    said = segue("dag", run_toml.rename(here / "run.toml"))
    assert said.code == 2 and "the workflow directory holds '\\x01', which" in said.sentence()


def test_image_below_a_directory_with_a_space_is_told_what_helps(segue: Segue, run_toml: Path) -> None:
    here = run_toml.parent / "my images"
    here.mkdir()
    (here / "x.sif").write_text("")
    mine = run_toml.rename(here / "run.toml")
    mine.write_text(RUN.replace('"staging"', '"../staging"') + '[container]\nimage = "x.sif"\n')
    said = segue("dag", mine, "--to", run_toml.parent / "run")
    assert said.code == 2 and "--to" not in said.sentence()
    assert "container.image: " in said.sentence() and "move the image, or name it by a link" in said.sentence()
