"""Opening a run: what came with the code is not taken for the run's own, what passes is temporary, what nothing depends on may fail."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import agent.carry
import agent.pack
from agent.attempt import End
from agent.config import InputArchive
from agent.errand import Errand, Outcome
from agent.errors import BadInput
from agent.exit_codes import PERMANENT, TEMPORARY
from agent.keeping import keep
from agent.loop import Loop
from agent.opening import OpeningErrand
from agent.pack import archive_name, members, write_archive
from agent.recipes.base import Start
from agent.recipes.command import Command
from agent.staging import Opening, Staging
from agent.store import Claimant, Metadata
from agent.verdict import cannot_open, left_early
from tests.agent.recipes.starts import saved, start_of
from tests.agent.support import DEADLINE_S
from tests.agent.test_companions import place

OPTIONS = {"checkpoints": "code/outputs", "pattern": "step-{step}"}


def packed(start: Start, source: Path, name: str) -> InputArchive:
    """``source`` as an archive in staging, with its digest in the name."""
    archive, found = write_archive(members(source), start.job.inputs_root, lambda one: archive_name(name, one.sha256))
    return InputArchive(name, archive.name, found.sha256, found.bytes, name)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """The first start of a `command` run whose checkpoints lie in the code that travels."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "staging").mkdir()
    checkout = tmp_path / "checkout"
    saved(checkout, "outputs", ("README",))
    made = start_of(tmp_path / "scratch", "command", OPTIONS, fingerprint={"recipe": "command"})
    return replace(made, job=replace(made.job, code=packed(made, checkout, "code")))


def opened(start: Start, said: list[dict[str, Any]] | None = None, machine: str = "m") -> Opening:
    """What opening the run in this scratch directory brings."""
    staging = Staging(start.job, start.job.store_root, 0, replace(place(start.scratch), machine=machine))
    recipe = Command()
    report = (said if said is not None else []).append
    return Opening(**staging.open(recipe.checkpoint_root(start), report, lambda: recipe.finished(start)))


def commit(start: Start, step: int, snapshot: Path) -> None:
    """A commit of ``step`` by an earlier attempt."""
    store = Staging(start.job, start.job.store_root, 0, place(start.scratch)).store()
    claim = store.claim(Claimant("m", "1.0", 0), start.job.fingerprint)
    saved(snapshot, f"step-{step}", ("weights",))
    store.publish(claim, snapshot, Metadata(step, f"step-{step}"))


def test_a_checkpoint_that_came_with_the_code_is_not_taken_for_the_runs_own(start: Start, tmp_path: Path) -> None:
    saved(tmp_path / "checkout" / "outputs", "step-100", ("weights",))
    left = replace(start, job=replace(start.job, code=packed(start, tmp_path / "checkout", "code")))
    with pytest.raises(BadInput, match=r"^code/outputs/step-100: .*\.gitignore.*`checkpoints`"):
        opened(left)


def test_other_files_in_that_directory_of_the_code_are_no_reason_to_refuse(start: Start) -> None:
    assert opened(start).restored is None
    assert (start.scratch / "code/outputs/README").is_file()


def test_code_neither_overwrites_nor_removes_what_was_restored(start: Start, tmp_path: Path) -> None:
    commit(start, 50, tmp_path / "snapshot")
    found = opened(start)
    assert found.restored is not None and found.restored["step"] == 50
    assert (start.scratch / "code/outputs/step-50/weights").is_file()
    again = opened(start)
    assert again.restored == found.restored


def test_told_to_leave_while_it_is_opened_says_what_the_run_has(start: Start, tmp_path: Path) -> None:
    attempt: Any = SimpleNamespace(leave_now=False, handover=SimpleNamespace(step=0, commit=None))
    assert left_early(attempt).reason.endswith("before the run was opened; what is published stays")
    commit(start, 50, tmp_path / "snapshot")
    said: list[dict[str, Any]] = []
    opened(start, said)
    opening: Any = SimpleNamespace(_attempt=attempt)
    OpeningErrand.told(opening, next(one for one in said if "newest" in one))
    assert (attempt.handover.step, attempt.handover.commit) == (50, "000000050.e000001.tar")
    assert left_early(attempt).reason.endswith("; step 50 is published")


def test_a_damaged_last_commit_brings_the_code_after_all(start: Start, tmp_path: Path) -> None:
    commit(start, 50, tmp_path / "one")
    commit(start, 100, tmp_path / "two")
    newest = max((start.job.store_root / "checkpoints").glob("*.tar"))
    newest.write_bytes(bytes(newest.stat().st_size))
    found = opened(start)
    assert found.restored is not None and found.restored["step"] == 50
    assert (start.scratch / "code/outputs/step-50/weights").is_file() and (
        start.scratch / "code/outputs/README"
    ).exists()


def test_a_run_none_of_whose_commits_reads_well_is_tried_elsewhere_and_not_begun_anew(
    start: Start, tmp_path: Path
) -> None:
    commit(start, 50, tmp_path / "one")
    commit(start, 100, tmp_path / "two")
    archives = sorted((start.job.store_root / "checkpoints").glob("*.tar"))
    for path in archives:
        path.write_bytes(bytes(path.stat().st_size))
    end = ended(lambda: opened(start))
    assert end.exit_code == TEMPORARY and "none of its 2 commits reads well on this machine" in end.reason
    assert sorted((start.job.store_root / "checkpoints").iterdir()) == archives
    said_before(start, end.reason)
    assert ended(lambda: opened(start, machine="other")).exit_code == PERMANENT
    assert sorted((start.job.store_root / "checkpoints").iterdir()) == archives


def failing(number: int) -> Callable[..., Any]:
    """In the place of a system call: fails with this errno."""

    def call(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def ended(work: Callable[[], Opening]) -> End:
    """How an attempt ends whose opening does this."""
    loop, outcomes = Loop(), list[Outcome]()
    Errand(loop, lambda report: asdict(work()), outcomes.append, low_priority=False)
    loop.run_until(lambda: bool(outcomes), time.monotonic() + DEADLINE_S)
    return cannot_open(outcomes[0])


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EACCES])
def test_a_disk_that_fails_while_code_is_unpacked_is_tried_elsewhere(
    start: Start, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(agent.pack, "_merge", failing(number))
    assert ended(lambda: opened(start)).exit_code == TEMPORARY


@pytest.mark.parametrize("kind", [FileNotFoundError, PermissionError, TimeoutError, OSError])
def test_a_bare_error_of_a_disk_is_tried_elsewhere(kind: type[OSError]) -> None:
    def work() -> Opening:
        raise kind(errno.EIO, "it is away")

    assert ended(work).exit_code == TEMPORARY


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError(), KeyError("size")])
def test_what_nobody_expected_is_tried_elsewhere(error: Exception) -> None:
    def work() -> Opening:
        raise error

    end = ended(work)
    assert end.exit_code == TEMPORARY and type(error).__name__ in end.reason


def test_what_only_the_user_can_mend_is_never_tried_again() -> None:
    def work() -> Opening:
        raise BadInput("outputs: has files that are not this run's")

    assert ended(work) == End("failed", PERMANENT, "outputs: has files that are not this run's")


def said_before(start: Start, reason: str) -> None:
    """The newest attempt's ledger, as it was kept."""
    epoch = Staging(start.job, start.job.store_root, 0, place(start.scratch)).store().current_epoch()
    ledger = start.scratch / "ledger"
    ledger.write_text(json.dumps({"event": "end", "step": 0, "reason": reason}) + "\n")
    keep(start.job.store_root / "logs", epoch, {"jsonl": ledger}, 5)


def test_an_archive_damaged_on_its_way_is_tried_elsewhere_and_one_damaged_in_staging_once(start: Start) -> None:
    assert start.job.code is not None
    path = start.job.inputs_root / start.job.code.archive
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    first = ended(lambda: opened(start))
    assert first.exit_code == TEMPORARY and "it is damaged" in first.reason
    said_before(start, first.reason)
    again = ended(lambda: opened(start))  # the same machine has no second vote
    assert (again.exit_code, again.reason) == (TEMPORARY, first.reason)
    said_before(start, again.reason)
    other = ended(lambda: opened(start, machine="other"))
    assert (other.exit_code, other.reason) == (PERMANENT, f"{first.reason} (m found the same)")
    said_before(start, "the run was told to leave")
    assert ended(lambda: opened(start)).exit_code == TEMPORARY
    (start.scratch / path.name).write_bytes(data)
    end = ended(lambda: opened(start))
    assert end.exit_code == TEMPORARY and "damaged on its way" in end.reason


def test_code_that_cannot_lie_where_it_shall_is_never_tried_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.pack, "_merge", failing(errno.ENOTDIR))
    assert ended(lambda: opened(start)).exit_code == PERMANENT


def test_caches_that_cannot_be_brought_are_a_warning(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    (start.job.store_root / "carry").mkdir(parents=True)
    monkeypatch.setattr(agent.carry, "newest", failing(errno.ESTALE))
    said: list[dict[str, Any]] = []
    assert opened(start, said).restored is None
    assert any("cached files were not brought" in one.get("warning", "") for one in said)
