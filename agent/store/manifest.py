"""What a commit says about itself, and the rules that make unpacking it safe (invariants I3 and I7).

A manifest is believed only after its own digest fits, and followed only after every path and link in it was shown to stay
inside the destination, whatever the archive says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent.store.archive import BLOCK, MANIFEST_NAME, Entry, Layout, lay_out, manifest_size_of
from agent.store.errors import BadArchive, NewerFormat
from agent.store.fs import FileSystem, read_all

FORMAT = 1
LARGEST_MANIFEST = 64 << 20
_LARGEST_NUMBER = 1 << 60
_LINKS_FOLLOWED = 255
_PARTS_FOLLOWED = 4_000_000
_NOWHERE = -1
_LONGEST_PATH, _LONGEST_NAME = 4095, 255
_SEARCH = 1 << 20
_NO_DIGEST = "0" * 64
_HEX = re.compile(r"[0-9a-f]{64}")
_TAIL = b',\n"digest": "'
_TAIL_LENGTH = len(_TAIL) + 64 + len(b'"}\n')


@dataclass(frozen=True)
class Manifest:
    """See docs/format.md. ``created`` in Unix seconds; ``entries`` sorted by path, without the manifest itself."""

    run: str
    step: int
    label: str
    epoch: int
    parent: str | None
    recipe: str
    created: float
    entries: tuple[Entry, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    pace: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def data_bytes(self) -> int:
        """Bytes of file data."""
        return sum(entry.size for entry in self.entries)

    def layout(self, size: int) -> Layout:
        """The archive's layout when the manifest itself takes ``size`` bytes."""
        return lay_out(self.entries, size, int(self.created))

    def with_digests(self, digests: Mapping[int, str]) -> Manifest:
        """The same with the SHA-256 of the entries whose numbers are keys."""
        return replace(
            self,
            entries=tuple(
                replace(entry, sha256=digests[number]) if number in digests else entry
                for number, entry in enumerate(self.entries)
            ),
        )

    def encode(self) -> bytes:
        """The bytes of the last member. Their number does not depend on any digest's value."""
        head = {
            "format": FORMAT,
            "run": self.run,
            "step": self.step,
            "label": self.label,
            "epoch": self.epoch,
            "parent": self.parent,
            "recipe": self.recipe,
            "created": self.created,
            "versions": dict(self.versions),
            "pace": dict(self.pace),
            "metrics": dict(self.metrics),
        }
        lines = [json.dumps(head)[:-1] + ', "files": [']
        lines.append(",\n".join(json.dumps(_entry_fields(entry)) for entry in self.entries) + "]")
        body = "\n".join(lines).encode("ascii")
        return body + _TAIL + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def _entry_fields(entry: Entry) -> dict[str, object]:
    fields: dict[str, object] = {"path": entry.path, "type": entry.kind, "mode": entry.mode}
    if entry.kind == "file":
        fields["size"] = entry.size
        fields["sha256"] = entry.sha256 or _NO_DIGEST
    elif entry.kind == "link":
        fields["target"] = entry.target
    return fields


def decode(name: str, raw: bytes) -> Manifest:
    """Parse and check a manifest's bytes. Raises BadArchive, or NewerFormat when only a newer segue can judge it."""
    body, tail = raw[:-_TAIL_LENGTH], raw[-_TAIL_LENGTH:]
    digest = hashlib.sha256(body).hexdigest().encode()
    if tail != _TAIL + digest + b'"}\n':
        raise BadArchive(name, ["the manifest does not fit its own digest"])
    try:
        fields = json.loads(raw)
        if not isinstance(fields["format"], int) or fields["format"] < 1:
            raise TypeError(f"{fields['format']!r} is no format")
        if fields["format"] > FORMAT:
            raise NewerFormat(
                f"{name}: written in format {fields['format']}, this segue knows {FORMAT}: use a newer segue"
            )
        manifest = Manifest(
            run=_text(fields["run"]),
            step=_natural(fields["step"]),
            label=_text(fields["label"]),
            epoch=_natural(fields["epoch"]),
            parent=None if fields.get("parent") is None else _text(fields["parent"]),
            recipe=_text(fields["recipe"]),
            created=_time(fields["created"]),
            versions=dict(fields.get("versions", {})),
            pace=dict(fields.get("pace", {})),
            metrics=dict(fields.get("metrics", {})),
            entries=tuple(_entry(one) for one in fields["files"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadArchive(name, [f"the manifest is not one of format {FORMAT}: {error}"]) from error
    problems = unsafe(manifest.entries)
    if problems:
        raise BadArchive(name, problems)
    return manifest


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _natural(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST_NUMBER:
        raise TypeError(f"{value!r} is no natural number")
    return value


def _time(value: object) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value <= _LARGEST_NUMBER:
        raise TypeError(f"{value!r} is no time")
    return float(value)


def _entry(fields: Mapping[str, Any]) -> Entry:
    kind = fields["type"]
    mode = _natural(fields["mode"])
    if mode > 0o7777:
        raise ValueError(f"mode {mode:o}")
    path = _text(fields["path"])
    if kind == "file":
        digest = _text(fields["sha256"])
        if not _HEX.fullmatch(digest):
            raise ValueError(f"sha256 of {path!r}")
        return Entry(path, kind, mode, _natural(fields["size"]), digest)
    if kind == "link":
        return Entry(path, kind, mode, target=_text(fields["target"]))
    if kind == "directory":
        return Entry(path, kind, mode)
    raise ValueError(f"{path!r} is of kind {kind!r}, not a file, a directory or a link")


def unsafe(entries: Sequence[Entry]) -> list[str]:
    """Why these entries must not be unpacked: paths or links that leave the destination, duplicates, a file used as directory."""
    problems: list[str] = []
    kinds: dict[str, str] = {}
    links: dict[str, str] = {}
    for entry in entries:
        parts = entry.path.split("/")
        if any(part in ("", ".", "..") for part in parts) or _unwritable(entry.path) or _unwritable(entry.target):
            problems.append(f"member {entry.path!r} has an unsafe name")
        elif entry.path == MANIFEST_NAME:
            problems.append(f"a member is named {MANIFEST_NAME} like the manifest")
        elif entry.path in kinds:
            problems.append(f"member {entry.path!r} is there twice")
        elif len(parts) > 1 and kinds.get(entry.path.rpartition("/")[0]) != "directory":
            problems.append(f"member {entry.path!r} does not lie in a directory of the archive")
        else:
            kinds[entry.path] = entry.kind
            if entry.kind == "link":
                links[entry.path] = entry.target
    return problems + _leading_out(links)


def _leading_out(links: Mapping[str, str]) -> list[str]:
    """What is wrong with the links of an archive, path → target. A few of them can lead through each other for hours, so all together have
    so many parts to lead through, each found in one look.
    """
    places: dict[tuple[int, str], int] = {}
    targets: dict[int, str] = {}
    for path, target in links.items():
        place = 0
        for part in path.split("/"):
            place = places.setdefault((place, part), len(places) + 1)
        targets[place] = target
    problems: list[str] = []
    left = _PARTS_FOLLOWED
    for path, target in links.items():
        inside, parts = _stays_inside(path, target, places, targets, left)
        left -= parts
        if left <= 0:
            return [*problems, "its links lead through one another too often to be followed"]
        if not inside:
            problems.append(f"link {path!r} to {target!r} leads out of the checkpoint")
    return problems


def _stays_inside(
    path: str, target: str, places: Mapping[tuple[int, str], int], targets: Mapping[int, str], most: int
) -> tuple[bool, int]:
    """Follow a link as the kernel would, with the archive's own links in mind; a dangling end inside is fine. ``places``: (place, name) →
    place, from 0, the root; ``targets`` of the places that are links. Also how many parts were looked at, ``most`` or a few more.

    The kernel gives up after 40 links, so what is still inside after more than that cannot be followed out.
    """
    if not target or target.startswith("/"):
        return False, 0
    here = [0]
    for part in path.split("/")[:-1]:
        here.append(places[here[-1], part])
    todo = target.split("/")[::-1]
    parts = len(todo)
    followed = 0
    while todo and followed <= _LINKS_FOLLOWED and parts < most:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if len(here) == 1:
                return False, parts
            here.pop()
            continue
        place = places.get((here[-1], part), _NOWHERE)
        further = targets.get(place)
        if further is None:
            here.append(place)
        elif further.startswith("/"):
            return False, parts
        else:
            todo += further.split("/")[::-1]
            parts += further.count("/") + 1
            followed += 1
    return True, parts


def _unwritable(text: str) -> bool:
    """Whether no file name or link can be made of it."""
    try:
        name = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return True
    return b"\0" in name or len(name) > _LONGEST_PATH or any(len(part) > _LONGEST_NAME for part in name.split(b"/"))


def read_manifest(fs: FileSystem, name: str, fd: int) -> tuple[Manifest, Layout]:
    """Find, check and decode the manifest of an open archive. Raises BadArchive, NewerFormat, OSError."""
    total = fs.stat_open(fd).size
    if total == 0 or total % BLOCK:
        raise BadArchive(name, [f"its size, {total} bytes, is not that of an archive"])
    offset, raw = _find(fs, name, fd, total)
    manifest = decode(name, raw)
    layout = manifest.layout(len(raw))
    if layout.total != total or layout.manifest_offset != offset:
        raise BadArchive(name, [f"it has {total} bytes where the manifest implies {layout.total}"])
    return manifest, layout


def _find(fs: FileSystem, name: str, fd: int, total: int) -> tuple[int, bytes]:
    """Search backwards, piece by piece, for the manifest's header; a manifest cannot contain its own header's block."""
    marker = MANIFEST_NAME.encode() + b"\0"
    end, length = total, 1 << 16
    while end > 0 and total - end <= LARGEST_MANIFEST:
        start = max(0, end - length)
        piece = read_all(fs, fd, end - start, start)
        place = piece.rfind(marker)
        while place >= 0 and place % BLOCK:
            place = piece.rfind(marker, 0, place)
        if place >= 0:
            offset = start + place + BLOCK
            size = manifest_size_of(piece[place : place + BLOCK])
            if size is None or size > min(LARGEST_MANIFEST, total - offset):
                raise BadArchive(name, ["the manifest's header is damaged"])
            if size <= len(piece) - place - BLOCK:
                return offset, piece[place + BLOCK : place + BLOCK + size]
            return offset, read_all(fs, fd, size, offset)
        end, length = start, _SEARCH
    raise BadArchive(name, ["it has no manifest: cut short, or not an archive of segue"])
