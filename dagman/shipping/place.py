"""Staging as seen from this machine: a directory here, or one behind the site's transfer host. The flows see no difference.

Nothing stands under an archive's final name before its bytes were compared with its digest on the far side.
"""

from __future__ import annotations

import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import SegueError
from agent.pack import DigestMismatch, Packed, digest_of
from agent.store import names
from agent.store.budget import Room, ceph_rooms, quotas_room, usage
from agent.store.fs import PosixFileSystem
from dagman import quotas
from dagman.shipping import rsync, survey
from dagman.shipping.ssh import Connection
from dagman.shipping.survey import INPUTS, Survey, partial_name

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Listing:
    """What a run has in staging. ``problem``: "missing" when staging itself is not there, "no-run" when the run's directory is not."""

    problem: str = ""
    archives: tuple[RunArchive, ...] = ()


@dataclass(frozen=True)
class RunArchive:
    """An archive of a run in staging: ``path`` relative to staging; ``final``: what consolidation left, else a commit of ``epoch``."""

    path: str
    bytes: int
    step: int
    epoch: int
    final: bool

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


class Place(ABC):
    """Staging somewhere. ``staging`` is its absolute path there, ``name`` what to call it in sentences."""

    staging: str

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def packs_into(self) -> Path | None:
        """Where archives are packed under their final names; None: they are packed elsewhere and sent."""

    @abstractmethod
    def survey(self, run: str) -> Survey:
        """What is there. Raises CannotConnect, BadInput, SegueError."""

    @abstractmethod
    def digest(self, archive: str, progress: Progress | None = None) -> str:
        """SHA-256 of an input archive there, empty when the place has no tool for it."""

    @abstractmethod
    def take(self, path: Path, packed: Packed, progress: Progress | None = None) -> str:
        """Put the packed archive into staging under its own name; how it was verified. DigestMismatch, SegueError."""

    @abstractmethod
    def archives(self, run: str) -> Listing:
        """Final archives and commits of a run. Raises as ``survey``."""

    @abstractmethod
    def tail(self, archive: RunArchive, count: int) -> bytes:
        """Its last bytes."""

    @abstractmethod
    def bring(self, archive: RunArchive, work: Path, progress: Progress | None = None) -> Path:
        """A local, complete file of it: below ``work``, or where it lies. What is in ``work`` already is not sent again."""

    @abstractmethod
    def sends(self) -> bool:
        """Whether archives are copied on their way (and so need room here)."""


def parse_archives(entries: list[tuple[str, int]], run: str) -> Listing:
    """From paths below the run's directory (``final/…``, ``checkpoints/…``) and sizes."""
    found = []
    for path, size in entries:
        folder, _, name = path.partition("/")
        full = f"segue/{run}/{path}"
        if folder == names.FINAL:
            stem, _, digits = name.removesuffix(".tar").rpartition("-")
            if name.endswith(".tar") and stem == run and digits.isdigit():
                found.append(RunArchive(full, size, int(digits), 0, True))
        elif folder == names.CHECKPOINTS and (numbers := names.parse_commit(name)) is not None:
            found.append(RunArchive(full, size, numbers[0], numbers[1], False))
    return Listing("", tuple(found))


class Here(Place):
    """A directory of this machine."""

    def __init__(self, staging: Path) -> None:
        self.staging = str(staging)
        self._inputs = staging / INPUTS

    @property
    def name(self) -> str:
        return self.staging

    @property
    def packs_into(self) -> Path:
        return self._inputs

    def sends(self) -> bool:
        return False

    def survey(self, run: str) -> Survey:
        staging = Path(self.staging)
        if not os.path.lexists(staging):
            return Survey("missing")
        if not staging.is_dir():
            return Survey("no-directory")
        top = next(path for path in (self._inputs, self._inputs.parent, staging) if path.is_dir())
        if not os.access(top, os.W_OK | os.X_OK):
            return Survey("not-writable")
        fs = PosixFileSystem()
        try:
            files = {path.name: path.stat().st_size for path in self._inputs.iterdir()} if top == self._inputs else {}
            space = fs.space(self.staging)
            archives, partial = survey.sorted_names(files)
            return Survey(
                "",
                archives,
                partial,
                tuple(ceph_rooms(fs, self.staging)) or _told(self.staging),
                usage(fs, self.staging),
                usage(fs, f"{self.staging}/segue/{run}"),
                Room("the file system", space.bytes, space.items),
            )
        except OSError as error:
            raise SegueError(f"{error.filename or staging}: cannot be read: {error.strerror}") from error

    def digest(self, archive: str, progress: Progress | None = None) -> str:
        path = self._inputs / archive
        try:
            return digest_of(path, progress).sha256
        except OSError as error:
            raise SegueError(f"{path}: cannot be read: {error.strerror}") from error

    def take(self, path: Path, packed: Packed, progress: Progress | None = None) -> str:
        return "packed in place"

    def archives(self, run: str) -> Listing:
        root = Path(self.staging) / "segue" / run
        if not root.is_dir():
            return Listing("no-run" if Path(self.staging).is_dir() else "missing")
        found = []
        for folder in (names.FINAL, names.CHECKPOINTS):
            if (root / folder).is_dir():
                try:
                    found += [(f"{folder}/{path.name}", path.stat().st_size) for path in (root / folder).iterdir()]
                except OSError as error:
                    raise SegueError(f"{root / folder}: cannot be read: {error.strerror}") from error
        return parse_archives(found, run)

    def tail(self, archive: RunArchive, count: int) -> bytes:
        path = Path(self.staging) / archive.path
        try:
            with path.open("rb") as file:
                file.seek(-min(count, archive.bytes), os.SEEK_END)
                return file.read()
        except OSError as error:
            raise SegueError(f"{path}: cannot be read: {error.strerror}") from error

    def bring(self, archive: RunArchive, work: Path, progress: Progress | None = None) -> Path:
        return Path(self.staging) / archive.path


def _told(staging: str) -> tuple[Room, ...]:
    """By `get_quotas` of this machine, where it is an access point."""
    room = quotas_room(quotas.asked() or "", staging)
    return () if room is None else (room,)


_DIGEST = """\
digest() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum <"$1"
    elif command -v openssl >/dev/null 2>&1; then openssl dgst -sha256 -r <"$1"
    elif command -v shasum >/dev/null 2>&1; then shasum -a 256 <"$1"
    elif command -v python3 >/dev/null 2>&1; then python3 -c 'import hashlib, sys
found = hashlib.sha256()
while data := sys.stdin.buffer.read(1 << 20): found.update(data)
print(found.hexdigest())' <"$1"
    else echo none; fi | awk '{ print $1 }'
}"""


class There(Place):
    """A directory behind ssh."""

    def __init__(self, link: Connection, staging: str) -> None:
        self.staging = staging
        self._link = link
        self._inputs = f"{staging}/{INPUTS}"

    @property
    def name(self) -> str:
        return f"{self._link.host}:{self.staging}"

    @property
    def packs_into(self) -> None:
        return None

    def sends(self) -> bool:
        return True

    def survey(self, run: str) -> Survey:
        found = survey.read(self._link.run(survey.script(self.staging, run)), self.staging)
        if not found.problem and "rsync" not in found.tools:
            raise rsync.missing_there(self._link.host)
        return found

    def digest(self, archive: str, progress: Progress | None = None) -> str:
        lines = self._link.run(f"{_DIGEST}\ndigest {shlex.quote(f'{self._inputs}/{archive}')}")
        return "" if lines == ["none"] or not lines else lines[0].strip()

    def take(self, path: Path, packed: Packed, progress: Progress | None = None) -> str:
        self._link.run(f"mkdir -p {shlex.quote(self._inputs)} || exit 1")
        partial, final = f"{self._inputs}/{partial_name(path.name)}", f"{self._inputs}/{path.name}"
        for again in (False, True):
            rsync.send(self._link, path, partial, progress)
            result = self._finish(partial, final, packed)
            if result != "mismatch":
                return result
            if again:
                break  # what was there before us was not of this archive; a fresh upload that differs is the host's fault
        raise DigestMismatch(
            f"{self._link.host}:{final}: arrived twice with another SHA-256 than it was sent with: the disk or the network there is at fault; "
            "nothing was put under its name; tell the site's staff"
        )

    def _finish(self, partial: str, final: str, packed: Packed) -> str:
        """Compare size and digest over there, then rename; "mismatch" when they differ: the partial file is removed then."""
        lines = self._link.run(
            f"""\
{_DIGEST}
partial={shlex.quote(partial)}
final={shlex.quote(final)}
found=$(digest "$partial")
size=$(wc -c <"$partial" | tr -d ' ')
if [ "$size" != {packed.bytes} ] || {{ [ "$found" != {packed.sha256} ] && [ "$found" != none ]; }}; then
    rm -f "$partial"
    echo mismatch
    exit 0
fi
sync "$partial" 2>/dev/null
mv -f "$partial" "$final" || exit 1
sync "$(dirname "$final")" 2>/dev/null
[ "$found" = none ] && echo "size and rsync's checksum" || echo "SHA-256 there"
"""
        )
        return lines[0] if lines else "mismatch"

    def archives(self, run: str) -> Listing:
        lines = self._link.run(
            f"""\
root={shlex.quote(f"{self.staging}/segue/{run}")}
[ -d {shlex.quote(self.staging)} ] || {{ echo problem missing; exit 0; }}
[ -d "$root" ] || {{ echo problem no-run; exit 0; }}
command -v rsync >/dev/null 2>&1 || {{ echo problem no-rsync; exit 0; }}
cd "$root" || exit 1
for folder in {names.FINAL} {names.CHECKPOINTS}; do
    [ -d "$folder" ] && {{ find "$folder" -maxdepth 1 -type f -name '*.tar' -printf '%s %p\\n' || exit 1; }}
done
"""
        )
        if lines == ["problem no-rsync"]:
            raise rsync.missing_there(self._link.host)
        if lines and lines[0].startswith("problem "):
            return Listing(lines[0].partition(" ")[2])
        split = [line.split(" ", 1) for line in lines]
        return parse_archives([(words[1], int(words[0])) for words in split if words[0].isdigit()], run)

    def tail(self, archive: RunArchive, count: int) -> bytes:
        path = shlex.quote(f"{self.staging}/{archive.path}")
        return bytes.fromhex("".join(self._link.run(f"tail -c {count} <{path} | od -An -v -tx1")))

    def bring(self, archive: RunArchive, work: Path, progress: Progress | None = None) -> Path:
        target = work / archive.name
        rsync.receive(self._link, f"{self.staging}/{archive.path}", target, progress)
        return target
