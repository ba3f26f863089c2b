"""What goes on beside the training: the W&B key and variables, kept logs, carried caches, Chirp."""

from __future__ import annotations

import gzip
import json
import os
import socket
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent.ads import Ad
from agent.carry import bring, mark, take
from agent.chirp import Chirp, requests
from agent.config import Wandb
from agent.keeping import Ledger, archive, attempts_kept, drop_oldest, keep, ledger_of, sweep
from agent.loop import Loop
from agent.place import Place
from agent.usage import parse_gpus, usage_below
from agent.wandb_run import environment, leave_key, offline_runs, reachable, run_id, take_key

WANDB = Wandb(
    "arm", "reacher-1a2b", entity="lab", group="reacher", tags=("a", "b"), name="reacher", key_file="wandb.key"
)


def place(scratch: Path, credentials: Path | None = None) -> Place:
    return Place(scratch, Ad(), Ad(), "m", "", "", 0, time.time(), False, credentials)


def test_the_key_file_is_read_and_removed(tmp_path: Path) -> None:
    (tmp_path / "wandb.key").write_text("abc\n")
    assert take_key(WANDB, place(tmp_path)) == "abc"
    assert not (tmp_path / "wandb.key").exists()
    assert take_key(WANDB, place(tmp_path)) is None


def test_a_key_file_that_is_not_there_or_cannot_go_is_no_failure(tmp_path: Path) -> None:
    assert take_key(WANDB, place(tmp_path)) is None
    (tmp_path / "wandb.key").mkdir()
    assert take_key(WANDB, place(tmp_path)) is None


def test_a_key_is_put_back_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "wandb.key"
    for old in (None, "of before"):
        if old is not None:
            path.write_text(old)
            path.chmod(0o644)
        leave_key(WANDB, place(tmp_path), "abc")
        assert path.stat().st_mode & 0o777 == 0o600
        assert take_key(WANDB, place(tmp_path)) == "abc" and not path.exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    path.symlink_to(elsewhere)
    leave_key(WANDB, place(tmp_path), "abc")
    assert elsewhere.read_text() == "untouched" and not path.is_symlink()


def test_the_credential_store_is_the_second_source(tmp_path: Path) -> None:
    (tmp_path / "wandb.use").write_text("from-store\n")
    assert take_key(WANDB, place(tmp_path, tmp_path)) == "from-store"
    (tmp_path / "wandb.use").write_text(json.dumps({"access_token": "as-json"}))
    assert take_key(WANDB, place(tmp_path, tmp_path)) == "as-json"


def test_one_id_group_and_name_for_all_segments(tmp_path: Path) -> None:
    told = environment(WANDB, "abc", run_id(WANDB, tmp_path), True, tmp_path)
    assert told["WANDB_RUN_ID"] == "reacher-1a2b"
    assert (told["WANDB_RESUME"], told["WANDB_MODE"], told["WANDB_TAGS"]) == ("allow", "online", "a,b")
    assert (told["WANDB_ENTITY"], told["WANDB_RUN_GROUP"], told["WANDB_NAME"]) == ("lab", "reacher", "reacher")


def test_without_network_or_key_it_is_offline(tmp_path: Path) -> None:
    assert environment(WANDB, "abc", "i", False, tmp_path)["WANDB_MODE"] == "offline"
    told = environment(WANDB, None, "i", True, tmp_path)
    assert told["WANDB_MODE"] == "offline"
    assert "WANDB_API_KEY" not in told


def test_a_trainers_own_id_in_the_checkpoint_is_honoured(tmp_path: Path) -> None:
    (tmp_path / "wandb_id.txt").write_text("x1y2\n")
    assert run_id(WANDB, tmp_path) == "x1y2"
    (tmp_path / "wandb_id.txt").write_text("no id at all\n")
    assert run_id(WANDB, tmp_path) == WANDB.id


def test_a_closed_port_is_not_reachable() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert not reachable({"WANDB_BASE_URL": f"http://127.0.0.1:{port}"})
        probe.listen()
        assert reachable({"WANDB_BASE_URL": f"http://127.0.0.1:{port}"})


def test_offline_files_travel_as_one_archive(tmp_path: Path) -> None:
    runs = []
    for number, directory in enumerate(("wandb-files", "lerobot")):
        run = tmp_path / directory / "wandb" / f"offline-run-20260101_00000{number}-x"
        run.mkdir(parents=True)
        (run / "run-x.wandb").write_bytes(b"data")
        runs.append(run)
    assert offline_runs(tmp_path) == runs  # LeRobot gives the client its own output directory
    assert archive(tmp_path / "store", "000003.tar", runs, "wandb", 1000) == 8
    (kept,) = (tmp_path / "store").iterdir()
    assert kept.name == "000003.tar"
    with tarfile.open(kept) as tar:
        assert sorted(name for name in tar.getnames() if name.endswith(".wandb")) == [
            f"wandb/{run.name}/run-x.wandb" for run in runs
        ]
    assert kept.stat().st_mode & 0o777 == 0o600  # the trainer may have printed its environment


def test_logs_are_kept_compressed_and_the_oldest_go(tmp_path: Path) -> None:
    source = tmp_path / "a.log"
    for epoch in range(1, 6):
        source.write_text(f"attempt {epoch}\n")
        keep(tmp_path / "logs", epoch, {"log": source, "jsonl": tmp_path / "absent"}, 3)
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [f"{epoch:06d}.log.gz" for epoch in (3, 4, 5)]
    assert gzip.decompress((tmp_path / "logs" / "000005.log.gz").read_bytes()) == b"attempt 5\n"


def test_a_long_log_keeps_beginning_and_end(tmp_path: Path) -> None:
    source = tmp_path / "a.log"
    source.write_bytes(b"first\n" + b"x" * (20 << 20) + b"\nlast\n")
    keep(tmp_path / "logs", 1, {"log": source}, 3)
    text = gzip.decompress((tmp_path / "logs" / "000001.log.gz").read_bytes())
    assert text.startswith(b"first\n") and text.endswith(b"\nlast\n") and b"bytes left out" in text


def test_kept_attempts_fit_the_item_budget() -> None:
    assert attempts_kept(1000) == 25
    assert attempts_kept(20) == 3
    assert attempts_kept(None) == 50


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    drop_oldest(tmp_path, 0)
    assert (tmp_path / "notes.txt").exists()


def test_the_ledger_tells_how_far_an_attempt_came(tmp_path: Path) -> None:
    ledger = tmp_path / "l"
    ledger.write_text('{"event":"sample","step":12}\n{"event":"end","step":15}\n')
    keep(tmp_path, 7, {"jsonl": ledger}, 3)
    assert ledger_of(tmp_path, 7) == Ledger(15, {"event": "end", "step": 15})
    assert ledger_of(tmp_path, 8) == Ledger()


@pytest.mark.parametrize("place", ["zlib", "checksum", "header", "end"])
def test_a_damaged_ledger_tells_nothing_and_harms_nothing(tmp_path: Path, place: str) -> None:
    source = tmp_path / "ledger"
    source.write_text(
        "".join(json.dumps({"event": "step", "step": step, "time": step / 7}) + "\n" for step in range(200))
    )
    keep(tmp_path / "logs", 7, {"jsonl": source}, 5)
    path = tmp_path / "logs" / "000007.jsonl.gz"
    data = bytearray(path.read_bytes())
    if place == "end":
        del data[len(data) // 2 :]
    else:
        first, last = {"zlib": (12, len(data) - 8), "checksum": (len(data) - 8, len(data)), "header": (0, 10)}[place]
        data[first:last] = bytes(byte ^ 0xFF for byte in data[first:last])
    path.write_bytes(data)
    assert ledger_of(tmp_path / "logs", 7) == Ledger()


def test_a_store_that_is_away_is_not_made_anew_and_half_kept_files_go(tmp_path: Path) -> None:
    source = tmp_path / "a.log"
    source.write_text("said\n")
    with pytest.raises(FileNotFoundError):
        keep(tmp_path / "away" / "logs", 1, {"log": source}, 3)
    assert not (tmp_path / "away").exists()
    names = ("logs/.000002.log.gz.tmp", "wandb/.000001.tar.tmp", "carry/.carry.000002.tmp", "logs/.000003.log.gz.tmp")
    for name in names:
        path = tmp_path / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert len(sweep(tmp_path / "store", 3)) == 3
    assert [path.name for path in (tmp_path / "store").rglob("*.tmp")] == [".000003.log.gz.tmp"]


def test_caches_travel_and_damaged_ones_do_not(tmp_path: Path) -> None:
    scratch, other, store = tmp_path / "a", tmp_path / "b", tmp_path / "store"
    (scratch / ".cache" / "jax").mkdir(parents=True)
    (scratch / ".cache" / "jax" / "entry").write_bytes(b"compiled")
    before = mark(scratch, [".cache/jax"])
    name = take(store, scratch, [".cache/jax"])
    assert bring(store, other) == 1
    assert (other / ".cache" / "jax" / "entry").read_bytes() == b"compiled"
    (scratch / ".cache" / "jax" / "second").write_bytes(b"more")
    assert mark(scratch, [".cache/jax"]) != before
    take(store, scratch, [".cache/jax"])
    newer = [path for path in store.iterdir() if path.name != name]
    assert len(list(store.iterdir())) == 1
    newer[0].write_bytes(b"damaged")
    assert bring(store, tmp_path / "c") == 0


def test_what_vanishes_while_it_is_kept_or_carried_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "cache" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "cache" / name).write_bytes(b"1234")
    add = tarfile.TarFile.add

    def late(tar: tarfile.TarFile, name: Path, *more: Any, **options: Any) -> None:
        (tmp_path / "cache" / "b").unlink(missing_ok=True)
        add(tar, name, *more, **options)

    monkeypatch.setattr(tarfile.TarFile, "add", late)
    assert archive(tmp_path / "wandb", "000003.tar", [tmp_path / "cache"], "", 1000) == 12
    with tarfile.open(tmp_path / "wandb" / "000003.tar") as tar:
        assert tar.getnames() == ["cache", "cache/a", "cache/c"]
    (tmp_path / "cache" / "b").touch()
    take(tmp_path / "store", tmp_path, ["cache"])
    assert bring(tmp_path / "store", tmp_path / "other") == 2


def test_nothing_outside_scratch_is_carried(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "f").touch()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert take(tmp_path / "store", scratch, ["../outside"]) == ""


def test_chirp_speaks_the_starters_protocol(tmp_path: Path) -> None:
    """A listener that answers as a starter does: the cookie first, then one line an attribute."""
    heard: list[bytes] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(4096):
                heard.append(data)
                connection.sendall(b"0\n")

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        config = tmp_path / "chirp"
        config.write_text(f"127.0.0.1 {server.getsockname()[1]} cookie-1\n")
        loop = Loop()
        try:
            chirp = Chirp(loop, config)
            chirp.send({"ChirpStep": 12, "ChirpLastCommit": "a b", "ChirpEta": None})
            assert loop.run_until(lambda: chirp.sent == 1, time.monotonic() + 20)
        finally:
            loop.close()
        thread.join()
    assert b"".join(heard).decode() == (
        'cookie cookie-1\nset_job_attr_delayed ChirpStep 12\nset_job_attr_delayed ChirpLastCommit "a\\ b"\nset_job_attr_delayed ChirpEta undefined\n'
    )


@pytest.mark.parametrize("said", ["fe80::1%nowhere 4000 c", "127.0.0.1 port c", "127.0.0.1 70000 c", "a..b 4000 c"])
def test_a_chirp_configuration_that_makes_no_sense_costs_nothing(said: str, tmp_path: Path) -> None:
    (tmp_path / "chirp").write_text(said)
    loop = Loop()
    try:
        chirp = Chirp(loop, tmp_path / "chirp")
        chirp.send({"ChirpStep": 1})
        chirp.send({"ChirpStep": 2})
        loop.run_until(lambda: False, time.monotonic() + 0.01)
        assert chirp.sent == 0
    finally:
        loop.close()


def test_no_starter_costs_nothing(tmp_path: Path) -> None:
    loop = Loop()
    try:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            (tmp_path / "chirp").write_text(f"127.0.0.1 {closed.getsockname()[1]} c\n")
            Chirp(loop, tmp_path / "absent").send({"ChirpStep": 1})
            chirp = Chirp(loop, tmp_path / "chirp")
            chirp.send({"ChirpStep": 1})
            loop.run_until(lambda: False, time.monotonic() + 0.05)
            assert chirp.sent == 0
    finally:
        loop.close()


def test_quotes_in_values_cannot_end_an_expression() -> None:
    assert requests("c", {"ChirpX": 'a"b'})[1] == b'set_job_attr_delayed ChirpX "a\\\\"b"\n'


@pytest.mark.forks
def test_usage_of_our_own_children_is_seen() -> None:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        used = usage_below(os.getpid())
        assert used.processes >= 1 and used.resident > 0
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_what_a_gpu_does_not_know_is_left_out() -> None:
    assert parse_gpus("87, 1000, 143771, 55, [N/A]\n") == [
        {"percent": 87.0, "memory_mb": 1000.0, "memory_total_mb": 143771.0, "temperature_c": 55.0}
    ]
