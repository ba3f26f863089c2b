"""Any tree comes back identical: names in any encoding, modes, links, empty directories, holes."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.store import Claimant, Metadata, Store, snapshot
from agent.store.budget import Usage, usage
from agent.store.fs import PosixFileSystem, remove_tree
from tests.store.trees import picture

NAMES = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.sampled_from(
        [b"a", b"b", b"params", b"\xff\xfe", "ü é".encode(), b"n" * 120, b" ", b"-", b"line\nfeed", b".hidden"]
    ),
).filter(lambda name: name not in (b".", b"..", b"segue-manifest.json") and b"/" not in name and b"\0" not in name)
CONTENTS = st.one_of(
    st.binary(max_size=1200),
    st.integers(0, 3_000_000).map(bytes),
    st.sampled_from([b"segue-manifest.json\0" * 60, b"\0" * 512 + b"x"]),
)
FILES = st.tuples(CONTENTS, st.sampled_from([0o644, 0o600, 0o755, 0o444, 0o4711]))
TREES = st.recursive(
    st.dictionaries(NAMES, FILES, max_size=4),
    lambda below: st.dictionaries(NAMES, st.one_of(FILES, below, st.just("link")), max_size=4),
    max_leaves=12,
)


def build(where: bytes, tree: dict[bytes, object]) -> None:
    others = [name for name, what in tree.items() if what != "link"]
    for name, what in tree.items():
        path = where + b"/" + name
        if isinstance(what, dict):
            os.mkdir(path)  # noqa: PTH102
            build(path, what)
        elif what == "link":
            os.symlink(others[0] if others else b"nowhere", path)  # noqa: PTH211
        else:
            data, mode = what  # type: ignore[misc]
            with open(path, "wb") as file:  # noqa: PTH123
                file.write(data)
            os.chmod(path, mode)  # noqa: PTH101


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(TREES)
def test_any_tree_comes_back_identical(tree: dict[bytes, object]) -> None:
    place = Path(tempfile.mkdtemp(prefix="segue-round-"))
    try:
        (place / "staging").mkdir()
        (place / "trainer" / "7").mkdir(parents=True)
        build(os.fsencode(place / "trainer" / "7"), tree)
        expected = picture(place / "trainer")
        snapshot(place / "trainer", ["7"], place / "snapshot")
        assert picture(place / "snapshot") == expected
        store = Store(place / "staging" / "segue" / "run")
        commit = store.publish(store.claim(Claimant(), {}), place / "snapshot", Metadata(7, "7"))
        assert store.verify(commit) == []
        (place / "back").mkdir()
        assert store.restore(place / "back") is not None
        assert picture(place / "back") == expected
        with tarfile.open(commit.path, encoding="utf-8", errors="surrogateescape") as archive:
            names = {os.fsencode(name.rstrip("/")) for name in archive.getnames()}
        assert names == {*expected, b"segue-manifest.json"}
    finally:
        shutil.rmtree(place)


def test_a_hole_stays_a_hole(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "sparse").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    store = Store(tmp_path / "staging" / "segue" / "run")
    store.publish(store.claim(Claimant(), {}), tmp_path / "source", Metadata(1, "1"))
    (tmp_path / "back").mkdir()
    store.restore(tmp_path / "back")
    found = (tmp_path / "back" / "sparse").stat()
    assert found.st_size == (64 << 20) + 3
    assert found.st_blocks * 512 < 4 << 20


def test_a_very_deep_tree_comes_back(tmp_path: Path) -> None:
    """Deeper than Python's stack: neither a snapshot nor its removal nor a walk for the budget may end in a traceback."""
    deepest = "/".join("d" * 1200)
    try:
        path = f"{tmp_path}/t"
        for name in ["", *deepest.split("/")]:
            path = f"{path}/{name}".rstrip("/")
            os.mkdir(path)  # noqa: PTH102
        Path(path, "weights").write_bytes(b"deep")
        (tmp_path / "staging").mkdir()
        store = Store(tmp_path / "staging" / "segue" / "run")
        snapshot(tmp_path / "t", ["d"], tmp_path / "snap")
        store.publish(store.claim(Claimant(), {}), tmp_path / "snap", Metadata(1, "1"))
        (tmp_path / "back").mkdir()
        assert store.restore(tmp_path / "back") is not None
        assert Path(tmp_path / "back", deepest, "weights").read_bytes() == b"deep"
        assert usage(store.fs, str(tmp_path / "back")) == Usage(4, 1202)
    finally:
        for name in ("t", "snap", "back"):
            remove_tree(PosixFileSystem(), str(tmp_path / name))
    assert [one.name for one in tmp_path.iterdir()] == ["staging"]
