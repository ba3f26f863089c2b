"""From a laptop that has the data, by an access point that has nothing but run.toml and the record, to a job's scratch directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from agent.config import load
from agent.inputs import fetch
from cli.main import main
from jobs.main import main as node
from tests.shipping.checkpoints import tree
from tests.shipping.conftest import Run


def test_staged_inputs_and_code_reach_a_job_of_a_machine_that_has_none(run: Run, workdir: Path) -> None:
    # given a laptop with dataset, tokenizer and code, all staged
    here = run.toml.parent
    (here / "app").mkdir()
    (here / "app" / "train.py").write_text("print()\n")
    (here / "tokenizer.model").write_bytes(b"t" * 100)
    run.write(
        code='"app"',
        data='dataset = "data"\nassets = [{source = "tokenizer.model", target = ".cache/openpi/big_vision"}]',
    )
    run.segue("stage")
    # when an access point generates the workflow
    for name in ("run.toml", "run.staged.json"):
        shutil.copy(here / name, workdir)
    assert main(["dag", str(workdir / "run.toml")]) == 0
    run.capture.readouterr()
    job = load(workdir / "demo" / "job.json")
    assert [entry.source for entry in (*job.inputs, job.code) if entry] == ["", "", ""]
    # then its stage node finds everything
    assert node(["stage", "--config", str(workdir / "demo" / "job.json")]) == 0
    assert len(json.loads(run.capture.readouterr().out)["verified"]) == 3
    # and a job has it where the recipe looks
    scratch = workdir / "scratch"
    scratch.mkdir()
    fetch(job, scratch)
    assert tree(scratch / "inputs" / "dataset") == tree(here / "data")
    assert tree(scratch / ".cache" / "openpi" / "big_vision") == {"tokenizer.model": b"t" * 100}
    assert tree(scratch / "code") == {"train.py": b"print()\n"}
