"""Who owns a run: one claim per attempt, made exclusively; its number is the epoch (invariants I4 and I8).

No lock, no clock: a hard link to a fixed name can be made once, and the link count says who made it, even where a network file
system repeats a request whose answer was lost.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agent.store import names
from agent.store.errors import FingerprintChanged, NewerFormat, StoreError, StoreUnavailable
from agent.store.fs import FileSystem, read_file, write_all
from agent.store.manifest import FORMAT

CLAIMS_KEPT = 3
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_ROUNDS = 1000


@dataclass(frozen=True)
class Claimant:
    """Who asks: the machine, HTCondor's job id (empty outside HTCondor), the segment's number."""

    machine: str = ""
    job: str = ""
    segment: int = 0


@dataclass(frozen=True)
class Claim:
    """A won claim. ``token`` tells it from another attempt's claim of the same number."""

    epoch: int
    token: str


@dataclass(frozen=True)
class ClaimRecord:
    """A claim as it lies in ``epochs/``; ``began`` in Unix seconds, ``accepted`` the deliberate changes so far."""

    epoch: int
    token: str
    machine: str = ""
    job: str = ""
    segment: int = 0
    began: float = 0.0
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    accepted: tuple[Mapping[str, Any], ...] = ()

    def encode(self) -> bytes:
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode()


def epochs_in(fs: FileSystem, root: str) -> list[int]:
    """All claimed epochs, ascending; none when the run does not exist yet."""
    try:
        found = fs.names(f"{root}/{names.EPOCHS}")
    except FileNotFoundError:
        return []
    return sorted(epoch for epoch in map(names.parse_claim, found) if epoch is not None)


def highest_epoch(fs: FileSystem, root: str) -> int:
    """The epoch that owns the run, 0 when nobody has claimed it."""
    return max(epochs_in(fs, root), default=0)


def read_record(fs: FileSystem, root: str, epoch: int) -> ClaimRecord | None:
    """A claim's record; None when it is damaged or gone. Raises NewerFormat."""
    fields = _fields(fs, f"{root}/{names.EPOCHS}/{names.claim_name(epoch)}")
    if fields is None:
        return None
    try:
        return ClaimRecord(
            epoch,
            str(fields["token"]),
            str(fields.get("machine", "")),
            str(fields.get("job", "")),
            int(fields.get("segment", 0)),
            float(fields.get("began", 0.0)),
            {str(key): str(value) for key, value in fields["fingerprint"].items()},
            tuple(fields.get("accepted", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _fields(fs: FileSystem, path: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(read_file(fs, path))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    found = fields.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise NewerFormat(f"{path}: written in format {found}, this segue knows {FORMAT}: use a newer segue")
    return fields


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[tuple[str, str | None, str | None]]:
    """Fields that the older run recorded and that are not the same now, as (field, before, now)."""
    return [(key, before[key], now.get(key)) for key in sorted(before) if now.get(key) != before[key]]


def make_claim(
    fs: FileSystem,
    root: str,
    claimant: Claimant,
    fingerprint: Mapping[str, str],
    accept: Sequence[str],
    clock: Callable[[], float],
    new_token: Callable[[], str],
    highest_commit: Callable[[], int],
) -> Claim:
    """Claim the next epoch. Raises FingerprintChanged, NewerFormat, OSError; StoreUnavailable when it never wins."""
    taken = 0
    for _ in range(_ROUNDS):
        before, accepted, newest = _known(fs, root, taken)
        epoch = max(newest, highest_commit()) + 1
        changed = differences(before, fingerprint)
        refused = [one for one in changed if one[0] not in accept]
        if refused:
            raise FingerprintChanged(Path(root).name, refused)
        merged = {**before, **fingerprint}
        for name, _was, now in changed:
            if now is None:
                del merged[name]
        record = ClaimRecord(
            epoch,
            new_token(),
            claimant.machine,
            claimant.job,
            claimant.segment,
            clock(),
            merged,
            (*accepted, *({"epoch": epoch, "field": one[0], "before": one[1], "now": one[2]} for one in changed)),
        )
        if _win(fs, root, record):
            _write_run_file(fs, root, record, clock())
            if _still_there(fs, root, newest):
                return Claim(record.epoch, record.token)
        taken = epoch
    raise StoreUnavailable(
        f"{root}: no epoch could be claimed in {_ROUNDS} rounds; the file system shows no exclusive creation"
    )


def _known(fs: FileSystem, root: str, taken: int) -> tuple[Mapping[str, str], tuple[Mapping[str, Any], ...], int]:
    """(fingerprint, accepted changes, highest epoch) as the newest readable claim has them, or run.json.

    ``taken``: an epoch known to be claimed (0: none), whether or not a listing that lags behind shows it.
    """
    epochs = sorted({*epochs_in(fs, root), *[taken] * bool(taken)})
    for epoch in reversed(epochs):
        record = read_record(fs, root, epoch)
        if record is not None:
            return record.fingerprint, record.accepted, epochs[-1]
    return _first_fingerprint(fs, f"{root}/{names.RUN_FILE}"), (), max(epochs, default=0)


def _first_fingerprint(fs: FileSystem, path: str) -> Mapping[str, str]:
    """What run.json says, empty when there is none. One that is there was written whole, so what cannot be read was damaged."""
    known = (_fields(fs, path) or {}).get("fingerprint")
    if isinstance(known, dict):
        return {str(key): str(value) for key, value in known.items()}
    try:
        fs.stat(path)
    except FileNotFoundError:
        return {}
    raise StoreError(
        f"{path}: it is damaged and no claim can be read, so nothing tells the configuration that the run was begun with; put it back, "
        "or remove it if the run shall go on under this one"
    )


def _still_there(fs: FileSystem, root: str, newest: int) -> bool:
    """Whether the claim below the one that was won has not been swept: claims go oldest first, so only then may the number have been
    claimed and swept before, while this claimant slept.
    """
    if newest:
        try:
            fs.stat(f"{root}/{names.EPOCHS}/{names.claim_name(newest)}")
        except FileNotFoundError:
            return False
    return True


def _write_temporary(fs: FileSystem, path: str, data: bytes) -> None:
    fd = fs.create(path)
    try:
        write_all(fs, fd, data, 0)
        fs.sync(fd)
    finally:
        fs.close(fd)


def _win(fs: FileSystem, root: str, record: ClaimRecord) -> bool:
    directory = f"{root}/{names.EPOCHS}"
    final = f"{directory}/{names.claim_name(record.epoch)}"
    temporary = f"{directory}/{names.claim_temporary_name(record.epoch, record.token)}"
    try:
        _write_temporary(fs, temporary, record.encode())
        won = link_exclusively(fs, root, temporary, final, record)
    except BaseException:
        with suppress(OSError):
            fs.unlink(temporary)
        raise
    with suppress(FileNotFoundError):
        fs.unlink(temporary)
    fs.sync_directory(directory)
    return won


def link_exclusively(fs: FileSystem, root: str, temporary: str, final: str, record: ClaimRecord) -> bool:
    """Whether the claim now stands under its final name: the link count decides, not the return code of link(2). Where it is not 2, the
    token: some file systems (sshfs) show a count of 1 whatever happens.
    """
    failure: OSError | None = None
    try:
        fs.link(temporary, final)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return _create_exclusively(fs, root, final, record)
        failure = error
    gone = False
    try:
        if fs.stat(temporary).links == 2:
            return True
    except FileNotFoundError:
        gone = True
    found = read_record(fs, root, record.epoch)
    if found is not None and found.token == record.token:
        return True
    if failure is not None and failure.errno != errno.EEXIST and not gone:
        raise failure
    return False


def _create_exclusively(fs: FileSystem, root: str, final: str, record: ClaimRecord) -> bool:
    """Without hard links: creation, which may be less exclusive than it says, and then whose token is there."""
    try:
        _write_temporary(fs, final, record.encode())
    except FileExistsError:
        return False
    found = read_record(fs, root, record.epoch)
    return found is not None and found.token == record.token


def _write_run_file(fs: FileSystem, root: str, record: ClaimRecord, now: float) -> None:
    """run.json says what the run began with; the first claim writes it, once."""
    path = f"{root}/{names.RUN_FILE}"
    try:
        fs.stat(path)
        return
    except FileNotFoundError:
        pass
    temporary = f"{root}/{names.run_temporary_name(record.epoch, record.token)}"
    fields = {"format": FORMAT, "run": Path(root).name, "created": now, "fingerprint": dict(record.fingerprint)}
    try:
        _write_temporary(fs, temporary, (json.dumps(fields, indent=1) + "\n").encode())
        try:
            fs.link(temporary, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            fs.rename(temporary, path)
    finally:
        with suppress(OSError):
            fs.unlink(temporary)
    fs.sync_directory(root)


def require_own(claim: Claim, highest: int) -> None:
    """Raise Superseded when a higher epoch owns the run."""
    if highest > claim.epoch:
        from agent.store.errors import Superseded

        raise Superseded(claim.epoch, highest)


def heartbeat(fs: FileSystem, root: str, claim: Claim) -> None:
    """Show life by the claim's modification time: no item, no data."""
    try:
        fs.touch(f"{root}/{names.EPOCHS}/{names.claim_name(claim.epoch)}")
    except FileNotFoundError as error:
        raise StoreError(
            f"{root}: the claim of epoch {claim.epoch} is gone; was the run's directory removed?"
        ) from error
