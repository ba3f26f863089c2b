"""`segue stage` to a real sshd: what is sent, what is not, and what stands under a final name."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.shipping.conftest import Run
from tests.shipping.server import HOST


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def test_an_input_is_uploaded_verified_and_recorded(run: Run) -> None:
    report = run.json("stage")
    (one,) = report["inputs"]
    assert (one["action"], one["verified"]) == ("uploaded", "SHA-256 there")
    assert names(run.inputs) == [one["archive"]]
    assert sha256(run.inputs / one["archive"]) == one["sha256"]
    assert one["archive"].startswith("dataset-" + one["sha256"][:16])
    assert report["place"] == f"{run.server.user}@{HOST}:{run.staging}"
    assert run.record()["dataset"]["staged"].endswith(f"_inputs/{one['archive']}")
    assert names(run.toml.parent) == ["data", "run.staged.json", "run.toml"]


def test_what_is_there_is_verified_and_not_sent_again(run: Run) -> None:
    first = run.json("stage")["inputs"][0]
    before = (run.inputs / first["archive"]).stat().st_ino
    again = run.json("stage")["inputs"][0]
    assert (again["action"], again["verified"]) == ("there", "size and SHA-256 there")
    assert (run.inputs / first["archive"]).stat().st_ino == before


def test_what_another_machine_staged_is_not_sent_again(run: Run) -> None:
    first = run.json("stage")["inputs"][0]
    run.toml.with_name("run.staged.json").unlink()
    assert run.json("stage")["inputs"][0]["action"] == "there"
    assert run.record()["dataset"]["archive"] == first["archive"]


def test_new_content_gets_a_new_name_and_the_old_one_is_told(run: Run) -> None:
    first = run.json("stage")["inputs"][0]
    (run.toml.parent / "data" / "episode.bin").write_bytes(b"other")
    report = run.json("stage")
    assert report["inputs"][0]["action"] == "uploaded"
    assert report["others"] == [{"archive": first["archive"], "bytes": first["bytes"]}]


def test_assets_and_code_go_as_archives_of_their_own(run: Run) -> None:
    here = run.toml.parent
    (here / "tokenizer.model").write_bytes(b"t" * 1000)
    (here / "app").mkdir()
    (here / "app" / "train.py").write_text("print()\n")
    run.write(
        code='"app"',
        data='dataset = "data"\nassets = [{source = "tokenizer.model", target = ".cache/openpi/tokenizer.model"}]',
    )
    report = run.json("stage")
    assert [one["name"] for one in report["inputs"]] == ["dataset", "tokenizer.model", "code"]
    assert len(names(run.inputs)) == 3
    assert [one["name"] for one in run.json("stage", "--no-code")["inputs"]] == ["dataset", "tokenizer.model"]


def test_a_dry_run_sends_nothing_and_records_nothing(run: Run) -> None:
    one = run.json("stage", "--dry-run")["inputs"][0]
    assert one["action"] == "would upload"
    assert names(run.staging) == []
    assert not run.toml.with_name("run.staged.json").exists()
    assert run.json("stage")["inputs"][0]["archive"] == one["archive"]
    assert run.json("stage", "--dry-run")["inputs"][0]["action"] == "there"


def begin(run: Run, *words: str) -> subprocess.Popen[str]:
    """`segue` as a process of its own."""
    command = [sys.executable, "-m", "cli.main", words[0], str(run.toml), *words[1:]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(size: int, find: Callable[[], Path | None], process: subprocess.Popen[str]) -> Path:
    """Until a file has so many bytes."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        path = find()
        if path is not None and path.stat().st_size >= size:
            return path
        time.sleep(0.02)
    raise AssertionError(f"no partial file appeared: {process.communicate()}")


def kill_rsync(process: subprocess.Popen[str]) -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.name() == "rsync":
            child.kill()


def test_a_broken_upload_goes_on_where_it_broke(run: Run, slow: Callable[[], None]) -> None:
    # given an upload whose rsync is killed in the middle
    (run.toml.parent / "data" / "episode.bin").write_bytes(os.urandom(4_000_000))
    with begin(run, "stage") as process:
        partial = wait_for(
            500_000,
            lambda: next(iter(run.inputs.glob(".*.partial")) if run.inputs.exists() else iter(()), None),
            process,
        )
        kill_rsync(process)
        _, said = process.communicate(timeout=30)
    # then a sentence says so, nothing has a final name, and nothing is left here
    assert process.returncode == 1
    assert "interrupted" in said and "goes on from there" in said
    assert names(run.inputs) == [partial.name]
    assert names(run.toml.parent) == ["data", "run.toml"]
    # when it is run again
    arrived = partial.stat().st_size
    slow()
    one = run.json("stage")["inputs"][0]
    # then only the rest is sent
    assert (one["action"], one["from_bytes"]) == ("uploaded", arrived)
    assert names(run.inputs) == [one["archive"]]
    assert sha256(run.inputs / one["archive"]) == one["sha256"]


def quota(run: Run, used: int, limit: int) -> str:
    head = "Path Disk_Used(GB) Disk_Limit(GB) Files_Used File_Limit"
    return f"printf '{head}\\n{run.staging} {used / 1e9:.9f} {limit / 1e9:.9f} 5 1000\\n'"


def test_what_arrived_of_a_broken_upload_needs_no_room_again(run: Run) -> None:
    # given a quota that holds the archive once, and most of the archive there under the name of an upload
    archive = run.inputs / run.json("stage")["inputs"][0]["archive"]
    size, arrived = archive.stat().st_size, archive.stat().st_size - 20_000
    os.truncate(archive, arrived)
    partial = archive.rename(archive.with_name(f".{archive.name}.partial"))
    run.toml.with_name("run.staged.json").unlink()
    with run.server.replaced("get_quotas", quota(run, arrived, size)):
        # then the rest of it has room, but another content has not, and what takes it is named
        assert run.json("stage", "--dry-run")["inputs"][0]["from_bytes"] == arrived
        (run.toml.parent / "data" / "more").write_text("x")
        said = run.segue("stage", expect=1)
    assert f"remove what is not needed any more (in segue/_inputs this run does not use {partial.name} (" in said


def test_an_archive_damaged_there_is_replaced(run: Run) -> None:
    one = run.json("stage")["inputs"][0]
    path = run.inputs / one["archive"]
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    again = run.json("stage")["inputs"][0]
    assert again["action"] == "uploaded"
    assert "damaged" in again["note"]
    assert sha256(path) == one["sha256"]


def test_a_partial_file_of_something_else_is_sent_anew(run: Run) -> None:
    one = run.json("stage")["inputs"][0]
    path = run.inputs / one["archive"]
    path.unlink()
    (run.inputs / f".{one['archive']}.partial").write_bytes(os.urandom(one["bytes"]))
    assert run.json("stage")["inputs"][0]["action"] == "uploaded"
    assert names(run.inputs) == [one["archive"]]
    assert sha256(path) == one["sha256"]


def test_a_digest_that_differs_there_leaves_nothing_under_a_final_name(run: Run) -> None:
    with run.server.replaced("sha256sum", "echo 0000000000000000000000000000000000000000000000000000000000000000"):
        said = run.segue("stage", expect=1)
    assert "another SHA-256" in said
    assert names(run.inputs) == []
    assert not run.toml.with_name("run.staged.json").exists()


def test_without_sha256sum_there_size_and_rsync_have_to_do(run: Run) -> None:
    with run.server.replaced("sha256sum", None):
        assert run.json("stage")["inputs"][0]["verified"] == "size and rsync's checksum"
        assert run.json("stage")["inputs"][0]["action"] == "there"


@pytest.mark.parametrize(
    ("gigabytes", "items", "says"), [("99.99999", "10", "10.0 kB"), ("1", "1000", "0 items")], ids=["bytes", "items"]
)
def test_a_quota_too_small_is_said_before_anything_is_sent(run: Run, gigabytes: str, items: str, says: str) -> None:
    table = f"Path Disk_Used(GB) Disk_Limit(GB) Files_Used File_Limit\\n{run.staging} {gigabytes} 100 {items} 1000"
    with run.server.replaced("get_quotas", f"printf '{table}\\n'"):
        said = run.segue("stage", expect=1)
    assert "get_quotas" in said and says in said and "nothing was uploaded" in said
    assert names(run.staging) == []


def test_the_budget_of_the_run_counts_where_no_quota_is_known(run: Run) -> None:
    run.write(budget="gb = 0.00005")
    said = run.segue("stage", expect=1)
    assert "[budget] leaves 50.0 kB" in said


def test_the_sites_default_quota_counts_all_of_staging(run: Run) -> None:
    for number in range(1000):
        (run.staging / str(number)).touch()
    assert "the site's default quota leaves" in run.segue("stage", expect=1)


def test_a_source_that_is_elsewhere_but_staged_is_recognised(run: Run) -> None:
    one = run.json("stage")["inputs"][0]
    (run.toml.parent / "data").rename(run.toml.parent / "gone")
    again = run.json("stage")["inputs"][0]
    assert again["action"] == "there"
    assert "not on this machine" in again["note"]
    (run.inputs / one["archive"]).unlink()
    assert "run `segue stage` where it is" in run.segue("stage", expect=2)
    run.toml.with_name("run.staged.json").unlink()
    assert "is not on this machine" in run.segue("stage", expect=2)


def test_a_full_disk_there_is_said(run: Run) -> None:
    if run.server.small is None:
        pytest.skip("no file system of its own without namespaces")
    run.write(staging=f'"{run.server.small}"')
    (run.toml.parent / "data" / "episode.bin").write_bytes(os.urandom(3_000_000))
    # Its df would tell before; a quota that nobody counts would not.
    with run.server.replaced("df", ":"):
        said = run.segue("stage", expect=1)
    assert "disk is full" in said
    assert "the file system leaves" in run.segue("stage", expect=1)


def test_two_at_once_in_one_directory_are_refused(run: Run, slow: Callable[[], None]) -> None:
    (run.toml.parent / "data" / "episode.bin").write_bytes(os.urandom(2_000_000))
    lock = run.toml.parent / ".segue-stage" / "lock"
    with begin(run, "stage") as process:
        wait_for(0, lambda: lock if lock.exists() else None, process)
        assert "another `segue stage`" in run.segue("stage", expect=1)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_what_a_killed_one_left_is_removed(run: Run) -> None:
    left = run.toml.parent / ".segue-stage" / ".packing-1-2.tmp"
    left.parent.mkdir()
    left.write_bytes(b"x")
    assert run.json("stage")["inputs"][0]["action"] == "uploaded"
    assert names(run.toml.parent) == ["data", "run.staged.json", "run.toml"]


def test_archives_are_packed_where_there_is_room(run: Run, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    run.segue("stage", "--temporary", str(elsewhere))
    assert names(elsewhere) == []
    (run.toml.parent / "data" / "episode.bin").write_bytes(b"new")
    assert "--temporary" in run.segue("stage", "--temporary", "/proc/nowhere", expect=1)


def test_an_archive_that_no_job_could_be_given_is_not_sent(run: Run) -> None:
    from importlib import resources

    text = (
        (resources.files("dagman") / "sites" / "chtc.toml").read_text().replace("100_000_000_000\nurl", "100_000\nurl")
    )
    (run.toml.parent / "small.toml").write_text(text.replace("most_bytes = 30_000_000_000", "most_bytes = 50_000"))
    run.write(site='"small.toml"')
    assert "split it into several assets" in run.segue("stage", expect=2)
    assert names(run.staging) == []


def test_the_quota_of_cephfs_goes_before_all_others(run: Run) -> None:
    # given a host whose file system tells of a quota by extended attributes, as CephFS does
    told = {"quota.max_bytes": "1000000", "quota.max_files": "0", "dir.rbytes": "950000", "dir.rentries": "7"}
    cases = "\n".join(f'*"ceph.{key} {run.staging}") printf {value} ;;' for key, value in told.items())
    getfattr = f'case "$*" in\n{cases}\n*) exit 1 ;;\nesac'
    with run.server.replaced("getfattr", getfattr), run.server.replaced("get_quotas", f"echo {run.staging} 0 100 0 9"):
        said = run.segue("stage", expect=1)
    assert f"the quota of {run.staging} leaves 50.0 kB" in said
