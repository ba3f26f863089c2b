"""Five thousand damaged archives, of every class of byte: none may be restored as good, none may write outside the destination."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from agent.store import BadArchive, Claimant, Metadata, Store
from agent.store.archive import Entry, Layout
from agent.store.copying import Pace
from agent.store.fs import PosixFileSystem, remove_tree
from agent.store.manifest import Manifest, read_manifest
from agent.store.names import Commit
from agent.store.restore import check_commit, unpack
from tests.store.trees import make_checkpoint, picture

CLASSES = ("header", "data", "padding", "manifest", "end")
CASES = 1000


class OneFile(PosixFileSystem):
    """The real disk, but the commit's bytes come from memory: five thousand damages without five thousand files."""

    data = b""

    def open(self, path: str) -> int:
        return -1

    def close(self, fd: int) -> None:
        if fd >= 0:
            super().close(fd)

    def stat_open(self, fd: int):  # type: ignore[no-untyped-def]
        return self.stat("/")._replace(kind="file", size=len(self.data))

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        piece = self.data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.fixture(scope="module")
def commit(tmp_path_factory: pytest.TempPathFactory) -> Commit:
    place = tmp_path_factory.mktemp("corruption")
    (place / "staging").mkdir()
    store = Store(place / "staging" / "segue" / "run")
    claim = store.claim(Claimant(), {})
    make_checkpoint(place / "source", 10, files=3, size=1500)
    long = place / "source" / "10" / ("n" * 90) / ("m" * 90)
    long.mkdir(parents=True)
    (long / "deep").write_bytes(b"deep")
    return store.publish(claim, place / "source", Metadata(10, "10"))


def classes_of(layout: Layout, manifest_size: int) -> dict[str, list[range]]:
    """Where each class of byte lies in the archive."""
    found: dict[str, list[range]] = {"header": [], "padding": []}
    found["data"] = [range(piece.offset, piece.offset + piece.size) for piece in layout.pieces]
    found["manifest"] = [range(layout.manifest_offset, layout.manifest_offset + manifest_size)]
    ends = {piece.offset + piece.size for piece in layout.pieces}
    for offset, data in layout.fixed[:-1]:
        padded = -offset % 512 if offset in ends else 0
        found["padding"].append(range(offset, offset + padded))
        found["header"].append(range(offset + padded, offset + len(data)))
    offset, data = layout.fixed[-1]
    found["end"] = [range(offset, offset + len(data))]
    return {name: [one for one in ranges if len(one)] for name, ranges in found.items()}


def damaged(rng: random.Random, good: bytes, place: int, span: int) -> bytes:
    data = bytearray(good)
    way = rng.choice(("flip", "truncate", "zero", "overwrite", "shift"))
    if way == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif way == "truncate":
        del data[place:]
    elif way == "zero":
        data[place : place + span] = bytes(len(data[place : place + span]))
    elif way == "overwrite":
        data[place : place + span] = rng.randbytes(len(data[place : place + span]))
    else:
        data[place : place + span] = b""
        data.extend(bytes(span))
    return bytes(data)


@pytest.mark.parametrize("kind", CLASSES)
def test_no_damaged_archive_is_good(commit: Commit, kind: str) -> None:
    fs = OneFile()
    good = fs.data = commit.path.read_bytes()
    assert check_commit(fs, commit, Pace(), 0).step == 10
    manifest, layout = read_manifest(fs, commit.name, -1)
    ranges = classes_of(layout, len(manifest.encode()))[kind]
    rng = random.Random(f"damage {kind}")
    for case in range(CASES):
        while True:
            one = rng.choice(ranges)
            fs.data = damaged(rng, good, rng.choice(one), rng.choice((1, 3, 64, 512)))
            if fs.data != good:
                break
        with pytest.raises(BadArchive):
            check_commit(fs, commit, Pace(), 0)
            raise AssertionError(f"case {case} passed as good")


def forged(entries: list[Entry], contents: dict[str, bytes], *, more: bytes = b"") -> bytes:
    """An archive that a hostile writer made: its manifest and headers agree with each other."""
    full = [
        replace(one, size=len(contents[one.path]), sha256=hashlib.sha256(contents[one.path]).hexdigest())
        if one.kind == "file"
        else one
        for one in entries
    ]
    manifest = Manifest("run", 10, "10", 1, None, "reference", 1.0, tuple(full))
    raw = manifest.encode()
    layout = manifest.layout(len(raw))
    data = bytearray(layout.total)
    for offset, fixed in layout.fixed:
        data[offset : offset + len(fixed)] = fixed
    for piece in layout.pieces:
        data[piece.offset : piece.offset + piece.size] = contents[full[piece.number].path]
    data[layout.manifest_offset : layout.manifest_offset + len(raw)] = raw
    return bytes(data) + more


EVIL = {
    "absolute": ([Entry("/etc/evil", "file", 0o644)], "unsafe name"),
    "above": ([Entry("../evil", "file", 0o644)], "unsafe name"),
    "above inside": ([Entry("a", "directory", 0o755), Entry("a/../../evil", "file", 0o644)], "unsafe name"),
    "link out": ([Entry("a", "link", 0o777, target="../outside")], "leads out"),
    "absolute link": ([Entry("a", "link", 0o777, target="/etc")], "leads out"),
    "through a link": (
        [Entry("a", "link", 0o777, target="."), Entry("a/evil", "file", 0o644)],
        "does not lie in a directory",
    ),
    "chain of links": (
        [
            Entry("d", "directory", 0o755),
            Entry("d/up", "link", 0o777, target=".."),
            Entry("x", "link", 0o777, target="d/up/.."),
        ],
        "leads out",
    ),
    "twice": ([Entry("evil", "file", 0o644), Entry("evil", "file", 0o644)], "twice"),
    "device": ([Entry("evil", "device", 0o644)], "not a file"),
    "manifest's name": ([Entry("segue-manifest.json", "file", 0o644)], "like the manifest"),
    "long name": ([Entry("n" * 300, "file", 0o644)], "unsafe name"),
    "links that lead through one another for hours": (
        [Entry(f"l{i:03}", "link", 0o777, target=f"l{i + 1:03}/{'x/' * 1700}") for i in range(100)],
        "too often to be followed",
    ),
    "long target": ([Entry("a", "link", 0o777, target="b/" * 3000)], "unsafe name"),
    "zero byte": ([Entry("a\0b", "file", 0o644)], "unsafe name"),
}


@pytest.mark.parametrize("name", EVIL)
def test_a_hostile_archive_is_refused_and_writes_nothing(tmp_path: Path, name: str) -> None:
    entries, complaint = EVIL[name]
    (tmp_path / "in").mkdir()
    target = tmp_path / "000000010.e000001.tar"
    if name == "device":
        text = forged([Entry("evil", "file", 0o644)], {"evil": b"x"}).replace(b'"type": "file"', b'"type": "char"')
        body, _, _ = text[text.rindex(b'{"format"') :].partition(b',\n"digest": "')
        old = text[text.rindex(b'"digest": "') + 11 :][:64]
        target.write_bytes(text.replace(old, hashlib.sha256(body).hexdigest().encode()))
    else:
        target.write_bytes(forged(entries, {one.path: b"evil" for one in entries}))
    commit = Commit(target, 10, 1, target.stat().st_size, 0.0)
    with pytest.raises(BadArchive, match=complaint):
        unpack(PosixFileSystem(), commit, str(tmp_path / "in"), "t", Pace(), 2)
    assert sorted(os.listdir(tmp_path)) == ["000000010.e000001.tar", "in"]  # noqa: PTH208
    assert list((tmp_path / "in").iterdir()) == []


def test_more_bytes_or_members_than_the_manifest_says_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    target = tmp_path / "000000010.e000001.tar"
    good = forged([Entry("a", "file", 0o644)], {"a": b"x"})
    extra = BytesIO()
    with tarfile.open(fileobj=extra, mode="w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("evil")
        member.size = 4
        archive.addfile(member, BytesIO(b"evil"))
    for data in (good + bytes(10240), extra.getvalue()[:1024] + good, good[:-512], good + b"x"):
        target.write_bytes(data)
        with pytest.raises(BadArchive):
            unpack(PosixFileSystem(), Commit(target, 10, 1, len(data), 0.0), str(tmp_path / "in"), "t", Pace(), 0)
    assert list((tmp_path / "in").iterdir()) == []


def test_a_renamed_commit_is_refused(commit: Commit, tmp_path: Path) -> None:
    with pytest.raises(BadArchive, match="the file was renamed"):
        check_commit(PosixFileSystem(), replace(commit, step=20), Pace(), 0)


def test_a_manifest_of_a_newer_format_is_left_alone(commit: Commit, tmp_path: Path) -> None:
    from agent.store.errors import NewerFormat
    from agent.store.manifest import decode

    with pytest.raises(NewerFormat, match="use a newer segue"):
        decode("x", digested(json.dumps({"format": 2})))


def digested(text: str) -> bytes:
    """A JSON object as a manifest that fits its own digest."""
    body = text[:-1].encode()
    return body + b',\n"digest": "' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


NONSENSE = {
    "nothing": "{}",
    "a list": "[]",
    "format 0": '{"format": 0}',
    "deep": '{"format": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a giant number": '{"format": 1, "step": ' + "9" * 10_000 + "}",
    "no time": '{"format": 1, "run": "r", "step": 1, "label": "1", "epoch": 1, "recipe": "", "created": NaN, "files": []}',
    "files as text": '{"format": 1, "run": "r", "step": 1, "label": "1", "epoch": 1, "recipe": "", "created": 1, "files": "abc"}',
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_with_a_fitting_digest_is_a_bad_archive_and_no_traceback(name: str) -> None:
    from agent.store.manifest import decode

    with pytest.raises(BadArchive):
        decode("x", digested(NONSENSE[name]))


def test_restoring_twice_gives_the_same_and_replaces_what_was_there(commit: Commit, tmp_path: Path) -> None:
    for token in ("a", "b"):
        unpack(PosixFileSystem(), commit, str(tmp_path), token, Pace(), 2)
    first = picture(tmp_path)
    remove_tree(PosixFileSystem(), str(tmp_path / "10"))
    unpack(PosixFileSystem(), commit, str(tmp_path), "c", Pace(), 0)
    assert picture(tmp_path) == first
