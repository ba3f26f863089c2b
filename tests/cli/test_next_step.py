"""What a user is told to do next: commands that can be copied as they stand, and what `segue submit` would refuse, said before it does."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from agent.store import Claimant, Metadata, Store
from tests.cli.conftest import RUN, Segue, as_ordinary_user
from tests.dagman.eventlog import EventLog
from tests.store.trees import make_checkpoint

ARGS = {"recipe": "command", "args": '["train.py"]'}
OTHER = {"recipe": "command", "args": '["other.py"]'}


def begun(here: Path, fingerprint: dict[str, str] = ARGS, *steps: int) -> Path:
    """The run's store after its first claim, with commits of these steps."""
    store = Store(here / "staging" / "segue" / "run")
    claim = store.claim(Claimant(), fingerprint)
    for step in steps:
        store.publish(claim, make_checkpoint(here / f"made-{step}", step), Metadata(step, str(step)))
    return Path(store.root)


def ended(here: Path, code: int) -> None:
    """DAGMan's own log of a DAG that ended."""
    text = EventLog().submit(1, 0).execute(1, 0, None).end(1, 9, code).text
    (here / "run" / "run.dag.dagman.log").write_text(text)


def ways(here: Path) -> list[Path]:
    """All that RUN may be."""
    return [
        here / "run.toml",
        here,
        here / "run",
        here / "run" / "job.json",
        here / "run" / "run.dag",
        here / "run" / "segment.sub",
    ]


def next_of(text: str) -> str:
    return text.splitlines()[-1].removeprefix("next: ")


class TestWhatStandsForARun:
    @pytest.mark.parametrize("command", ["status", "commits", "verify", "prune", "plan", "dag", "pull"])
    def test_every_command_takes_a_run_toml_its_directory_the_workflow_directory_and_a_file_in_it(
        self, segue: Segue, run_toml: Path, command: str
    ) -> None:
        assert segue("dag", run_toml).code == 0
        begun(run_toml.parent, ARGS, 10)
        words = ["--dry-run"] if command in ("dag", "prune") else []
        words += ["--mounted", "--step", "10", "--to", str(run_toml.parent / "here")] if command == "pull" else []
        for way in ways(run_toml.parent):
            asked = segue(command, way, *words)
            assert asked.code == 0, asked.err
        # and what is generated anew lies where it lay
        assert not (run_toml.parent / "run" / "run").exists()

    def test_dag_file_that_segue_dag_printed_stands_for_its_run(self, segue: Segue, run_toml: Path) -> None:
        printed = segue("dag", run_toml).out.strip()
        assert segue("status", printed).code == 0

    def test_run_toml_of_another_name_is_found_from_its_workflow_directory(self, segue: Segue, run_toml: Path) -> None:
        mine = run_toml.rename(run_toml.with_name("mine.toml"))
        (run_toml.parent / "other.toml").write_text(RUN.replace('"run"', '"other"'))
        assert segue("dag", mine).code == 0
        assert segue("dag", run_toml.parent / "run").out == f"{run_toml.parent / 'run' / 'run.dag'}\n"

    def test_workflow_written_somewhere_else_asks_for_its_run_toml(self, segue: Segue, run_toml: Path) -> None:
        assert segue("dag", run_toml, "--to", run_toml.parent / "far" / "flow").code == 0
        found = segue("submit", run_toml.parent / "far" / "flow")
        assert found.code == 2
        assert "the run.toml that it was made from is not beside it: give that one, with --to" in found.sentence()
        assert not (run_toml.parent / "far" / "flow" / "run").exists()

    @pytest.mark.parametrize("command", ["plan", "dag", "submit", "stage", "pull", "serve"])
    def test_directory_without_a_run_toml(self, segue: Segue, tmp_path: Path, command: str) -> None:
        found = segue(command, tmp_path)
        assert found.code == 2 and "no run.toml" in found.sentence()

    def test_run_that_was_generated_somewhere_else(self, segue: Segue, run_toml: Path) -> None:
        assert segue("dag", run_toml, "--to", run_toml.parent / "flow").code == 0
        assert "or give the directory that --to named" in segue("status", run_toml).sentence()

    @pytest.mark.parametrize("command", ["status", "logs", "commits"])
    def test_directory_that_was_not_generated_yet(self, segue: Segue, run_toml: Path, command: str) -> None:
        found = segue(command, run_toml.parent)
        assert found.code == 2 and f"run `segue dag {run_toml.parent}`" in found.sentence()

    def test_file_of_another_kind(self, segue: Segue, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("x")
        assert "notes.txt: is no run.toml" in segue("status", tmp_path / "notes.txt").sentence()


class TestNextCommand:
    @pytest.mark.parametrize(
        ("code", "said"),
        [
            (None, "submit it: segue submit "),
            (0, "bring the result here: segue pull "),
            (1, "mend the cause, then go on from the newest commit: segue submit "),
        ],
    )
    def test_status_names_the_run_as_it_was_typed(
        self, segue: Segue, run_toml: Path, code: int | None, said: str
    ) -> None:
        assert segue("dag", run_toml).code == 0
        if code is not None:
            ended(run_toml.parent, code)
        for typed in ways(run_toml.parent):
            assert next_of(segue("status", typed).err) == f"{said}{typed}"
            assert json.loads(segue("status", typed, "--json").out)["next"] == f"{said}{typed}"

    def test_path_is_quoted_for_the_shell(self, segue: Segue, run_toml: Path) -> None:
        here = run_toml.parent / "my~runs"
        here.mkdir()
        mine = run_toml.rename(here / "run.toml")
        (here / "staging").mkdir()
        asked = segue("plan", mine)
        assert asked.code == 0
        assert shlex.split(next_of(asked.err))[:3] == ["segue", "submit", str(mine)]

    def test_workflow_somewhere_else_is_submitted_by_its_run_toml(self, segue: Segue, run_toml: Path) -> None:
        flow = run_toml.parent / "far" / "flow"
        assert segue("dag", run_toml, "--to", flow).err.endswith(f"   # or segue submit {run_toml} --to {flow}\n")
        assert f"segue submit RUN_TOML --to {flow}" in next_of(segue("status", flow).err)

    @pytest.mark.parametrize("left", ["run.dag.condor.sub", "run.dag.dagman.log", "run.dag.rescue001"])
    def test_second_submission_by_hand_replaces_what_the_first_left(
        self, segue: Segue, run_toml: Path, left: str
    ) -> None:
        dag = run_toml.parent / "run" / "run.dag"
        assert f"next: condor_submit_dag {dag}   # or " in segue("dag", run_toml).err
        (dag.parent / left).touch()
        assert f"next: condor_submit_dag -f {dag}   # or segue submit {run_toml}" in segue("dag", run_toml).err

    def test_more_steps_that_run_toml_asks_for_now_are_the_next_step(self, segue: Segue, run_toml: Path) -> None:
        assert segue("dag", run_toml).code == 0
        ended(run_toml.parent, 0)
        run_toml.write_text(RUN.replace("100", "200"))
        assert next_of(segue("status", run_toml).err) == (
            f"run.toml asks for 200 steps now; go on from the newest commit: segue submit {run_toml}"
        )

    @pytest.mark.parametrize(("recipe", "served"), [("reference", True), ("lerobot", False), ("command", False)])
    def test_serving_follows_a_pull_only_where_segue_serves_it(
        self, segue: Segue, run_toml: Path, recipe: str, served: bool
    ) -> None:
        run_toml.write_text(RUN.replace('"command"', f'"{recipe}"'))
        begun(run_toml.parent, {}, 10)
        pulled = segue("pull", run_toml, "--mounted", "--step", "10", "--to", run_toml.parent / "here")
        assert pulled.code == 0, pulled.err
        assert ("next: segue serve " in pulled.err) == served


class TestChangedConfiguration:
    def test_plan_foresees_what_submit_refuses_and_names_the_option(self, segue: Segue, run_toml: Path) -> None:
        store = begun(run_toml.parent, OTHER, 10)
        asked = segue("plan", run_toml)
        assert asked.code == 0
        warning = next(line for line in asked.err.splitlines() if "will refuse" in line)
        assert f"run 'run' was begun in {store} with another configuration" in warning
        assert 'args was ["other.py"], is now ["train.py"]' in warning and "--accept-change args" in warning
        assert "no checkpoint" not in warning
        assert next_of(asked.err) == f"segue submit {run_toml} --accept-change args   # if the change is meant"
        assert segue("dag", run_toml).code == 2
        assert segue("dag", run_toml, "--accept-change", "args").code == 0

    def test_plan_says_nothing_when_nothing_changed(self, segue: Segue, run_toml: Path) -> None:
        begun(run_toml.parent, ARGS, 10)
        assert "will refuse" not in segue("plan", run_toml).err
        (only,) = json.loads(segue("plan", run_toml, "--json").out)["warnings"]
        assert only.startswith("trainer.options.resume: ")  # of every run with these args

    def test_without_a_checkpoint_accepting_is_said_to_mix_nothing(self, segue: Segue, run_toml: Path) -> None:
        begun(run_toml.parent, OTHER)
        for command in ("plan", "dag"):
            assert "no checkpoint is there yet, so accepting mixes nothing" in segue(command, run_toml).err

    def test_changed_dataset_is_foreseen_where_it_can_be_read(self, segue: Segue, run_toml: Path) -> None:
        (run_toml.parent / "data").write_text("new")
        run_toml.write_text(RUN + '[data]\ndataset = "data"')
        begun(run_toml.parent, {**ARGS, "dataset": "sha256:1"}, 10)
        assert "--accept-change dataset" in segue("plan", run_toml).err
        assert [path.name for path in run_toml.parent.glob("*.json")] == [], "plan writes nothing"

    def test_large_dataset_is_not_read_for_a_plan(
        self, segue: Segue, run_toml: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dagman.foreseen.MOST_READ_BYTES", 2)
        (run_toml.parent / "data").write_text("new")
        run_toml.write_text(RUN + '[data]\ndataset = "data"')
        begun(run_toml.parent, {**ARGS, "dataset": "sha256:1"}, 10)
        asked = segue("plan", run_toml).err
        assert "will refuse" not in asked
        assert "dataset: is not known without reading all of it; `segue submit` does" in asked

    def test_missing_checkout_is_foreseen_and_no_error_of_plan(self, segue: Segue, run_toml: Path) -> None:
        run_toml.write_text(RUN.replace("[trainer]", 'code = "empty"\n[trainer]'))
        (run_toml.parent / "empty").write_text("no directory")
        begun(run_toml.parent, ARGS, 10)
        asked = segue("plan", run_toml)
        assert asked.code == 0 and "`segue submit` will refuse: code: " in asked.err

    def test_staging_that_may_not_be_read_is_no_error_of_plan(self, run_toml: Path) -> None:
        begun(run_toml.parent, OTHER, 10)
        (run_toml.parent / "staging" / "segue").chmod(0)
        asked = as_ordinary_user(["plan", "run.toml"], run_toml.parent)
        assert asked.code == 0, asked.err
        assert "staging/segue/run: cannot be read here (Permission denied)" in asked.err
        refused = as_ordinary_user(["dag", "run.toml"], run_toml.parent)
        assert refused.code == 2 and "correct its mode, or give another `name`" in refused.sentence()

    def test_status_names_the_option_with_the_field(self, segue: Segue, run_toml: Path) -> None:
        assert segue("dag", run_toml).code == 0
        begun(run_toml.parent, OTHER, 10)
        ended(run_toml.parent, 1)
        assert next_of(segue("status", run_toml).err) == (
            f"mend the cause, then go on from the newest commit: segue submit {run_toml} --accept-change args   "
            "# if the change is meant; else put the old value back"
        )

    def test_status_leaves_a_wrong_run_toml_to_submit(self, segue: Segue, run_toml: Path) -> None:
        assert segue("dag", run_toml).code == 0
        run_toml.write_text(RUN + "frob = 1")
        found = segue("status", run_toml.parent / "run")
        assert found.code == 0 and next_of(found.err) == f"submit it: segue submit {run_toml.parent / 'run'}"


class TestNothingToTrain:
    def test_plan_and_dag_say_that_the_run_is_complete(self, segue: Segue, run_toml: Path) -> None:
        store = begun(run_toml.parent, ARGS, 50, 100)
        said = f"already complete: step 100 of 100 is in {store}; nothing to train; raise `steps` to go on"
        asked = segue("plan", run_toml)
        assert said in asked.err
        assert next_of(asked.err) == f"segue pull {run_toml}   # or raise `steps` and submit again"
        assert f"run: {said}\n" in segue("dag", run_toml).err

    @pytest.mark.parametrize("reached", [100, 150])
    def test_submit_says_it_before_it_submits_all_the_same(
        self, segue: Segue, run_toml: Path, reached: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = run_toml.parent / "bin" / "condor_submit_dag"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\necho '1 job(s) submitted to cluster 7.'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        begun(run_toml.parent, ARGS, reached)
        done = segue("submit", run_toml)
        assert done.code == 0 and done.out.startswith("run: submitted as job 7.0")
        assert "nothing to train" in done.err.splitlines()[0]
        assert done.err.splitlines()[1:] == [f"next: segue status {run_toml}"]
        assert "nothing to train" in json.loads(segue("submit", run_toml, "--json").out)["notes"][0]

    def test_result_that_htcondor_brought_is_here_already(self, segue: Segue, run_toml: Path) -> None:
        run_toml.write_text(RUN.replace('staging = "staging"\n', "") + "[agent]\ncheckpoint_exit = true\n")
        store = Store(run_toml.parent / "run" / "segue-store")
        store.publish(
            store.claim(Claimant(), ARGS), make_checkpoint(run_toml.parent / "made", 100), Metadata(100, "100")
        )
        asked = segue("plan", run_toml)
        assert next_of(asked.err) == f"the result is in {Path(store.root) / 'final'}; or raise `steps` and submit again"
        assert segue("pull", run_toml).code == 2

    def test_fewer_steps_than_reached(self, segue: Segue, run_toml: Path) -> None:
        store = begun(run_toml.parent, ARGS, 150)
        said = f"steps: 100 is below step 150, which the run has reached in {store}; nothing to train"
        for command in ("plan", "dag"):
            assert said in segue(command, run_toml).err

    def test_run_with_steps_left_is_no_news(self, segue: Segue, run_toml: Path) -> None:
        assert "goes on" not in segue("plan", run_toml).out
        begun(run_toml.parent, ARGS, 50)
        for command in ("plan", "dag"):
            assert "nothing to train" not in segue(command, run_toml).err
        assert "  goes on from step 50: 50 of 100 steps are left\n" in segue("plan", run_toml).out
        assert json.loads(segue("plan", run_toml, "--json").out)["reached"] == 50


class TestWhatIsNotStaged:
    CHTC = (
        RUN.replace('"local"', '"chtc"') + '[data]\ndataset = "data"\nassets = [{ source = "base", target = "base" }]\n'
    )

    def test_plan_sends_to_segue_stage_first_where_jobs_do_not_see_this_disk(
        self, segue: Segue, run_toml: Path
    ) -> None:
        for name in ("data", "base"):
            (run_toml.parent / name).write_text("x")
        run_toml.write_text(self.CHTC)
        asked = segue("plan", run_toml)
        assert asked.code == 0 and "warning: data: not staged yet: dataset, base; jobs find nothing else" in asked.err
        assert next_of(asked.err) == f"segue stage {run_toml}   # where the data is; then segue submit {run_toml}"
        # The workflow can be looked at all the same.
        assert "run: dataset, base: not in " in segue("dag", run_toml).err
        # What was staged is known by the record, and what lies in staging by its name.
        assert segue("stage", run_toml, "--mounted").code == 0
        done = segue("plan", run_toml)
        assert "not in" not in segue("dag", run_toml).err
        assert "not staged yet" not in done.err and next_of(done.err).startswith(f"segue submit {run_toml}")

    def test_inputs_go_to_staging_where_only_the_checkpoints_are_moved_by_htcondor(
        self, segue: Segue, run_toml: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STAGING", str(run_toml.parent / "staging"))
        for name in ("data", "base"):
            (run_toml.parent / name).write_text("x")
        run_toml.write_text(
            self.CHTC.replace('staging = "staging"\n', "") + "[agent]\ncheckpoint_exit = true\n[pace]\nstep_s = 1\n"
        )
        asked = segue("plan", run_toml)
        assert "data: not staged yet: dataset, base" in asked.err
        assert next_of(asked.err).startswith(f"segue stage {run_toml}")
        assert segue("stage", run_toml, "--mounted").code == 0
        assert next_of(segue("plan", run_toml).err).startswith(f"segue submit {run_toml}")
        assert "not in" not in segue("dag", run_toml).err

    def test_source_that_changed_after_it_was_staged_is_staged_again_first(self, segue: Segue, run_toml: Path) -> None:
        for name in ("data", "base"):
            (run_toml.parent / name).write_text("x")
        run_toml.write_text(self.CHTC)
        assert segue("stage", run_toml, "--mounted").code == 0
        (run_toml.parent / "data").write_text("other")
        asked = segue("plan", run_toml)
        assert "data: not staged yet: dataset (changed since); jobs find nothing else" in asked.err
        assert next_of(asked.err).startswith(f"segue stage {run_toml}")

    def test_what_was_staged_somewhere_else_is_staged_again_first(self, segue: Segue, run_toml: Path) -> None:
        for name in ("data", "base"):
            (run_toml.parent / name).write_text("x")
        run_toml.write_text(self.CHTC)
        assert segue("stage", run_toml, "--mounted").code == 0
        (run_toml.parent / "group").mkdir()
        run_toml.write_text(self.CHTC.replace('staging = "staging"', 'staging = "group"'))
        asked = segue("plan", run_toml)
        assert "data: not staged yet: dataset, base; jobs find nothing else" in asked.err
        assert next_of(asked.err).startswith(f"segue stage {run_toml}")
        assert segue("stage", run_toml, "--mounted").code == 0
        assert "not staged" not in segue("plan", run_toml).err

    def test_access_point_that_does_not_see_staging_goes_by_the_record(
        self, segue: Segue, run_toml: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STAGING", str(run_toml.parent / "staging"))
        for name in ("data", "base"):
            (run_toml.parent / name).write_text("x")
        run_toml.write_text(self.CHTC.replace('staging = "staging"\n', ""))
        assert segue("stage", run_toml, "--mounted").code == 0
        (run_toml.parent / "staging").rename(run_toml.parent / "unmounted")
        assert segue("dag", run_toml).err.count("\n") == 1, "nothing but the next command"
        (run_toml.parent / "base").unlink()  # what is staged and recorded need not be here
        assert "base" not in segue("plan", run_toml).err
        (run_toml.parent / "data").write_text("other")
        assert "run: dataset: nothing here says that it is in staging as it is now" in segue("dag", run_toml).err

    def test_local_jobs_read_it_where_it_is(self, segue: Segue, run_toml: Path) -> None:
        (run_toml.parent / "data").write_text("x")
        run_toml.write_text(RUN + '[data]\ndataset = "data"')
        assert "not staged" not in segue("plan", run_toml).err


class TestFirstSubmission:
    """What `segue dag` refuses before anything was submitted, `segue plan` says."""

    DATA = (
        '[data]\nassets = [{ source = "a", target = "a", name = "dd" }, { source = "b", target = "b", name = "dd" }]\n'
    )

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (RUN.replace('"staging"', '"/data/nosuch"'), "staging: /data/nosuch is not a directory here"),
            (RUN + DATA, "data.assets: two inputs are named 'dd'"),
            (RUN + '[data]\ndataset = "gone"\n', "gone: dataset is not on this machine, and no record says"),
            (RUN + '[data]\ndataset = "empty"\n', "empty: holds no files"),
            (RUN + '[data]\ndataset = "empty"\n[container]\nimage = "gone.sif"\n', "gone.sif: no such file"),
            (
                RUN.replace('"command"\nargs = ["train.py"]', '"lerobot"') + '[data]\ndataset = "full"\n',
                "data: {here}/full: no LeRobot dataset: meta/info.json is missing",
            ),
            (RUN.replace("[trainer]", 'code = "gone"\n[trainer]'), "code: {here}/gone: no such directory"),
        ],
    )
    def test_plan_says_what_dag_refuses_and_does_not_suggest_submitting(
        self, segue: Segue, run_toml: Path, text: str, said: str
    ) -> None:
        here = run_toml.parent
        (here / "empty").mkdir()
        (here / "full").mkdir()
        (here / "full" / "x").write_text("")
        run_toml.write_text(text)
        assert segue("dag", run_toml).code == 2
        asked = segue("plan", run_toml)
        assert asked.code == 0
        line = next(line for line in asked.err.splitlines() if said.format(here=here) in line)
        assert line.startswith("segue: warning: `segue submit` will refuse: ")
        assert next_of(asked.err) == f"correct what `segue submit` will refuse, then segue plan {run_toml}"

    def test_run_toml_under_tmp(self, segue: Segue, tmp_path: Path) -> None:
        (tmp_path / "staging").mkdir()
        (tmp_path / "run.toml").write_text(RUN)
        asked = segue("plan", tmp_path)
        assert asked.code == 0 and f"will refuse: {tmp_path / 'run'}: DAGMan refuses to keep its log under" in asked.err
        assert next_of(asked.err).startswith("correct ")

    def test_directory_of_something_else(self, segue: Segue, run_toml: Path) -> None:
        (run_toml.parent / "run").mkdir()
        (run_toml.parent / "run" / "thesis.tex").write_text("")
        assert "will refuse: " in segue("plan", run_toml).err
        assert segue("dag", run_toml).code == 2

    def test_what_init_wrote_lacks_its_data(self, segue: Segue, workdir: Path) -> None:
        assert segue("init", workdir / "loc", "--site", "local").code == 0
        asked = segue("plan", workdir / "loc")
        assert asked.code == 0 and "loc/data: dataset is not on this machine" in asked.err
        assert next_of(asked.err) == f"correct what `segue submit` will refuse, then segue plan {workdir / 'loc'}"
        assert len(json.loads(segue("plan", workdir / "loc", "--json").out)["refused"]) == 1

    def test_data_that_is_somewhere_else_is_staged_from_there(self, segue: Segue, run_toml: Path) -> None:
        run_toml.write_text(RUN.replace('"local"', '"chtc"') + '[data]\ndataset = "gone"\n')
        asked = segue("plan", run_toml)
        assert "gone: dataset is not on this machine" in asked.err
        assert next_of(asked.err).startswith(f"segue stage {run_toml}   # where the data is")
