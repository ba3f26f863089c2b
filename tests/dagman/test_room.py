"""Whether a run fits into staging is said before it is submitted: by what run.toml says of a checkpoint, later by what was seen of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagman.foreseen import needed
from dagman.prepare import Asked, ask
from dagman.presets import initial_text
from dagman.room import need, too_much

RUN = 'name = "run"\nsite = "chtc"\nsteps = 1000\nstaging = "staging"\n[trainer]\nrecipe = "command"\n'


def asked(here: Path, more: str) -> Asked:
    (here / "staging").mkdir(exist_ok=True)
    (here / "run.toml").write_text(RUN + more)
    return ask(here / "run.toml")


def said(here: Path, more: str) -> str:
    one = asked(here, more)
    return "\n".join(too_much(one, needed(one)))


@pytest.mark.parametrize(("name", "fits"), [("pi0-full", False), ("pi05-full", False), ("pi0-lora", True)])
def test_full_fine_tuning_does_not_fit_into_the_usual_quota(name: str, fits: bool, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(initial_text("arm", "chtc", name))
    one = ask(tmp_path / "run.toml")
    text = "\n".join(too_much(one, need(one)))
    if fits:
        assert text == ""
    else:
        assert "budget: 3 checkpoints of 50 GB (budget.checkpoint_gb) are 150 GB in staging" in text
        assert (
            "more than the usual quota of CHTC GPU Lab (100 GB): ask for a larger quota and say it as budget.gb" in text
        )


def test_budget_of_the_run_goes_before_the_sites_quota(tmp_path: Path) -> None:
    assert "more than budget.gb (1 GB): give more" in said(tmp_path, "[budget]\ngb = 1\ncheckpoint_gb = 0.5\n")
    assert said(tmp_path, "[budget]\ngb = 200\ncheckpoint_gb = 50\n") == ""


@pytest.mark.parametrize(
    ("budget", "sizes"),
    [
        (
            "gb = 0.03\ncheckpoint_gb = 0.010003",
            "3 checkpoints of 0.01 GB (budget.checkpoint_gb) are 0.03001 GB in staging, more than budget.gb (0.03 GB)",
        ),
        ("gb = 0.00001\ncheckpoint_gb = 0.000004", "of 0.000004 GB (budget.checkpoint_gb) are 0.00001"),
        ("gb = 100\ncheckpoint_gb = 40", "are 120 GB in staging, more than budget.gb (100 GB)"),
    ],
)
def test_a_size_that_is_too_much_is_never_shown_as_the_same_or_as_nothing(
    tmp_path: Path, budget: str, sizes: str
) -> None:
    assert sizes in said(tmp_path, f"[budget]\n{budget}\n")


def test_retention_and_inputs_count(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    with (tmp_path / "data").open("r+b") as file:
        file.truncate(60_000_000_000)
    data = '[data]\ndataset = "data"\n'
    assert said(tmp_path, "[budget]\ncheckpoint_gb = 10\n") == ""
    assert "3 checkpoints of 20 GB (budget.checkpoint_gb) and inputs of 60 GB are 120 GB" in said(
        tmp_path, data + "[budget]\ncheckpoint_gb = 20\n"
    )
    assert "13 checkpoints of 10 GB" in said(tmp_path, "[retention]\nevery = 100\n[budget]\ncheckpoint_gb = 10\n")
    assert "retention: about 1054 files and directories" in said(tmp_path, "[retention]\nevery = 1\nbest = 'loss'\n")


def test_size_seen_in_staging_goes_before_what_was_thought(tmp_path: Path) -> None:
    more = "[budget]\ncheckpoint_gb = 50\n"
    assert "150 GB" in said(tmp_path, more)
    commits = tmp_path / "staging" / "segue" / "run" / "checkpoints"
    commits.mkdir(parents=True)
    with (commits / "000000100.e000001.tar").open("wb") as file:
        file.truncate(8_000_000_000)
    assert said(tmp_path, more) == ""
    assert needed(asked(tmp_path, more)).known_by == "the newest one"


def test_nothing_is_said_of_a_size_that_nobody_knows(tmp_path: Path) -> None:
    assert said(tmp_path, "[budget]\ngb = 1\n") == ""
