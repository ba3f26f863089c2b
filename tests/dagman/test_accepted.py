"""What segue generates, in front of HTCondor's own programs: 25.x of Debian's testing suite, and 23.9 of trixie."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import htcondor2
import pytest

from dagman.dag import Dag, Node, Script, lines
from dagman.pool import installation
from dagman.pool.installation import Installation
from dagman.workflow import make_dag
from dagman.write import write_workflow
from tests.dagman.samples import RUNS, golden_workflow

SUITES = ("forky", "trixie")


@pytest.fixture(scope="module", params=SUITES)
def condor(request: pytest.FixtureRequest) -> Installation:
    return installation.fetched((request.param,))


def tool(condor: Installation, name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CONDOR_CONFIG": "/dev/null"}
    return subprocess.run(
        [str(condor.bin / name), *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def laid_out(kind: str, workdir: Path) -> Path:
    """The golden workflow on the disk, without code: its archive is not at hand."""
    (workdir / "staging").mkdir()
    key = workdir / "wandb.key"
    key.touch(mode=0o600)
    workflow = golden_workflow(kind, workdir / kind, workdir / "staging", key)
    write_workflow(replace(workflow, archives=()))
    (workdir / kind / "code-0123456789abcdef.tar").touch()
    return workdir / kind


@pytest.mark.parametrize("kind", RUNS)
def test_dag_checker_finds_the_chain_and_no_fault(workdir: Path, kind: str) -> None:
    directory = laid_out(kind, workdir)
    (dag,) = directory.glob("*.dag")
    newest = installation.fetched(("forky",))
    # From another directory: every path in the file is absolute.
    done = tool(newest, "condor_dag_checker", "-json", "-CheckJDL", str(dag), cwd=workdir)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(done.stdout)
    nodes = len(re.findall(r"^(?:JOB|FINAL) ", dag.read_text(), re.MULTILINE))
    assert (found["TotalNodes"], found["FinalNode"], found["GraphWidth"]) == (nodes, "summary", 1)
    assert found["GraphHeight"] == nodes - 1, "everything but FINAL is one chain"


@pytest.mark.parametrize("kind", RUNS)
def test_condor_submit_takes_every_description_without_a_warning(
    workdir: Path, kind: str, condor: Installation
) -> None:
    directory = laid_out(kind, workdir)
    for sub in sorted(directory.glob("*.sub")):
        words = ["segment=003", "class=short"] if sub.name == "segment.sub" else []
        done = tool(condor, "condor_submit", "-dry-run", "-", *words, str(sub), cwd=workdir)
        assert done.returncode == 0, f"{sub.name}: {done.stderr}"
        assert "WARNING" not in done.stdout + done.stderr, f"{sub.name}: {done.stdout}{done.stderr}"
        assert len(re.findall(r"^Iwd=", done.stdout, re.MULTILINE)) == 1, "one job"
        if sub.name == "segment.sub":
            assert 'TransferOutputRemaps="handover.json = handovers/segment-003.json"' in done.stdout
            assert "--segment 003 --class short --handover" in done.stdout
        if (kind, sub.name) == ("chtc", "segment.sub"):
            for line in ("WantGPULab=true", 'GPUJobLength="short"', "is_resumable=true", "RequestGPUs=1"):
                assert line in done.stdout
            assert f"UserLog={json.dumps(str(directory / 'events.log'))}" in done.stdout
            assert "GPUsMinMemory=24576\n" in done.stdout and "GPUsMinCapability=8\n" in done.stdout


def test_retry_that_avoids_a_machine_is_read_with_the_requirements_before_it(
    workdir: Path, condor: Installation
) -> None:
    # Given the file that the PRE script writes after a failure on gpu4004,
    directory = laid_out("chtc", workdir)
    (directory / "handovers" / "segment-003.json").write_text(
        '{\n "state": "temporary",\n "machine": "gpu4004.example"\n}\n'
    )
    assert subprocess.run([directory / "scripts" / "pre_segment", "003", "90000"]).returncode == 0
    # when segment 3 is submitted again, and segment 4 for the first time,
    asked = {
        number: tool(
            condor, "condor_submit", "-dry-run", "-", f"segment={number}", "class=short", "segment.sub", cwd=directory
        ).stdout
        for number in ("003", "004")
    }
    # then the site's requirements stand in both, and the machine in one.
    for text in asked.values():
        assert "HasCHTCStaging" in text and "A100|L40" in text
    assert 'TARGET.Machine != "gpu4004.example"' in asked["003"]
    assert "TARGET.Machine !=" not in asked["004"]


@pytest.mark.parametrize("kind", RUNS)
def test_bindings_read_the_same_commands(kind: str) -> None:
    workflow = golden_workflow(kind, Path("/home/bbadger/run"), Path("/staging/b/bbadger"))
    for file in workflow.files:
        if file.path.endswith(".sub"):
            read = htcondor2.Submit(file.text)
            written = [
                line.split(" = ")[0]
                for line in file.text.splitlines()
                if line and not line.startswith(("#", "include")) and line != "queue"
            ]
            assert [key.replace("MY.", "+") for key in read.keys()] == written  # noqa: SIM118 (no plain iteration there)


def test_writer_says_what_the_model_holds() -> None:
    first = Node("a", "/w/a.sub", {"x": "1"}, Script("/w/pre", ("1",)), Script("/w/post"), 80, 2, 78)
    dag = Dag([first, Node("b", "/w/b.sub", noop=True)], [("a", "b")], Node("end", "/w/b.sub"), "/w/config", ["About"])
    assert list(lines(dag)) == [
        "# About", "CONFIG /w/config",
        "", "JOB a /w/a.sub", 'VARS a x="1"', "SCRIPT PRE a /w/pre 1", "SCRIPT POST a /w/post", "PRE_SKIP a 80",
        "RETRY a 2 UNLESS-EXIT 78",
        "", "JOB b /w/b.sub NOOP",
        "", "PARENT a CHILD b",
        "", "FINAL end /w/b.sub",
    ]  # fmt: skip


def test_ten_thousand_segments_are_one_chain_that_the_checker_takes(workdir: Path) -> None:
    from dagman.dag import text
    from dagman.plan import make_plan
    from dagman.site import load_site
    from dagman.spec import load_spec
    from tests.dagman.samples import GOLDEN

    run_toml = GOLDEN / "local" / "run.toml"
    spec, site = load_spec(run_toml), load_site("local", Path())
    plan = replace(make_plan(spec, site), needed=9_000, reserve=1_000)
    (workdir / "stage.sub").write_text("executable = /bin/true\nqueue\n")
    (workdir / "x.dag").write_text(text(replace(make_dag(spec, site, plan, workdir), config=None)))
    done = tool(installation.fetched(("forky",)), "condor_dag_checker", "-json", "x.dag", cwd=workdir)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    assert json.loads(done.stdout)[0]["TotalNodes"] == 10_003
