"""`segue stage`: dataset, assets and code into staging, one archive each, named by its digest; said exactly, and nothing twice.

Room is checked before a byte is sent. A broken upload leaves a partial file under a temporary name, and the next one goes on from it:
packing the same source again gives the same bytes.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agent.errors import BadInput, SegueError
from agent.pack import Member, Packed, archive_name, archive_size, members, write_archive
from agent.store.budget import Room, Usage
from dagman import code as checkouts
from dagman.inputs import Recorded, examine, read_record, same_source, state_of, write_record
from dagman.paths import absolute, beside
from dagman.prepare import check_staging_path, record_path, requests
from dagman.shipping.place import Place
from dagman.shipping.survey import INPUTS, Limits, Survey, partial_name, rooms, tightest, too_small
from dagman.shipping.where import Destination, opened, unusable

Watch = Callable[[str, int, int], None]
"""Told what is done (packing, uploading, …, of which input), bytes so far and bytes in all."""
_WORK = ".segue-stage"


def silent(doing: str, done: int, total: int) -> None:
    """A Watch that shows nothing."""


@dataclass(frozen=True)
class Source:
    """One input: where it should be, what is in it (None: it is not on this machine) and what the record says of it."""

    name: str
    path: Path
    entries: tuple[Member, ...] | None
    known: Recorded | None
    state: str = ""
    about: str = ""

    @property
    def bytes(self) -> int:
        """Of its archive."""
        if self.known is not None:
            return self.known.bytes
        return archive_size(self.entries or ())


@dataclass(frozen=True)
class Staged:
    """What was done with one input. ``action``: uploaded, packed, there, or what a dry run would do; ``from_bytes``: of it was there."""

    name: str
    archive: str
    sha256: str
    bytes: int
    action: str
    verified: str
    from_bytes: int = 0
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The whole of it. ``room``: the bound that leaves least after it; ``others``: archives there that this run does not name."""

    place: str
    inputs: tuple[Staged, ...]
    room: Room | None
    others: tuple[tuple[str, int], ...]
    record: Path
    dry_run: bool


def sources(where: Destination, with_code: bool) -> list[Source]:
    """Look at everything that run.toml wants in staging, without reading it. BadInput when one is neither here nor recorded."""
    record = read_record(record_path(where.run_toml))
    found = []
    for request in requests(where.spec, where.run_toml):
        entries = members(request.source) if request.source.exists() else None
        found.append(_source(request.name, request.source, entries, record))
    if where.spec.code is not None and with_code:
        path = beside(where.run_toml.parent, where.spec.code)
        recorded = same_source(record.get(checkouts.NAME), path)
        checkout = checkouts.read_checkout(path) if path.exists() or not recorded else None
        entries = list(checkout.entries) if checkout is not None else None
        found.append(_source(checkouts.NAME, path, entries, record, checkout.describe if checkout is not None else ""))
    for source in found:
        if source.entries is None and source.known is None:
            raise BadInput(
                f"{where.run_toml}: {source.name}: {source.path} is not on this machine, and {record_path(where.run_toml).name} does not "
                "say that it was staged: run `segue stage` where it is"
            )
    return found


def _source(
    name: str, path: Path, entries: Sequence[Member] | None, record: dict[str, Recorded], about: str = ""
) -> Source:
    before = record.get(name)
    if entries is None:
        return Source(name, path, None, before if same_source(before, path) else None)
    state = state_of(entries)
    return Source(
        name, path, tuple(entries), before if before is not None and before.state == state else None, state, about
    )


def _check_sizes(where: Destination, wanted: Sequence[Source]) -> None:
    """BadInput for an archive that is larger than the site brings to a job: better now than after its upload."""
    for source in wanted:
        try:
            where.site.transfer_url(where.staging / INPUTS / f"{source.name}.tar", source.bytes)
        except BadInput as error:
            raise BadInput(f"{where.run_toml}: data: {error}") from None


def limits(where: Destination) -> Limits:
    """The site's and the run's bounds; 0 in a site file: none known."""
    site, budget = where.site.staging, where.spec.budget
    run_bytes = None if budget.gb is None else int(budget.gb * 1e9)
    return Limits(site.bytes or None, site.items or None, run_bytes, budget.items)


def stage(
    where: Destination,
    *,
    with_code: bool,
    dry_run: bool = False,
    temporary: Path | None = None,
    watch: Watch = silent,
) -> Report:
    """Do it. ``temporary``: a directory for archives on their way, instead of one beside run.toml.

    Raises BadInput, CannotConnect, SegueError with one sentence; what was uploaded until then is kept and recorded.
    """
    if where.generated:
        raise BadInput(
            f"{where.run_toml}: is the copy that `segue dag` made, its sources are named from somewhere else: give your own run.toml"
        )
    check_staging_path(where.run_toml, where.staging)  # what no job could be told is not worth an upload
    wanted = sources(where, with_code)
    if not wanted:
        raise BadInput(f"{where.run_toml}: data: nothing to stage: name a `dataset`, `assets` or `code`")
    _check_sizes(where, wanted)
    if where.makes_staging and not dry_run:
        _make(where.staging)
    with opened(where) as place:
        survey = place.survey(where.spec.name)
        if survey.problem == "missing" and where.makes_staging:
            survey = Survey()
        if survey.problem:
            raise unusable(where, place, survey.problem)
        plan = [_Step(source, *_present(place, source, survey, watch)) for source in wanted]
        for step in plan:
            if not step.there and step.source.entries is None:
                raise BadInput(_lost(where, place, step))
        bounds = rooms(survey, limits(where), _occupied(plan))
        needed = _needed(plan, survey)
        short = too_small(bounds, needed)
        if short is not None:
            plan = [replace(step, source=_named(step.source, survey, watch)) for step in plan]
            needed = _needed(plan, survey)
            short = too_small(bounds, needed)
        if short is not None:
            raise SegueError(_no_room(where, place, short, needed, _removable(survey, plan)))
        if dry_run:
            done = [_would(step, survey, watch, place.sends()) for step in plan]
        else:
            done = list(_carry_out(where, place, plan, survey, temporary, watch))
    names = [entry.archive for entry in done]
    return Report(
        place.name,
        tuple(done),
        _after(tightest(bounds), needed),
        _others(survey, plan, names),
        record_path(where.run_toml),
        dry_run,
    )


@dataclass(frozen=True)
class _Step:
    """A source and what staging has of it: ``there`` whole and verified by ``verified``, else ``note`` says what is wrong with it."""

    source: Source
    there: bool
    verified: str = ""
    note: str = ""


def _present(place: Place, source: Source, survey: Survey, watch: Watch) -> tuple[bool, str, str]:
    known = source.known
    if known is None or known.archive not in survey.archives:
        return False, "", ""
    if survey.archives[known.archive] != known.bytes:
        return False, "", f"the one there had {survey.archives[known.archive]} bytes instead of {known.bytes}"
    found = place.digest(known.archive, lambda done: watch(f"verifying {source.name}", done, known.bytes))
    if not found:
        return True, "its size (no sha256sum there)", ""
    if found != known.sha256:
        return False, "", f"the one there was damaged (SHA-256 {found[:16]}…)"
    return True, "size and SHA-256 there", ""


def _occupied(plan: Sequence[_Step]) -> Usage:
    there = [step.source.bytes for step in plan if step.there]
    return Usage(sum(there), len(there))


def _needed(plan: Sequence[_Step], survey: Survey) -> Usage:
    """Bytes and items that staging needs beyond what it has; what arrived of a broken upload is counted there already."""
    total, items = 0, 0
    for step in plan:
        if step.there:
            continue
        known = step.source.known
        arrived = survey.partial.get(known.archive, 0) if known is not None else 0
        total += max(0, step.source.bytes - arrived)
        items += 0 if arrived else 1
    return Usage(total, items)


def _named(source: Source, survey: Survey, watch: Watch) -> Source:
    """With its digest, where a broken upload of it may be what takes the room: only by that its file is told from one of older contents."""
    if source.known is not None or not any(name.startswith(f"{source.name}-") for name in survey.partial):
        return source
    return replace(source, known=_examined(source, watch))


def _after(room: Room | None, needed: Usage) -> Room | None:
    if room is None or room.bytes is None:
        return None
    return replace(
        room, bytes=room.bytes - needed.bytes, items=None if room.items is None else room.items - needed.items
    )


def _others(survey: Survey, plan: Sequence[_Step], names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    own = {*names, *(step.source.known.archive for step in plan if step.source.known is not None)}
    rest = [(name, size) for name, size in survey.archives.items() if name not in own]
    return tuple(sorted(rest, key=lambda entry: entry[1], reverse=True))


def _removable(survey: Survey, plan: Sequence[_Step]) -> list[tuple[str, int]]:
    """What lies in ``_inputs`` and is not of this run, also of uploads that nobody finished, the largest first."""
    own = {step.source.known.archive for step in plan if step.source.known is not None}
    unfinished = [(partial_name(name), size) for name, size in survey.partial.items() if name not in own]
    return sorted([*_others(survey, plan, ()), *unfinished], key=lambda entry: entry[1], reverse=True)


def _lost(where: Destination, place: Place, step: _Step) -> str:
    known = step.source.known
    assert known is not None
    reason = step.note or "it is not there"
    return (
        f"{where.run_toml}: {step.source.name}: {place.name}/{INPUTS}/{known.archive}: {reason}, and {step.source.path} is not on this "
        "machine: run `segue stage` where it is"
    )


def gigabytes(count: int) -> str:
    """For sentences: as quotas count."""
    for unit, name in ((1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def _no_room(where: Destination, place: Place, room: Room, needed: Usage, others: Sequence[tuple[str, int]]) -> str:
    left = []
    if room.bytes is not None:
        left.append(gigabytes(max(0, room.bytes)))
    if room.items is not None:
        left.append(f"{max(0, room.items)} items")
    largest = ", ".join(f"{name} ({gigabytes(size)})" for name, size in others[:3])
    older = f" (in {INPUTS} this run does not use {largest})" if largest else ""
    return (
        f"{where.run_toml}: data: {place.name}: {gigabytes(needed.bytes)} and {needed.items} items must go there, {room.source} leaves "
        f"{' and '.join(left)}: remove what is not needed any more{older}, or ask for a larger quota; nothing was uploaded"
    )


def _would(step: _Step, survey: Survey, watch: Watch, sends: bool) -> Staged:
    source = step.source
    found = source.known or _examined(source, watch)
    there = step.there or (not step.note and survey.archives.get(found.archive) == found.bytes)
    action = "there" if there else "would upload" if sends else "would pack"
    arrived = 0 if there else survey.partial.get(found.archive, 0)
    verified = step.verified or ("its size" if there else "")
    return Staged(source.name, found.archive, found.sha256, found.bytes, action, verified, arrived, 0.0, step.note)


def _examined(source: Source, watch: Watch) -> Recorded:
    assert source.entries is not None
    total = source.bytes
    return examine(
        source.name,
        source.path,
        source.entries,
        {},
        lambda done: watch(f"reading {source.name}", done, total),
        source.about,
    )


def _carry_out(
    where: Destination, place: Place, plan: Sequence[_Step], survey: Survey, temporary: Path | None, watch: Watch
) -> Iterator[Staged]:
    with _working_directory(where, place, plan, temporary) as directory:
        for step in plan:
            began = time.monotonic()
            if step.there:
                assert step.source.known is not None
                done, found = _as_it_is(step), step.source.known
            else:
                done, found = _bring(place, step, survey, directory, watch)
            _record(where, step.source, found, f"{place.name}/{INPUTS}/{found.archive}")
            yield replace(done, seconds=round(time.monotonic() - began, 3))


def _as_it_is(step: _Step) -> Staged:
    known = step.source.known
    assert known is not None
    note = "" if step.source.entries is not None else f"{step.source.path} is not on this machine; the record names it"
    return Staged(step.source.name, known.archive, known.sha256, known.bytes, "there", step.verified, note=note)


def _bring(place: Place, step: _Step, survey: Survey, directory: Path, watch: Watch) -> tuple[Staged, Recorded]:
    source, total = step.source, step.source.bytes
    assert source.entries is not None
    path, packed = write_archive(
        source.entries,
        directory,
        lambda packed: archive_name(source.name, packed.sha256),
        lambda done: watch(f"packing {source.name}", done, total),
    )
    found = Recorded(path.name, packed.sha256, packed.bytes, str(source.path), source.state, "", source.about)
    if place.packs_into is not None:
        return _staged(source, found, "packed", "the digest of what was written", step.note), found
    try:
        if _is_there(place, survey, path.name, packed):
            return _staged(source, found, "there", "size and SHA-256 there", step.note), found
        arrived = survey.partial.get(path.name, 0)
        verified = place.take(path, packed, lambda done: watch(f"uploading {source.name}", done, packed.bytes))
    finally:
        path.unlink(missing_ok=True)  # room for the next
    note = step.note
    return replace(_staged(source, found, "uploaded", verified, note), from_bytes=arrived), found


def _is_there(place: Place, survey: Survey, archive: str, packed: Packed) -> bool:
    """An archive whose digest we only know since it was packed."""
    return survey.archives.get(archive) == packed.bytes and place.digest(archive) == packed.sha256


def _staged(source: Source, found: Recorded, action: str, verified: str, note: str) -> Staged:
    return Staged(source.name, found.archive, found.sha256, found.bytes, action, verified, note=note)


def _record(where: Destination, source: Source, found: Recorded, staged: str) -> None:
    path = record_path(where.run_toml)
    about = source.about or found.about
    write_record(path, {**read_record(path), source.name: replace(found, staged=staged, about=about)})


@contextmanager
def _working_directory(
    where: Destination, place: Place, plan: Sequence[_Step], temporary: Path | None
) -> Iterator[Path]:
    """Where archives are packed: in staging itself, or in a directory of ours with room for the largest, which is emptied in the end."""
    if place.packs_into is not None:
        yield place.packs_into
        return
    todo = [step.source for step in plan if not step.there]
    if not todo:
        yield where.run_toml.parent
        return
    directory = (absolute(temporary) if temporary is not None else where.run_toml.parent) / _WORK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise SegueError(
            f"{directory}: cannot be made ({error.strerror}): archives are packed there before they are sent; give another with --temporary"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SegueError(
                f"{directory}: another `segue stage` is at work there: wait for it, or give another with --temporary"
            ) from None
        try:
            for leftover in directory.iterdir():  # of one that was killed
                if leftover.name != "lock":
                    leftover.unlink()
            largest = max(todo, key=lambda source: source.bytes)
            free = shutil.disk_usage(directory).free
            if largest.bytes > free:
                raise SegueError(
                    f"{directory}: {gigabytes(largest.bytes)} are needed to pack {largest.name} before it is sent, {gigabytes(free)} are free: "
                    "make room, or give a directory with --temporary"
                )
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _make(staging: Path) -> None:
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegueError(f"{staging}: cannot be made: {error.strerror}") from error


def here_is_access_point(where: Destination) -> bool:
    """Whether `segue dag` is run on this machine: then the code travels with each job from here and need not lie in staging."""
    return where.site.is_here() or not (where.site.access_points or where.host)
