"""Input archives: the same content has the same bytes everywhere, and unpacking believes nothing before the digest fits."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import BadInput, SegueError
from agent.pack import (
    DigestMismatch,
    archive_name,
    archive_size,
    digest_of,
    members,
    pack,
    unpack,
    write_archive,
)
from tests.agent.support import ROOT

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def packed(source: Path) -> tuple[bytes, str]:
    out = io.BytesIO()
    done = pack(members(source), out)
    assert hashlib.sha256(out.getvalue()).hexdigest() == done.sha256
    return out.getvalue(), done.sha256


def shape(directory: Path) -> dict[str, object]:
    """Everything below: bytes and executable bit of files, targets of links, names of directories."""
    found: dict[str, object] = {}
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = "directory"
        else:
            found[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


NAME = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: text not in (".", "..", ".git", "__pycache__", ".DS_Store") and len(os.fsencode(text)) < 200
)
TREE = st.dictionaries(
    st.lists(NAME, min_size=1, max_size=3).map(tuple), st.tuples(st.binary(max_size=2000), st.booleans()), max_size=6
)


@QUICK
@given(tree=TREE, empty=NAME)
def test_any_tree_comes_back_as_it_was(
    tmp_path: Path, tree: dict[tuple[str, ...], tuple[bytes, bool]], empty: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for path in (source, target):
        shutil.rmtree(path, ignore_errors=True)
    source.mkdir()
    (source / "always").write_bytes(b"one file")
    for parts, (data, executable) in tree.items():
        path = source.joinpath(*parts)
        if any(above.is_file() for above in path.parents) or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755 if executable else 0o644)
    if not (source / empty).exists():
        (source / empty).mkdir()
    data, sha256 = packed(source)
    assert archive_size(members(source)) == len(data)
    (tmp_path / "a.tar").write_bytes(data)
    files = unpack(tmp_path / "a.tar", target, sha256)
    assert shape(target) == shape(source)
    assert files == sum(isinstance(value, tuple) for value in shape(source).values())


def test_names_that_are_no_text_come_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    name = os.fsdecode(b"caf\xe9-\xff")
    (source / name).write_bytes(b"x")
    (source / ("long-" + "ü" * 100)).write_bytes(b"y")
    data, sha256 = packed(source)
    assert archive_size(members(source)) == len(data)
    (tmp_path / "a.tar").write_bytes(data)
    unpack(tmp_path / "a.tar", tmp_path / "target", sha256)
    assert shape(tmp_path / "target") == shape(source)


def test_the_digest_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for number, (root, names) in enumerate(((first, "abc"), (second, "cba"))):
        (root / "below").mkdir(parents=True)
        for name in names:
            path = root / "below" / name
            path.write_text(name)
            path.chmod(0o600 if number else 0o664)
            os.utime(path, (number, number))
    assert packed(first) == packed(second)
    (second / "below" / "a").chmod(0o755)
    assert packed(first)[1] != packed(second)[1]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_the_digest_does_not_depend_on_the_locale(tmp_path: Path, locale: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "grün").write_bytes(b"x")
    (source / os.fsdecode(b"\xff")).write_bytes(b"y")
    code = "import sys, agent.pack as p; from pathlib import Path; print(p.pack(p.members(Path(sys.argv[1]))).sha256)"
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    root = Path(__file__).parents[2]
    told = subprocess.run(
        [sys.executable, "-c", code, str(source)], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == packed(source)[1]


def test_the_format_is_fixed(tmp_path: Path) -> None:
    """A new digest for an old dataset would upload it again everywhere: change this number knowingly."""
    (tmp_path / "d" / "below").mkdir(parents=True)
    (tmp_path / "d" / "a").write_bytes(b"hello\n")
    (tmp_path / "d" / "run").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "d" / "run").chmod(0o755)
    (tmp_path / "d" / "link").symlink_to("a")
    assert packed(tmp_path / "d")[1] == "fc1b05c7cce7150d29ff67ffa586f4fa180975fe6cb991c2daad860cf4f7a25d"


def test_links_inside_are_kept_and_others_are_followed(tmp_path: Path) -> None:
    source, outside = tmp_path / "source", tmp_path / "outside"
    (source / "blobs").mkdir(parents=True)
    (source / "snapshot").mkdir()
    outside.mkdir()
    (outside / "weights").write_bytes(b"far")
    (source / "blobs" / "0123").write_bytes(b"near")
    (source / "inside").symlink_to("blobs/0123")
    (source / "snapshot" / "model").symlink_to("../blobs/0123")
    (source / "far").symlink_to(outside)
    data, sha256 = packed(source)
    (tmp_path / "a.tar").write_bytes(data)
    unpack(tmp_path / "a.tar", tmp_path / "target", sha256)
    assert shape(tmp_path / "target") == {
        "blobs": "directory",
        "blobs/0123": (b"near", False),
        "inside": "blobs/0123",
        "snapshot": "directory",
        "snapshot/model": (b"near", False),
        "far": "directory",
        "far/weights": (b"far", False),
    }


def test_what_cannot_be_packed_is_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with pytest.raises(BadInput, match="source: no such file"):
        members(source)
    source.mkdir()
    with pytest.raises(BadInput, match="holds no files"):
        members(source)
    (source / "a").write_text("x")
    (source / "broken").symlink_to("nowhere")
    with pytest.raises(BadInput, match="broken: is a link to nowhere"):
        members(source)
    (source / "broken").unlink()
    (source / "round").symlink_to("..")
    with pytest.raises(BadInput, match="a directory above itself"):
        members(source / "..")
    (source / "round").unlink()
    os.mkfifo(source / "pipe")
    with pytest.raises(BadInput, match="pipe: is neither"):
        members(source)


def test_a_file_is_packed_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"t")
    data, sha256 = packed(tmp_path / "tokenizer.model")
    (tmp_path / "a.tar").write_bytes(data)
    unpack(tmp_path / "a.tar", tmp_path / "target", sha256)
    assert shape(tmp_path / "target") == {"tokenizer.model": (b"t", False)}


@pytest.mark.parametrize("size", [0, 9, 11])
def test_a_source_that_changes_meanwhile_leaves_nothing(tmp_path: Path, size: int) -> None:
    path = tmp_path / "source" / "a"
    path.parent.mkdir()
    path.write_bytes(b"0123456789")
    entries = members(path.parent)
    path.write_bytes(b"x" * size)
    with pytest.raises(SegueError, match="changes while it is packed"):
        write_archive(entries, tmp_path / "out", lambda packed: "a.tar")
    assert list((tmp_path / "out").iterdir()) == []
    path.unlink()
    with pytest.raises(SegueError, match="cannot be packed: No such file"):
        write_archive(entries, tmp_path / "out", lambda packed: "a.tar")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_archive_is_named_by_its_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    path, done = write_archive(
        members(tmp_path / "a"), tmp_path / "out", lambda packed: archive_name("n", packed.sha256)
    )
    assert path.name == f"n-{done.sha256[:16]}.tar"
    assert digest_of(path).sha256 == done.sha256 and path.stat().st_size == done.bytes
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def hostile(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> str:
    """An archive with a right digest and wrong members."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **pax: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.pax_headers = kind, link, pax
    return made


HOSTILE = {
    "absolute": [(info("/etc/x"), b"1")],
    "up": [(info("../x"), b"1")],
    "up inside": [(info("a/../../x"), b"1")],
    "link out": [(info("l", tarfile.SYMTYPE, "../outside"), b"")],
    "absolute link": [(info("l", tarfile.SYMTYPE, "/etc"), b"")],
    "through a link": [(info("l", tarfile.SYMTYPE, "d"), b""), (info("d", tarfile.DIRTYPE), b""), (info("l/x"), b"1")],
    "over a link": [(info("l", tarfile.SYMTYPE, "victim"), b""), (info("l"), b"1")],
    "twice": [(info("a"), b"1"), (info("a"), b"2")],
    "hard link": [(info("a"), b"1"), (info("h", tarfile.LNKTYPE, "a"), b"")],
    "device": [(info("dev", tarfile.CHRTYPE), b"")],
    "pipe": [(info("pipe", tarfile.FIFOTYPE), b"")],
    "nul in a name": [(info("a", path="a\0b"), b"1")],
}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_puts_nothing_anywhere(tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    place = tmp_path / "place"
    place.mkdir()
    sha256 = hostile(tmp_path / "a.tar", *entries)
    with pytest.raises(SegueError):
        unpack(tmp_path / "a.tar", place / "target", sha256)
    assert list(place.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "place"]


@QUICK
@given(at=st.integers(0, 10**9), flip=st.integers(1, 255), cut=st.booleans())
def test_no_damage_gets_through(tmp_path: Path, at: int, flip: int, cut: bool) -> None:
    source, target, archive = tmp_path / "source", tmp_path / "target", tmp_path / "a.tar"
    if not source.exists():
        (source / "below").mkdir(parents=True)
        (source / "below" / ("ü" * 120)).write_bytes(os.urandom(3000))
        (source / "b").write_bytes(b"x" * 700)
    data, sha256 = packed(source)
    bad = bytearray(data)
    if cut:
        del bad[at % len(bad) :]
    else:
        bad[at % len(bad)] ^= flip
    archive.write_bytes(bad)
    with pytest.raises(SegueError):
        unpack(archive, target, sha256)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "source"]


def test_damage_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    data, _ = packed(tmp_path / "a")
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DigestMismatch, match="is damaged; remove it and run `segue stage` again"):
        unpack(tmp_path / "a.tar", tmp_path / "target", "0" * 64)


def test_unpacking_replaces_what_was_there_and_keeps_the_rest(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "d").mkdir(parents=True)
    (source / "d" / "a").write_text("new")
    (source / "was-directory").write_text("file")
    (target / "d").mkdir(parents=True)
    (target / "d" / "a").write_text("old")
    (target / "d" / "kept").write_text("kept")
    (target / "was-directory" / "x").mkdir(parents=True)
    data, sha256 = packed(source)
    (tmp_path / "a.tar").write_bytes(data)
    unpack(tmp_path / "a.tar", target, sha256)
    assert shape(target) == {
        "d": "directory",
        "d/a": (b"new", False),
        "d/kept": (b"kept", False),
        "was-directory": (b"file", False),
    }


def test_what_a_killed_one_left_goes_with_the_next_and_what_is_under_way_stays(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "inputs"
    source.mkdir()
    (source / "data").write_bytes(b"x" * 10_000)
    program = (
        "import os, pathlib, signal, sys\n"
        "from agent.pack import members, write_archive\n"
        "source, place = map(pathlib.Path, sys.argv[1:])\n"
        "write_archive(members(source), place, lambda _: 'a.tar', lambda _: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(source), str(place)], cwd=ROOT)
    assert killed.returncode == -9
    (left,) = place.glob(".packing-*.tmp")
    # young: its lock may be about to be taken
    write_archive(members(source), place, lambda _: "a.tar")
    assert left.exists()
    os.utime(left, (0, 0))
    # under way: locked, however old it looks
    with left.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_archive(members(source), place, lambda _: "a.tar")
        assert left.exists()
    write_archive(members(source), place, lambda _: "a.tar")
    assert [path.name for path in place.iterdir()] == ["a.tar"]
