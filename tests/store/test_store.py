"""The store on a real disk: claim, publish, restore, prune, sweep, verify."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from agent.store import (
    BadCheckpoint,
    Budget,
    Claim,
    Claimant,
    FingerprintChanged,
    Metadata,
    NoRoom,
    PosixFileSystem,
    Retention,
    Store,
    StoreError,
    StoreUnavailable,
    Superseded,
    latest,
    snapshot,
)
from agent.store.errors import NewerFormat, NoGoodCommit
from tests.store.trees import make_checkpoint, picture

FINGERPRINT = {"recipe": "reference", "dataset": "sha256:1"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "staging").mkdir()
    return Store(tmp_path / "staging" / "segue" / "reacher")


def publish(store: Store, claim: Claim, place: Path, step: int, **more: object) -> Path:
    source = place / f"source-{step}-{claim.epoch}"
    make_checkpoint(source, step)
    store.publish(claim, source, Metadata(step, str(step), "reference", **more))  # type: ignore[arg-type]
    return source


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))


def restored(store: Store, place: Path) -> tuple[int, dict[bytes, tuple[str, int, bytes]], list[str]]:
    said: list[str] = []
    place.mkdir()
    found = store.restore(place, report=said.append)
    return (found.manifest.step if found else -1), picture(place), said


def test_a_published_checkpoint_comes_back_identical(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant("host", "1.0", 0), FINGERPRINT)
    source = publish(store, claim, tmp_path, 10)
    step, found, said = restored(store, tmp_path / "back")
    assert (step, found, said) == (10, picture(source), [])


def test_a_commit_opens_with_plain_tar(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    source = publish(store, claim, tmp_path, 10)
    with tarfile.open(store.commits()[0].path) as archive:
        archive.extractall(tmp_path / "tar", filter="tar") if hasattr(tarfile, "tar_filter") else archive.extractall(
            tmp_path / "tar"
        )
        assert archive.getnames()[-1] == "segue-manifest.json"
    (tmp_path / "tar" / "segue-manifest.json").unlink()
    assert picture(tmp_path / "tar") == picture(source)


def test_nothing_to_restore_before_the_first_commit(store: Store, tmp_path: Path) -> None:
    assert (store.commits(), store.current_epoch(), latest(store.root)) == ([], 0, None)
    store.claim(Claimant(), FINGERPRINT)
    assert restored(store, tmp_path / "back") == (-1, {}, [])


def test_readers_take_the_highest_epoch_before_the_highest_step(store: Store, tmp_path: Path) -> None:
    first = store.claim(Claimant(), FINGERPRINT)
    publish(store, first, tmp_path, 30)
    second = store.claim(Claimant(), FINGERPRINT)
    publish(store, second, tmp_path, 20)
    assert [one.name for one in store.commits()] == ["000000020.e000002.tar", "000000030.e000001.tar"]
    newest = latest(store.root)
    assert newest is not None and newest.name == "000000020.e000002.tar"
    assert restored(store, tmp_path / "back")[0] == 20


def test_restore_falls_back_to_older_commit_when_newest_is_corrupt(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    older = publish(store, claim, tmp_path, 10)
    publish(store, claim, tmp_path, 20)
    flip(store.commits()[0].path, 5000)
    step, found, said = restored(store, tmp_path / "back")
    assert (step, found) == (10, picture(older))
    assert (
        len(said) == 1
        and "000000020.e000001.tar" in said[0]
        and "set aside as 000000020.e000001.tar.bad-e000001" in said[0]
    )
    assert [one.step for one in store.commits()] == [10]
    assert [path.name for path in store.set_aside()] == ["000000020.e000001.tar.bad-e000001"]


def test_a_withdrawn_commit_is_set_aside_by_its_owner_only(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant("host", "1.0", 0), FINGERPRINT)
    for step in (10, 20):
        publish(store, claim, tmp_path, step)
    assert store.withdraw(claim, 20) == "000000020.e000001.tar.bad-e000001"
    assert store.withdraw(claim, 20) == ""  # it went already
    assert restored(store, tmp_path / "to")[0] == 10
    assert [path.name for path in store.set_aside()] == ["000000020.e000001.tar.bad-e000001"]
    store.claim(Claimant("other", "2.0", 0), FINGERPRINT)
    with pytest.raises(Superseded):
        store.withdraw(claim, 10)


def test_a_reader_without_a_claim_leaves_a_bad_commit_where_it_is(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    publish(store, claim, tmp_path, 10)
    publish(store, claim, tmp_path, 20)
    flip(store.commits()[0].path, 5000)
    step, _, said = restored(Store(store.root), tmp_path / "back")
    assert step == 10 and "left where it is" in said[0]
    assert [one.step for one in store.commits()] == [20, 10]


def test_what_another_reader_found_bad_is_put_aside_only_where_another_commit_reads_well(
    store: Store, tmp_path: Path
) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    publish(store, claim, tmp_path, 10)
    publish(store, claim, tmp_path, 20)
    newest, older = store.commits()
    flip(older.path, 6000)
    assert store.put_aside(newest) is None
    flip(older.path, 6000)
    assert store.put_aside(newest) == f"{newest.name}.bad-e000001"
    assert store.put_aside(older) is None
    assert [one.name for one in store.commits()] == [older.name]


def test_when_no_commit_is_good_all_stay_and_nothing_is_taken_for_nothing(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    publish(store, claim, tmp_path, 10)
    publish(store, claim, tmp_path, 20)
    for commit in store.commits():
        flip(commit.path, 5000)
    with pytest.raises(
        NoGoodCommit, match=r"none of its 2 commits reads well on this machine \(000000020.*`segue verify`"
    ):
        restored(store, tmp_path / "back")
    assert ([one.step for one in store.commits()], store.set_aside()) == ([20, 10], [])
    assert list((tmp_path / "back").iterdir()) == []


def test_a_second_look_is_at_the_disk_and_not_at_memory(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    publish(store, claim, tmp_path, 10)

    class WrongInMemory(PosixFileSystem):
        wrong = True

        def forget(self, fd: int) -> None:
            super().forget(fd)
            self.wrong = False

        def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
            count = super().read_into(fd, buffer, offset)
            buffer[count // 2] ^= self.wrong
            return count

    assert restored(Store(store.root, fs=WrongInMemory()), tmp_path / "back")[0] == 10


def test_a_superseded_attempt_cannot_publish_prune_or_sweep(store: Store, tmp_path: Path) -> None:
    old = store.claim(Claimant(), FINGERPRINT)
    publish(store, old, tmp_path, 10)
    new = store.claim(Claimant(), FINGERPRINT)
    assert (new.epoch, store.owns(old), store.owns(new)) == (2, False, True)
    with pytest.raises(Superseded, match="epoch 1 is superseded: epoch 2 owns the run"):
        publish(store, old, tmp_path, 20)
    with pytest.raises(Superseded):
        store.prune(old, Retention())
    with pytest.raises(Superseded):
        store.sweep(old)


def test_epochs_go_on_from_the_commits_when_the_claims_are_lost(store: Store, tmp_path: Path) -> None:
    for _ in range(4):
        claim = store.claim(Claimant(), FINGERPRINT)
    publish(store, claim, tmp_path, 10)
    for path in (store.root / "epochs").iterdir():
        path.unlink()
    assert store.claim(Claimant(), FINGERPRINT).epoch == 5


def test_a_changed_fingerprint_is_refused_field_by_field_unless_accepted(store: Store) -> None:
    store.claim(Claimant(), FINGERPRINT)
    changed = {"recipe": "reference", "dataset": "sha256:2", "image": "new"}
    with pytest.raises(FingerprintChanged, match=r"dataset: was 'sha256:1', is now 'sha256:2'") as caught:
        store.claim(Claimant(), changed)
    assert "--accept-change dataset" in str(caught.value)
    assert store.current_epoch() == 1
    assert store.claim(Claimant(), changed, accept=["dataset"]).epoch == 2
    assert [dict(one) for one in store.records()[-1].accepted] == [
        {"epoch": 2, "field": "dataset", "before": "sha256:1", "now": "sha256:2"}
    ]
    assert store.claim(Claimant(), changed).epoch == 3
    with pytest.raises(FingerprintChanged, match="image: was 'new', is now absent"):
        store.claim(Claimant(), {"recipe": "reference", "dataset": "sha256:2"})


def test_every_deliberate_change_stays_recorded(store: Store) -> None:
    store.claim(Claimant(), FINGERPRINT)
    for recipe in ("openpi", "lerobot"):
        store.claim(Claimant(), {**FINGERPRINT, "recipe": recipe}, accept=["recipe"])
        store.claim(Claimant(), {**FINGERPRINT, "recipe": recipe})
    assert [(one["epoch"], one["before"], one["now"]) for one in store.records()[-1].accepted] == [
        (2, "reference", "openpi"),
        (4, "openpi", "lerobot"),
    ]


def test_run_json_keeps_the_first_fingerprint(store: Store) -> None:
    store.claim(Claimant(), FINGERPRINT)
    before = (store.root / "run.json").read_bytes()
    store.claim(Claimant(), {**FINGERPRINT, "recipe": "other"}, accept=["recipe"])
    assert (store.root / "run.json").read_bytes() == before


@pytest.mark.parametrize("left", ["", '{"format": 1, "fing', "[]", '{"format": 1, "fingerprint": null}'])
def test_a_damaged_run_json_is_not_taken_for_a_run_without_a_configuration(store: Store, left: str) -> None:
    store.claim(Claimant(), FINGERPRINT)
    claim, run_file = store.root / "epochs" / "000001.json", store.root / "run.json"
    run_file.write_text(left)
    assert store.claim(Claimant(), FINGERPRINT).epoch == 2  # the claims tell
    for path in (claim, store.root / "epochs" / "000002.json"):
        path.write_text("")
    with pytest.raises(StoreError, match=r"run\.json: it is damaged and no claim can be read"):
        store.claim(Claimant(), {**FINGERPRINT, "recipe": "other"})
    run_file.unlink()
    assert store.claim(Claimant(), {**FINGERPRINT, "recipe": "other"}).epoch == 3


def test_prune_keeps_newest_every_nth_and_best(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    for step in range(10, 80, 10):
        publish(store, claim, tmp_path, step, metrics={"loss": abs(step - 20)})
    rule = Retention(keep=2, every=30, best="loss")
    assert [one.step for one in store.prune(claim, rule, dry_run=True)] == [10, 40, 50]
    assert len(store.commits()) == 7
    assert [one.step for one in store.prune(claim, rule)] == [10, 40, 50]
    assert [one.step for one in store.commits()] == [70, 60, 30, 20]


def test_prune_keeps_as_many_as_it_is_told(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    for step in (10, 20, 30, 40, 50):
        publish(store, claim, tmp_path, step)
    assert [one.step for one in store.prune(claim, Retention(keep=4))] == [10]


def test_prune_never_goes_below_two_good_commits_and_does_not_count_bad_ones(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    for step in (10, 20, 30, 40):
        publish(store, claim, tmp_path, step)
    newest = store.commits()[0].path
    newest.write_bytes(newest.read_bytes()[:-512])
    assert [one.step for one in store.prune(claim, Retention(keep=0))] == [10]
    assert [one.step for one in store.commits()] == [40, 30, 20]


def test_sweep_removes_what_dead_attempts_left_and_old_claims(store: Store) -> None:
    for _ in range(5):
        claim = store.claim(Claimant(), FINGERPRINT)
    checkpoints = store.root / "checkpoints"
    for name in (
        ".000000010.e000005.abc.tmp",
        ".000000010.e000004.tar.pruned",
        ".000000010.e000006.abc.tmp",
        "note.txt",
    ):
        (checkpoints / name).write_bytes(b"x")
    (store.root / "epochs" / ".claim-000005-abc.tmp").write_bytes(b"x")
    store.sweep(claim)
    assert sorted(path.name for path in checkpoints.iterdir()) == [".000000010.e000006.abc.tmp", "note.txt"]
    assert sorted(path.name for path in (store.root / "epochs").iterdir()) == [
        "000003.json",
        "000004.json",
        "000005.json",
    ]


def test_verify_names_what_is_wrong_and_remembers_when_it_was_good(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    publish(store, claim, tmp_path, 10)
    commit = store.commits()[0]
    assert store.verify(commit) == []
    assert (
        store.commits()[0].verified is not None
        or store.fs.get_attribute(str(commit.path), "user.segue.verified") is None
    )
    flip(commit.path, 6000)
    assert len(store.verify(commit)) == 1


def test_publishing_the_same_step_again_keeps_the_commit(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    source = publish(store, claim, tmp_path, 10)
    before = store.commits()[0].path.stat().st_ino
    assert store.publish(claim, source, Metadata(10, "10")).step == 10
    assert store.commits()[0].path.stat().st_ino == before


def test_a_budget_that_does_not_suffice_says_exactly_what_lacks(store: Store, tmp_path: Path) -> None:
    tight = Store(store.root, budget=Budget(bytes=50_000, items=20))
    claim = tight.claim(Claimant(), FINGERPRINT)
    publish(tight, claim, tmp_path, 10)
    source = make_checkpoint(tmp_path / "large", 20, size=20_000)
    with pytest.raises(NoRoom, match=r"the run's budget lacks [0-9]+ bytes") as caught:
        tight.publish(claim, source, Metadata(20, "20"))
    assert caught.value.missing_bytes > 0 and caught.value.missing_items == 0
    assert [one.step for one in tight.commits()] == [10]
    assert [path.name for path in (store.root / "checkpoints").iterdir()] == ["000000010.e000001.tar"]


def test_a_tight_budget_prunes_what_retention_allows_first(store: Store, tmp_path: Path) -> None:
    one = Store(store.root, budget=Budget(items=7))
    claim = one.claim(Claimant(), FINGERPRINT)
    for step in (10, 20):
        publish(one, claim, tmp_path, step)
    tight = Store(store.root, budget=Budget(items=8))
    publish(tight, claim, tmp_path, 30)
    source = make_checkpoint(tmp_path / "next", 40)
    with pytest.raises(NoRoom, match=r"1 items: raise budget\.items to 9 or more .*segue prune"):
        tight.publish(claim, source, Metadata(40, "40"))
    assert tight.publish(claim, source, Metadata(40, "40"), retention=Retention()).step == 40
    assert [commit.step for commit in tight.commits()] == [40, 30, 20]


def test_no_prune_is_advised_that_would_be_refused(store: Store, tmp_path: Path) -> None:
    tight = Store(store.root, budget=Budget(items=7))
    claim = tight.claim(Claimant(), FINGERPRINT)
    for step in (10, 20):
        publish(tight, claim, tmp_path, step)
    source = make_checkpoint(tmp_path / "next", 30)
    with pytest.raises(NoRoom, match=r"raise budget\.items to 8 or more") as caught:
        tight.publish(claim, source, Metadata(30, "30"), retention=Retention())
    assert caught.value.own_budget and "segue prune" not in str(caught.value)


def test_a_missing_staging_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="does not exist"):
        Store(tmp_path / "staging" / "segue" / "run").claim(Claimant(), FINGERPRINT)
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_outlives_the_trainers_deletion(store: Store, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "trainer", 10)
    expected = picture(tmp_path / "trainer")
    snapshot(tmp_path / "trainer", ["10"], tmp_path / "snap")
    import shutil

    shutil.rmtree(tmp_path / "trainer")
    claim = store.claim(Claimant(), FINGERPRINT)
    store.publish(claim, tmp_path / "snap", Metadata(10, "10"))
    assert restored(store, tmp_path / "back")[1] == expected


def test_an_empty_snapshot_is_refused(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BadCheckpoint, match="empty"):
        store.publish(claim, tmp_path / "nothing", Metadata(10, "10"))


def test_what_a_newer_segue_wrote_is_refused_and_left_as_it_is(store: Store, tmp_path: Path) -> None:
    claim = store.claim(Claimant(), FINGERPRINT)
    publish(store, claim, tmp_path, 10)
    newer = newest_in_format_2(store, claim, tmp_path)
    before = {path: path.read_bytes() for path in store.root.rglob("*.tar")}
    (tmp_path / "back").mkdir()
    with pytest.raises(NewerFormat, match="use a newer segue"):
        store.restore(tmp_path / "back")
    assert [one.step for one in store.prune(claim, Retention())] == []
    assert {path: path.read_bytes() for path in store.root.rglob("*.tar")} == before and newer in before
    assert list((tmp_path / "back").iterdir()) == []
    (store.root / "epochs" / "000002.json").write_text('{"format": 2}')
    with pytest.raises(NewerFormat, match=r"000002\.json: written in format 2, this segue knows 1: use a newer segue"):
        store.claim(Claimant(), FINGERPRINT)
    assert store.current_epoch() == 2


def newest_in_format_2(store: Store, claim: Claim, place: Path) -> Path:
    """A commit of step 20 as a later version might write it: its manifest says format 2 and has keys of its own."""
    from agent.store import manifest

    before = manifest.FORMAT
    manifest.FORMAT = 2
    try:
        publish(store, claim, place, 20)
    finally:
        manifest.FORMAT = before
    return store.root / "checkpoints" / "000000020.e000001.tar"
