"""Whatever a user gets wrong is one clear sentence on stderr, exit 2 or 1, nothing on stdout and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import COMMANDS
from dagman.pool import installation
from tests.cli.conftest import RUN, Segue, as_ordinary_user


@pytest.mark.parametrize(
    "command", ["plan", "dag", "submit", "status", "logs", "commits", "verify", "prune", "stage", "pull"]
)
def test_missing_file_is_named(segue: Segue, tmp_path: Path, command: str) -> None:
    said = segue(command, tmp_path / "no.toml")
    assert said.code == 2
    assert "no.toml" in said.sentence() and "no such file" in said.sentence()


@pytest.mark.parametrize("command", ["plan", "dag", "submit", "status"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "not TOML: "),
        (RUN + "[trainers]\n", 'trainers: unknown key; did you mean "trainer"? Allowed here: name, site,'),
        (RUN + "[frob]\n", "frob: unknown key; allowed here: name, site,"),
        (
            RUN + "[retention]\nevrey = 5",
            'retention.evrey: unknown key; did you mean "every"? Allowed here: keep, every',
        ),
        (RUN + "[resources]\nGPUs = 1", 'resources.GPUs: unknown key; did you mean "gpus"?'),
        (RUN + "site_file = 'x'", "trainer.site_file: unknown key; allowed here: recipe, python, args"),
        (RUN + "Steps = 3", "trainer.Steps: unknown key; steps belongs to the top of the file"),
        (
            RUN + "[data]\nassets = { source = 'a', target = 'b' }",
            "data.assets: must be a list of tables: [[data.assets]]",
        ),
        (RUN + "code = 'x'", "trainer.code: unknown key; code belongs to the top of the file, before the first"),
        (RUN.replace("steps", "keep = 2\nsteps"), "keep: unknown key; keep belongs to [retention]"),
        (
            RUN.replace("100", '"100"'),
            "steps: must be a whole number: no quotes, no decimal point, no unit (found '100')",
        ),
        (RUN.replace("100", "-5"), "steps: must be at least 1 (found -5)"),
        (
            RUN.replace("100", "true"),
            "steps: must be a whole number: no quotes, no decimal point, no unit (found true)",
        ),
        (RUN.replace('["train.py"]', '"train.py"'), "trainer.args: must be a list, in square brackets (found"),
        (RUN.replace('"command"', '"openpi_pytorch"'), "(found 'openpi_pytorch'); did you mean \"openpi-pytorch\"?"),
        (RUN.replace('"run"', '"my run"'), "name: must be letters, digits, dot, underscore or hyphen, at most 64"),
        (RUN + "[resources]\nmemory_mb = '8 GB'", "resources.memory_mb: must be a whole number: no quotes"),
        (RUN + "[pace]\nstep_s = 0.0", "pace.step_s: must be more than 0 (found 0.0)"),
        (RUN + "[[wandb]]\nproject = 'x'", "wandb: must be a table and no list: [wandb] with its keys below"),
        (RUN + "[data]\nassets = ['x']", "data.assets[0]: must be a table: [[data.assets]] with its keys below"),
        (RUN + "[container]\nimage = 3", "container.image: must be a string, in quotes (found 3)"),
        (RUN + "[agent]\ncheckpoint_exit = 'yes'", "agent.checkpoint_exit: must be true or false, without quotes"),
        ("# nothing\n", "is empty, or holds comments alone; `segue init` writes one to start from"),
        (RUN + 'env = { WANDB_API_KEY = "x" }', "WANDB_API_KEY looks like a secret"),
        (RUN + '[container]\nimage = "a\\nqueue 5"', "container.image: must be one line"),
        (RUN + "[resources]\nrequirements = '$(x)'", "resources.requirements: must not hold $"),
    ],
)
def test_what_is_wrong_in_run_toml_is_named_with_file_and_key(
    segue: Segue, run_toml: Path, command: str, text: str, said: str
) -> None:
    run_toml.write_text(text)
    found = segue(command, run_toml)
    assert found.code == 2
    assert found.sentence().startswith(f"{run_toml}: ") and said in found.sentence()
    assert not (run_toml.parent / "run").exists()


@pytest.mark.parametrize("command", ["plan", "dag", "submit"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RUN + "[pace]\nstep_s = 5000.0", "segments.class: short (30 s) is shorter than one step plus one publish"),
        (RUN + '[segments]\nclass = "night"', "segments.class: 'night' is not a class of site local; there are blink,"),
        (RUN + '[segments]\nclass = "Short"', "'Short' is not a class of site local; there are blink, short, medium, long; did you mean"),
        (RUN.replace('"local"', '"Local"'), 'there are chtc, local, or give the path of a site file (….toml); did you mean "local"?'),
        (RUN + "[agent]\nmargin_s = 1e6", "1e+06 s; give a smaller agent.margin_s (the site's: 1.5 s)"),
        (RUN + "[agent]\nmargin_s = 25.0", "a smaller agent.margin_s (the site's: 1.5 s), or take class medium"),
        (RUN.replace('"local"', '"chtc"') + "[resources]\ngpus = 100", "resources.gpus: no machine of CHTC GPU Lab has 100"),
        (RUN.replace('"staging"', '"~nobody-here/x"'), "staging: ~nobody-here/x: this machine knows no such user"),
        (RUN.replace('"local"', '"osg"'), "site: no site named 'osg'; there are chtc, local"),
        (RUN.replace('"local"', '"osg.toml"'), "osg.toml: no such site file"),
        (RUN + "[pace]\nstep_s = 5.0\n[segments]\nsave_interval = 90", "segments.save_interval: 90 steps do not fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_named_with_file_key_and_remedy(
    segue: Segue, run_toml: Path, command: str, text: str, said: str
) -> None:
    run_toml.write_text(text)
    found = segue(command, run_toml)
    assert found.code == 2
    assert found.sentence().startswith(f"{run_toml}: ") and said in found.sentence()


@pytest.mark.parametrize("command", ["dag", "submit"])
class TestPreparing:
    """Errors of the places that a workflow needs."""

    def test_staging_that_is_missing(self, segue: Segue, run_toml: Path, command: str) -> None:
        (run_toml.parent / "staging").rmdir()
        found = segue(command, run_toml)
        assert found.code == 2
        assert (
            "staging: " in found.sentence()
            and "is not a directory here: make it, or correct `staging`" in found.sentence()
        )
        assert not (run_toml.parent / "run").exists()

    def test_staging_that_is_read_only(self, run_toml: Path, command: str) -> None:
        (run_toml.parent / "staging").chmod(0o555)
        found = as_ordinary_user([command, "run.toml"], run_toml.parent)
        assert found.code == 2
        assert "is not writable by you here: correct its mode, or give another `staging`" in found.sentence()
        assert not (run_toml.parent / "run").exists()

    def test_directory_that_cannot_be_written(self, run_toml: Path, command: str) -> None:
        (run_toml.parent / "closed").mkdir(mode=0o555)
        found = as_ordinary_user([command, "run.toml", "--to", "closed/run"], run_toml.parent)
        assert found.code == 1
        assert "cannot write the workflow: Permission denied; nothing was submitted" in found.sentence()

    def test_path_with_a_space(self, segue: Segue, run_toml: Path, command: str) -> None:
        found = segue(command, run_toml, "--to", run_toml.parent / "two words")
        assert found.code == 2
        assert "holds a space" in found.sentence() and "give another with --to" in found.sentence()

    def test_workflow_under_tmp(self, segue: Segue, run_toml: Path, command: str) -> None:
        found = segue(command, run_toml, "--to", "/tmp/segue-test-run")
        assert found.code == 2 and "DAGMan refuses to keep its log under /tmp" in found.sentence()

    def test_directory_of_something_else(self, segue: Segue, run_toml: Path, command: str) -> None:
        (run_toml.parent / "run").mkdir()
        (run_toml.parent / "run" / "thesis.tex").write_text("")
        found = segue(command, run_toml)
        assert found.code == 2 and "is no workflow directory: move it, or give another with --to" in found.sentence()
        assert [path.name for path in (run_toml.parent / "run").iterdir()] == ["thesis.tex"]

    def test_name_that_another_configuration_has_taken(self, segue: Segue, run_toml: Path, command: str) -> None:
        store = run_toml.parent / "staging" / "segue" / "run"
        store.mkdir(parents=True)
        before = {"recipe": "command", "args": '["other.py"]'}
        (store / "run.json").write_text(json.dumps({"format": 1, "fingerprint": before}))
        found = segue(command, run_toml)
        assert found.code == 2 and found.out == ""
        head, field, remedy = found.err.splitlines()
        assert "name: run 'run' was begun in" in head and "with another configuration" in head
        assert field.strip() == 'args: was ["other.py"], is now ["train.py"]'
        assert "another `name`" in remedy and "--accept-change args" in remedy
        wrong = segue(command, run_toml, "--accept-change", "arg")
        assert "--accept-change arg: no such field; there are args, recipe" in wrong.sentence()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (RUN + '[data]\ndataset = "episodes"', "data: {here}/episodes: dataset is not on this machine"),
            (RUN + '[data]\ndataset = "empty"', "data: {here}/empty: holds no files"),
            (RUN + '[data]\ndataset = "~nobody-here/x"', "data: ~nobody-here/x: this machine knows no such user"),
            (RUN.replace("[trainer]", 'code = "gone"\n[trainer]'), "code: {here}/gone: no such directory; name your"),
            (RUN.replace("[trainer]", 'code = "empty"\n[trainer]'), "code: {here}/empty: holds no files"),
            (RUN + '[container]\nimage = "gone.sif"', "container.image: {here}/gone.sif: no such file"),
        ],
    )
    def test_source_that_is_nowhere(self, segue: Segue, run_toml: Path, command: str, text: str, said: str) -> None:
        (run_toml.parent / "empty").mkdir()
        run_toml.write_text(text)
        found = segue(command, run_toml)
        assert found.code == 2
        assert found.sentence().startswith(f"{run_toml}: {said.format(here=run_toml.parent)}")

    def test_directory_that_is_a_file(self, segue: Segue, run_toml: Path, command: str) -> None:
        found = segue(command, run_toml, "--to", run_toml)
        assert found.code == 2 and "is a file where the workflow directory would be" in found.sentence()

    def test_field_that_there_is_not_is_said_before_anything_began(
        self, segue: Segue, run_toml: Path, command: str
    ) -> None:
        found = segue(command, run_toml, "--accept-change", "arg")
        assert found.code == 2 and "no such field; there are args, recipe" in found.sentence()

    def test_workflow_that_is_running(self, segue: Segue, run_toml: Path, command: str) -> None:
        assert segue("dag", run_toml).code == 0
        dag = run_toml.parent / "run" / "run.dag"
        sleeper = "import time; time.sleep(60)"
        dagman = subprocess.Popen(["condor_dagman", "-c", sleeper, "-Dag", str(dag)], executable=sys.executable)
        try:
            while b"condor_dagman" not in Path(f"/proc/{dagman.pid}/cmdline").read_bytes():
                pass
            found = segue(command, run_toml)
        finally:
            dagman.kill()
            dagman.wait()
        assert found.code == 2
        assert (
            f"this workflow is running (condor_dagman, process {dagman.pid}); wait for it, or condor_rm"
            in found.sentence()
        )


def test_submitting_without_htcondor_says_where_it_can_be_had(
    segue: Segue, run_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = segue("submit", run_toml)
    assert found.code == 1
    assert "condor_submit_dag is not on PATH" in found.sentence() and "segue pool up" in found.sentence()


def test_submitting_to_a_pool_that_is_down_is_one_sentence(run_toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    condor = installation.find()
    config = run_toml.parent / "condor_config"
    settings = {
        **dict(condor.settings),
        "LOCAL_DIR": str(run_toml.parent),
        "COLLECTOR_HOST": "127.0.0.1:9",
        "SCHEDD_HOST": "",
    }
    config.write_text(
        "".join(f"{name} = {value}\n" for name, value in settings.items()) + "NETWORK_INTERFACE = 127.0.0.1\n"
    )
    monkeypatch.setenv("CONDOR_CONFIG", str(config))
    monkeypatch.setenv("PATH", condor.search_path(os.environ["PATH"]))
    found = as_ordinary_user(["submit", "run.toml"], run_toml.parent)
    assert found.code == 1
    assert "HTCondor refused the workflow: " in found.sentence()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frob"], "no such command 'frob'; see segue --help"),
        (["--frob"], "no such option '--frob'; see segue --help"),
        (["plan"], "missing argument 'RUN_TOML'; see segue plan --help"),
        (["plan", "x", "y"], "got unexpected extra argument (y); see segue plan --help"),
        (["plan", "--frob", "x"], "no such option '--frob'; see segue plan --help"),
        (["logs", "x", "--attempt", "two"], "invalid value for '--attempt': 'two' is not a valid integer"),
        (["pool", "frob"], "no such command 'frob'; see segue pool --help"),
        (["init", "x", "--preset", "frob"], "--preset frob: no such preset; there are"),
        (["init", "x", "--site", "frob"], "site: no site named 'frob'; there are chtc, local"),
        (["init", "x", "--name", "two words"], "'two words' cannot name a run"),
        (
            ["init", "x", "--name", "a..b"],
            "'a..b' cannot name a run (must not end in .tar, .toml or .dag, nor hold two dots",
        ),
        (["init", "x.toml"], "'x.toml' cannot name a run (must not end in"),
    ],
)
def test_wrong_command_line_is_one_sentence_with_the_help_to_read(segue: Segue, words: list[str], said: str) -> None:
    found = segue(*words)
    assert found.code == 2 and said in found.sentence()


def test_without_a_command_there_is_help_on_stderr(segue: Segue) -> None:
    found = segue()
    assert found.code == 2 and found.out == "" and "Commands:" in found.err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_that_help_lists_can_be_asked_for_its_own(segue: Segue, command: str) -> None:
    assert command in segue("--help").out
    found = segue(command, "--help")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith(f"Usage: segue {command}") and "Traceback" not in found.out


def test_init_refuses_to_replace_and_writes_nothing_of_a_wrong_one(segue: Segue, tmp_path: Path) -> None:
    assert segue("init", tmp_path / "a", "--site", "local").code == 0
    assert "exists already; remove it, or name another directory" in segue("init", tmp_path / "a").sentence()
    segue("init", tmp_path / "b", "--preset", "frob")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("command", ["plan", "dag", "submit", "status", "stage", "pull"])
def test_run_toml_that_may_not_be_read(run_toml: Path, command: str) -> None:
    run_toml.chmod(0)
    found = as_ordinary_user([command, "run.toml"], run_toml.parent)
    assert found.code == 2 and "run.toml: cannot be read: Permission denied" in found.sentence()


def test_byte_order_mark_of_an_editor_does_no_harm(segue: Segue, run_toml: Path) -> None:
    run_toml.write_bytes(b"\xef\xbb\xbf" + RUN.encode())
    assert segue("dag", run_toml).code == 0
    assert "has no run 'run'" in segue("pull", run_toml.parent / "run").sentence(), "its copy is read as well"


def test_plan_warns_of_an_image_that_is_not_here(segue: Segue, run_toml: Path) -> None:
    run_toml.write_text(RUN + '[container]\nimage = "gone.sif"')
    found = segue("plan", run_toml)
    assert found.code == 0 and "will refuse: container.image: " in found.err and "gone.sif: no such file" in found.err


def test_init_into_a_file(segue: Segue, run_toml: Path) -> None:
    assert "is a file; name a directory" in segue("init", run_toml, "--name", "x").sentence()


def test_init_into_a_place_that_cannot_be_made(segue: Segue, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = segue("init", tmp_path / "file" / "run")
    assert found.code == 1 and "cannot be written: Not a directory" in found.sentence()


@pytest.mark.parametrize("where", ["sites", "own", 'odd "one\\\\'])
def test_init_names_a_site_file_so_that_run_toml_finds_it(
    segue: Segue, workdir: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (workdir / where).mkdir()
    shutil.copy(Path(__file__).parents[2] / "dagman/sites/local.toml", workdir / where / "mine.toml")
    monkeypatch.chdir(workdir)
    assert segue("init", "own", "--site", f"{where}/mine.toml").code == 0
    found = segue("plan", "own/run.toml", "--json")
    assert found.code == 0 and json.loads(found.out)["site"] == "mine"


def test_init_leaves_nothing_where_the_disk_refuses(run_toml: Path) -> None:
    words = f"ulimit -f 0; exec {sys.executable} -m cli.main init new --site local"
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-c", words], cwd=run_toml.parent, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert done.returncode == 1 and "new/run.toml: cannot be written: File too large" in done.stderr, done.stderr
    assert list((run_toml.parent / "new").iterdir()) == []


@pytest.mark.parametrize("command", ["status", "logs", "commits"])
def test_directory_that_is_no_run(segue: Segue, tmp_path: Path, command: str) -> None:
    found = segue(command, tmp_path)
    assert found.code == 2 and "not a workflow directory (it has no job.json)" in found.sentence()


def test_run_that_was_not_generated_yet(segue: Segue, run_toml: Path) -> None:
    found = segue("status", run_toml)
    assert (
        found.code == 2
        and f"not generated yet ({run_toml.parent / 'run'} has no job.json): run `segue dag" in found.sentence()
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"run": 1}'])
def test_damaged_job_json_is_one_sentence(segue: Segue, tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    found = segue("status", tmp_path)
    assert found.code == 2 and "job.json" in found.sentence()
    assert found.sentence().count("generate the workflow again") == 1


def test_fault_of_our_own_is_told_as_such_and_shown_when_asked(
    segue: Segue, run_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("dagman.prepare.ask", broken)
    found = segue("plan", run_toml)
    assert found.code == 1 and "this is a fault of segue's own (ZeroDivisionError: oh)" in found.sentence()
    monkeypatch.setenv("SEGUE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        segue("plan", run_toml)
