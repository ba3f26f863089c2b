"""Node norm_stats: OpenPI's script run once, its result part of the run, brought to each attempt; nothing half-written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import InputArchive, JobConfig, dump
from agent.errors import BadInput, SegueError
from agent.norm_stats import bring
from agent.pack import archive_name, members, write_archive
from jobs.main import main as jobs_main
from jobs.norm_stats import norm_stats

# Writes as OpenPI's own does: ./assets/<config>/<repo id>/norm_stats.json, below the directory that it is run in.
SCRIPT = """
import json, os, pathlib, sys
assert sys.argv[1:3] == ["--config-name", "lab"], sys.argv
assert pathlib.Path(os.environ["HF_LEROBOT_HOME"], "local/arm/meta/info.json").is_file()
if (pathlib.Path(__file__).parent / "broken").exists():
    sys.exit("ValueError: Config 'lab' not found")
mean = float("inf") if (pathlib.Path(__file__).parent / "infinite").exists() else 0.5
out = pathlib.Path("assets/lab/local/arm/norm_stats.json")
out.parent.mkdir(parents=True)
entry = {"mean": [mean], "std": [1.0], "q01": [0.0], "q99": [1.0]}
out.write_text(json.dumps({"norm_stats": {"state": entry, "actions": entry}}))
"""


def archived(staging: Path, source: Path, name: str, target: str) -> InputArchive:
    """Put a directory into staging as an input."""
    path, packed = write_archive(
        members(source), staging / "segue/_inputs", lambda found: archive_name(name, found.sha256)
    )
    return InputArchive(name, path.name, packed.sha256, packed.bytes, target)


class Node:
    """A run with a checkout and a dataset in staging, and a fresh scratch directory for each execution."""

    def __init__(self, directory: Path, *marks: str, **options: Any) -> None:
        self.directory = directory
        checkout, dataset = directory / "checkout", directory / "dataset"
        (checkout / "scripts").mkdir(parents=True)
        (checkout / "scripts/compute_norm_stats.py").write_text(SCRIPT)
        for name in ("train.py", *marks):
            (checkout / "scripts" / name).touch()
        (dataset / "meta").mkdir(parents=True)
        (dataset / "meta/info.json").write_text("{}")
        if "ships" in marks:
            (checkout / "assets/lab/local/arm").mkdir(parents=True)
            (checkout / "assets/lab/local/arm/norm_stats.json").write_text("{}")
        staging = directory / "staging"
        self.job = JobConfig(
            "arm",
            str(staging),
            10,
            "openpi",
            python=sys.executable,
            options={"config": "lab", "norm_stats": True, "tokenizer": False, **options},
            inputs=(archived(staging, dataset, "dataset", ".cache/huggingface/lerobot/local/arm"),),
            code=archived(staging, checkout, "code", "code"),
        )
        self.number = 0

    def scratch(self) -> Path:
        self.number += 1
        made = self.directory / f"scratch-{self.number}"
        made.mkdir()
        return made

    def run(self) -> dict[str, object]:
        return norm_stats(self.job, self.scratch())

    def other(self, name: str) -> InputArchive:
        """An input of this name with other content, in staging."""
        source = self.directory / ("checkout" if name == "code" else name)
        (source / "changed").touch()
        return archived(self.directory / "staging", source, name, "")

    @property
    def kept(self) -> Path:
        return self.job.store_root / "norm_stats/lab/local/arm/norm_stats.json"


def test_statistics_are_computed_once_and_brought_to_each_attempt(tmp_path: Path) -> None:
    node = Node(tmp_path)
    first, second = node.run(), node.run()
    assert (first["was_there"], second["was_there"]) == (False, True)
    assert json.loads(node.kept.read_text())["norm_stats"]["state"]["mean"] == [0.5]
    attempt = node.scratch()
    assert bring(node.job, attempt) == ["assets/lab/local/arm/norm_stats.json"]
    assert (attempt / "assets/lab/local/arm/norm_stats.json").read_bytes() == node.kept.read_bytes()
    assert bring(node.job, attempt) == []


CHANGES: list[Callable[[Node], JobConfig]] = [
    lambda node: replace(node.job, inputs=(replace(node.other("dataset"), target=node.job.inputs[0].target),)),
    lambda node: replace(node.job, code=replace(node.other("code"), target="code")),
    lambda node: replace(node.job, options={**node.job.options, "norm_stats_frames": 7}),
    lambda node: replace(node.job, options={**node.job.options, "asset_id": "trossen"}),
    lambda node: replace(node.job, fingerprint={**node.job.fingerprint, "image": "docker://lab/other:2"}, code=None),
]


@pytest.mark.parametrize("change", CHANGES, ids=["dataset", "code", "frames", "asset_id", "image"])
def test_statistics_of_another_dataset_code_or_config_are_computed_anew(
    tmp_path: Path, change: Callable[[Node], JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """`--accept-change dataset` must not train with the numbers of the dataset before."""
    node = Node(tmp_path)
    if change is CHANGES[-1]:
        node.job = replace(node.job, code=None, options={**node.job.options, "app": str(tmp_path / "checkout")})
    node.run()
    node.kept.write_text(node.kept.read_text().replace("0.5", "0.25"))
    node.job = change(node)
    # no attempt takes those that are there, and the node puts others in their place
    assert bring(node.job, node.scratch()) == []
    assert (node.run()["was_there"], node.run()["was_there"]) == (False, True)
    assert json.loads(node.kept.read_text())["norm_stats"]["state"]["mean"] == [0.5]
    assert "made from another dataset, code or config: computed anew" in capsys.readouterr().err
    assert "assets/lab/local/arm/norm_stats.json" in bring(node.job, node.scratch())
    assert [path.name for path in node.job.store_root.iterdir()] == ["norm_stats"]


def test_statistics_of_which_nobody_knows_what_they_were_made_from_are_computed_anew(tmp_path: Path) -> None:
    node = Node(tmp_path)
    old = node.job.store_root / "norm_stats/before/other/norm_stats.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    assert node.run()["was_there"] is False
    assert not old.exists()


def test_a_change_of_what_they_do_not_depend_on_computes_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.run()
    weights = InputArchive("pi0_base", "pi0_base-1.tar", "1" * 64, 1, ".cache/openpi/pi0_base")
    node.job = replace(node.job, steps=20, args=("--batch-size=8",), inputs=(*node.job.inputs, weights))
    assert node.run()["was_there"] is True


def test_nothing_is_computed_where_the_checkout_ships_its_own(tmp_path: Path) -> None:
    node = Node(tmp_path, "ships")
    assert node.run()["was_there"] is True
    assert not node.kept.exists()


def test_statistics_are_also_kept_under_the_asset_id_that_the_trainer_reads(tmp_path: Path) -> None:
    node = Node(tmp_path, asset_id="trossen")
    node.run()
    assert (node.job.store_root / "norm_stats/lab/trossen/norm_stats.json").read_bytes() == node.kept.read_bytes()


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("broken", r"ended with exit code 1: .*Config 'lab' not found"),
        ("infinite", r"state\.mean holds a value that is not"),
    ],
)
def test_a_failure_is_one_sentence_and_leaves_nothing(tmp_path: Path, mark: str, message: str) -> None:
    node = Node(tmp_path, mark)
    with pytest.raises(SegueError, match=message):
        node.run()
    assert not list(node.job.store_root.glob("*"))
    assert not list((tmp_path / "scratch-1").glob("norm-stats-*"))


def test_other_recipes_have_no_use_for_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="recipe 'reference' has no norm_stats"):
        norm_stats(JobConfig("arm", str(tmp_path), 1, "reference"), tmp_path)


@pytest.mark.parametrize("word", ["norm-stats", "norm_stats"])
def test_the_program_answers_to_the_nodes_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    node = Node(tmp_path)
    scratch = node.scratch()
    (scratch / "job.json").write_text(dump(node.job))
    monkeypatch.chdir(scratch)
    monkeypatch.delenv("_CONDOR_SCRATCH_DIR", raising=False)
    assert jobs_main([word, "--config", "job.json"]) == 0
    assert json.loads(capsys.readouterr().out)["was_there"] is False
