"""`segue pull`: one archive of a run from staging to this machine, verified, and laid out as its trainer's own server takes it.

Whole under its final name or not there at all. Beside the checkpoint stays the archive's manifest, by which the same pull is recognised and
verified later. Unpacking is handed in: the reader of archives belongs to the jobs.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.errors import BadInput, SegueError
from agent.pack import digest_of
from agent.store.archive import Entry
from agent.store.errors import BadArchive, NoRoom, StoreError, speaking
from agent.store.fs import PosixFileSystem, remove_tree
from agent.store.manifest import Manifest, decode
from agent.store.names import readers_order
from agent.store.tree import as_name
from dagman.paths import absolute
from dagman.shipping.place import Listing, Place, RunArchive
from dagman.shipping.stage import Watch, gigabytes, silent
from dagman.shipping.where import Destination, opened, unusable

Unpack = Callable[[Path, Path], Manifest]
"""Verifies every byte of an archive and unpacks it into an empty directory. Raises BadArchive, BadInput, SegueError."""
FINAL = "final"
NEWEST = "newest"
_WORK = ".segue-pull"
# Beside a directory for each run, whose name never begins with a dot.
_LOCK, _UNPACKED = ".lock", ".unpacked"
_DIGEST_BYTES = 80  # of a manifest's end: its own SHA-256 and what stands around it
_MARK = re.compile(r"\.(.+)\.segue-manifest\.json")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Pulled:
    """What now lies in ``target``. ``action``: fetched, unpacked (staging is on this machine) or there; ``note``: what was replaced."""

    target: Path
    archive: str
    step: int
    label: str
    epoch: int
    bytes: int
    action: str
    from_bytes: int = 0
    note: str = ""


def choose(listing: Listing, step: str, run: str, steps: int) -> RunArchive:
    """The archive for ``step``: final, newest, or a number of updates (its commit of the highest epoch, else the final archive of it).

    SegueError when there is none yet, saying what there is.
    """
    finals = sorted((one for one in listing.archives if one.final), key=lambda one: one.step)
    commits = sorted(
        (one for one in listing.archives if not one.final), key=lambda one: readers_order(one.step, one.epoch)
    )
    if not finals and not commits:
        raise SegueError(f"{run}: has no checkpoint in staging yet: `segue status` says where it is")
    if step == FINAL:
        if finals:
            return finals[-1]
        newest = commits[-1].step
        raise SegueError(
            f"{run}: has no final archive yet, it is at step {newest} of {steps}: `--step {newest}` brings that commit"
        )
    if step == NEWEST:
        return (commits or finals)[-1]
    of_step = [one for one in [*finals, *commits] if one.step == int(step)]
    if not of_step:
        known = ", ".join(map(str, sorted({one.step for one in listing.archives})))
        raise SegueError(f"{run}: staging has no checkpoint of step {step}; there are steps {known}")
    return of_step[-1]


def above(where: Destination, to: Path) -> Path:
    """The directory in which the checkpoint's own directory will lie."""
    spec = where.spec
    if not spec.trainer.recipe.startswith("openpi"):
        return to / "checkpoints" / spec.name
    parts = []
    for key, value in (
        ("config", spec.trainer.options.get("config")),
        ("exp_name", spec.trainer.options.get("exp_name") or spec.name),
    ):
        if not isinstance(value, str) or not _is_below(value):
            raise BadInput(
                f"{where.run_toml}: trainer.options.{key}: {value!r} is no name of a directory: OpenPI keeps checkpoints by it"
            )
        parts.append(value)
    return to.joinpath("checkpoints", *parts)


def _is_below(value: str) -> bool:
    """Whether it names a directory below another, whatever else OpenPI's users call their experiments."""
    path = Path(value)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in value


def directory_name(where: Destination, manifest: Manifest) -> str:
    """Of the checkpoint: OpenPI's own label (its JAX trainer labels k what has k+1 updates), elsewhere the step."""
    if where.spec.trainer.recipe.startswith("openpi") and _PLAIN.fullmatch(manifest.label):
        return manifest.label
    return str(manifest.step)


def pull(where: Destination, unpack: Unpack, *, to: Path, step: str = FINAL, watch: Watch = silent) -> Pulled:
    """Bring it. ``to``: the directory that gets `checkpoints/`. Raises BadInput, CannotConnect, SegueError with one sentence."""
    to = absolute(to)
    parent = above(where, to)
    with opened(where) as place:
        listing = place.archives(where.spec.name)
        if listing.problem == "missing":
            raise unusable(where, place, listing.problem)
        if listing.problem:
            raise SegueError(
                f"{place.name}/segue: has no run {where.spec.name!r}: it has not begun, or `name`, `user` or `staging` in {where.run_toml} differ"
            )
        archive = choose(listing, step, where.spec.name, where.spec.steps)
        there, note = _recognised(place, parent, where.spec.name, archive, watch)
        if there is not None:
            return there
        with _working_directory(to) as work:
            return _fetch(where, place, archive, parent, work, unpack, watch, note)


# --- what was pulled before -------------------------------------------------------------------------------------------


def mark_path(target: Path) -> Path:
    """Where the manifest of a pulled checkpoint is kept: beside it, so that its own directory is the trainer's alone."""
    return target.with_name(f".{target.name}.segue-manifest.json")


def read_mark(target: Path) -> Manifest | None:
    """The manifest of a pulled checkpoint, None when it is none of ours."""
    path = mark_path(target)
    try:
        return decode(path.name, path.read_bytes())
    except (OSError, StoreError):
        return None


def _recognised(place: Place, parent: Path, run: str, archive: RunArchive, watch: Watch) -> tuple[Pulled | None, str]:
    """The same archive, pulled before and still whole; else what is wrong with it."""
    for path in sorted(parent.glob(".*.segue-manifest.json")) if parent.is_dir() else []:
        match = _MARK.fullmatch(path.name)
        target = parent / match[1] if match else path
        manifest = read_mark(target)
        if manifest is None or not target.is_dir() or not _same(place, manifest, run, archive):
            continue
        wrong = _wrong(target, manifest, watch)
        if not wrong:
            label, epoch = manifest.label, manifest.epoch
            return Pulled(target, archive.name, archive.step, label, epoch, archive.bytes, "there"), ""
        return None, f"{target} was not whole any more ({wrong}) and was replaced"
    return None, ""


def _same(place: Place, manifest: Manifest, run: str, archive: RunArchive) -> bool:
    """Whether the archive in staging is the one of this manifest: its last bytes hold the manifest's digest, which holds all others."""
    raw = manifest.encode()
    layout = manifest.layout(len(raw))
    if (manifest.run, manifest.step, layout.total) != (run, archive.step, archive.bytes):
        return False
    end = raw[-_DIGEST_BYTES:] + bytes(layout.total - layout.manifest_offset - len(raw))
    return place.tail(archive, len(end)) == end


def _wrong(target: Path, manifest: Manifest, watch: Watch) -> str:
    """The first difference between a directory and its manifest, empty when every byte is right."""
    done = 0
    for name, entry in _own(manifest):
        path = target / as_name(name)
        try:
            if entry.kind == "link":
                good = path.is_symlink() and str(path.readlink()) == as_name(entry.target)
            elif entry.kind == "directory":
                good = path.is_dir()
            else:
                good = path.stat().st_size == entry.size and digest_of(path).sha256 == entry.sha256
        except OSError as error:
            return f"{name}: {error.strerror}"
        if not good:
            return f"{name} has changed"
        done += entry.size
        watch("verifying", done, manifest.data_bytes)
    return ""


def _has_directory(manifest: Manifest) -> bool:
    """Whether the checkpoint is one directory named by its label; else the target gets all members."""
    return any(entry.kind == "directory" and entry.path == manifest.label for entry in manifest.entries)


def _own(manifest: Manifest) -> Iterator[tuple[str, Entry]]:
    """Members of the checkpoint, by their path below the target."""
    prefix = f"{manifest.label}/" if _has_directory(manifest) else ""
    for entry in manifest.entries:
        if entry.path.startswith(prefix):
            yield entry.path[len(prefix) :], entry


# --- fetching ---------------------------------------------------------------------------------------------------------


@contextmanager
def _working_directory(to: Path) -> Iterator[Path]:
    """For the archive on its way and its unpacked files; kept after a broken transfer, since the next one goes on from it."""
    work = to / _WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / _LOCK).open("w")
    except OSError as error:
        raise SegueError(f"{work}: cannot be made ({error.strerror}): give another directory with --to") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SegueError(
                f"{to}: another `segue pull` is at work there: wait for it, or give another --to"
            ) from None
        yield work


def _fetch(
    where: Destination,
    place: Place,
    archive: RunArchive,
    parent: Path,
    work: Path,
    unpack: Unpack,
    watch: Watch,
    note: str,
) -> Pulled:
    unpacked = work / _UNPACKED
    _remove(unpacked)
    arrived = _arrived(place, archive, where, work)
    _check_room(archive, arrived, work, place.sends())
    for again in (False, True):
        path = place.bring(
            archive, _incoming(where, work), lambda done: watch(f"fetching {archive.name}", done, archive.bytes)
        )
        watch(f"unpacking {archive.name}", 0, archive.bytes)
        try:
            with speaking("unpacking into", str(unpacked)):
                unpacked.mkdir()
                manifest = unpack(path, unpacked)
            break
        except (BadArchive, BadInput) as error:
            _remove(unpacked)
            if place.sends():
                path.unlink(missing_ok=True)
            # What was here of an earlier pull may be of another archive of this name; a whole new one that is bad is bad over there.
            if again or not arrived:
                raise _bad(where, place, archive, error) from error
        except NoRoom as error:
            _remove(unpacked)
            raise SegueError(
                f"{work.parent}: no room to unpack {archive.name}: make some, or give another directory with --to; what was fetched is kept"
            ) from error
        except BaseException:
            _remove(unpacked)
            raise
        arrived = 0
    if (manifest.run, manifest.step) != (where.spec.name, archive.step):
        _remove(unpacked)
        raise SegueError(
            f"{place.name}/{archive.path}: is of run {manifest.run!r}, step {manifest.step}: it was renamed; nothing was put in place"
        )
    target = parent / directory_name(where, manifest)
    try:
        replaced = _put_in_place(unpacked, manifest, target)
        note = note or replaced
    finally:
        _remove(unpacked)
    try:
        _clear(work, where.spec.name)
    except OSError:
        if place.sends():
            raise
    action = "fetched" if place.sends() else "unpacked"
    return Pulled(
        target, archive.name, manifest.step, manifest.label, manifest.epoch, archive.bytes, action, arrived, note
    )


def _incoming(where: Destination, work: Path) -> Path:
    """A directory of the run's own: commits of two runs may have one name."""
    directory = work / where.spec.name
    directory.mkdir(exist_ok=True)
    return directory


def _clear(work: Path, run: str) -> None:
    """What a broken pull of another run left stays: that goes on from it."""
    _remove(work / run)
    if not any(path.is_dir() for path in work.iterdir()):
        _remove(work)


def _arrived(place: Place, archive: RunArchive, where: Destination, work: Path) -> int:
    path = work / where.spec.name / archive.name
    return path.stat().st_size if place.sends() and path.is_file() else 0


def _check_room(archive: RunArchive, arrived: int, work: Path, sends: bool) -> None:
    needed = archive.bytes + (max(0, archive.bytes - arrived) if sends else 0)
    free = shutil.disk_usage(work).free
    if needed > free:
        how = " (the archive, and what is unpacked from it)" if sends else ""
        raise SegueError(
            f"{work.parent}: {gigabytes(needed)} are needed for {archive.name}{how}, {gigabytes(free)} are free: make room, or give another "
            "directory with --to"
        )


def _bad(where: Destination, place: Place, archive: RunArchive, error: SegueError) -> SegueError:
    other = "consolidate again" if archive.final else "take another step with --step"
    said = "; ".join(error.problems[:3]) if isinstance(error, BadArchive) else str(error)
    return SegueError(f"{place.name}/{archive.path}: is damaged in staging ({said}): {other}; nothing was put in place")


def _put_in_place(unpacked: Path, manifest: Manifest, target: Path) -> str:
    """Move the checkpoint to ``target``; what was replaced, as a sentence. BadInput when something else is there."""
    has_directory = _has_directory(manifest)
    made = unpacked / as_name(manifest.label) if has_directory else unpacked
    if os.path.lexists(target):
        if read_mark(target) is None:
            raise BadInput(
                f"{target}: is there already and was not put there by `segue pull`: move it away, or give another directory with --to"
            )
        note = f"{target} held another archive of this step and was replaced"
    else:
        note = ""
    with speaking("writing", str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        mark = mark_path(target)
        temporary = mark.with_name(f"{mark.name}.{os.getpid()}.tmp")
        temporary.write_bytes(manifest.encode())
        _remove(target)
        temporary.replace(mark)
        mode = made.stat().st_mode
        made.chmod(mode | stat.S_IRWXU)  # a directory that may not be written cannot be moved
        made.rename(target)
        target.chmod(mode)
        if has_directory:
            _beside(unpacked, target.parent)
    return note


def _beside(unpacked: Path, directory: Path) -> None:
    """What travels beside a checkpoint (`wandb_id.txt`) goes beside it here, unless something of this name is there."""
    for path in unpacked.iterdir():
        if not os.path.lexists(directory / path.name):
            path.rename(directory / path.name)


def _remove(path: Path) -> None:
    remove_tree(PosixFileSystem(), str(path))
