"""The bytes of an archive, as a pure function of its manifest: GNU tar headers, padding and where each file's data lies.

The writer writes these bytes and the reader compares them, so one function decides both and nothing in a commit goes unchecked.
GNU format, because it keeps names as raw bytes in any encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

BLOCK = 512
RECORD = 20 * BLOCK
MANIFEST_NAME = "segue-manifest.json"
_LONG_NAME = b"././@LongLink"
_OCTAL_LIMIT = 8**11


@dataclass(frozen=True)
class Entry:
    """One member: path relative to the checkpoint root; ``sha256`` of a file (empty: not known yet), ``target`` of a link.

    Text is UTF-8 with bytes that are none as surrogates, whatever the locale.
    """

    path: str
    kind: str
    mode: int
    size: int = 0
    sha256: str = ""
    target: str = ""


class Piece(NamedTuple):
    """One file's data: bytes ``offset`` to ``offset + size`` belong to member number ``number``."""

    offset: int
    size: int
    number: int


@dataclass(frozen=True)
class Layout:
    """``fixed``: every byte that is not file data or manifest, as (offset, bytes); ``total``: size of the archive."""

    fixed: tuple[tuple[int, bytes], ...]
    pieces: tuple[Piece, ...]
    manifest_offset: int
    total: int


def _number(value: int, width: int) -> bytes:
    if value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return b"\x80" + value.to_bytes(width - 1, "big")


def _block(name: bytes, mode: int, size: int, modified: int, kind: bytes, target: bytes) -> bytes:
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:108] = _number(mode, 8)
    block[108:116] = _number(0, 8)
    block[116:124] = _number(0, 8)
    block[124:136] = _number(size, 12)
    block[136:148] = _number(modified, 12)
    block[148:156] = b"        "
    block[156:157] = kind
    block[157 : 157 + len(target)] = target
    block[257:265] = b"ustar  \0"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _long(text: bytes, kind: bytes) -> bytes:
    data = text + b"\0"
    return _block(_LONG_NAME, 0o644, len(data), 0, kind, b"") + data + _padding(len(data))


def header(entry: Entry, modified: int) -> bytes:
    """The blocks that stand before an entry's data."""
    name = entry.path.encode("utf-8", "surrogateescape") + (b"/" if entry.kind == "directory" else b"")
    target = entry.target.encode("utf-8", "surrogateescape")
    kind = {"file": b"0", "directory": b"5", "link": b"2"}[entry.kind]
    before = b""
    if len(target) > 99:
        before += _long(target, b"K")
    if len(name) > 99:
        before += _long(name, b"L")
    size = entry.size if entry.kind == "file" else 0
    return before + _block(name[:99], entry.mode, size, modified, kind, target[:99])


def lay_out(entries: Sequence[Entry], manifest_size: int, modified: int) -> Layout:
    """Where everything goes. ``modified`` is the modification time of all members, in whole Unix seconds."""
    fixed: list[tuple[int, bytes]] = []
    pieces: list[Piece] = []
    start, pending, offset = 0, bytearray(), 0
    for index, entry in enumerate(entries):
        pending += header(entry, modified)
        offset = start + len(pending)
        if entry.kind == "file" and entry.size:
            fixed.append((start, bytes(pending)))
            pieces.append(Piece(offset, entry.size, index))
            start, pending = offset + entry.size, bytearray(_padding(entry.size))
    pending += header(Entry(MANIFEST_NAME, "file", 0o644, manifest_size), modified)
    fixed.append((start, bytes(pending)))
    manifest_offset = start + len(pending)
    end = manifest_offset + manifest_size
    total = end + len(_padding(manifest_size)) + 2 * BLOCK
    total += -total % RECORD
    fixed.append((end, bytes(total - end)))
    return Layout(tuple(fixed), tuple(pieces), manifest_offset, total)


def manifest_size_of(block: bytes) -> int | None:
    """The size that a manifest's header block states, None when the block is not one."""
    name = MANIFEST_NAME.encode()
    if not block.startswith(name + b"\0") or block[257:265] != b"ustar  \0":
        return None
    field = block[124:136]
    digits = field[:11]
    if field[11:] == b"\0" and all(0x30 <= byte <= 0x37 for byte in digits):
        return int(digits, 8)
    return None
