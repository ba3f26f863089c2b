"""Finding the log of an attempt: kept ones in staging (compressed, evicted attempts too), the newest of each node in the workflow
directory, a running one through condor_tail.
"""

from __future__ import annotations

import codecs
import gzip
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.errors import BadInput, SegueError
from dagman.attempts import Attempt
from dagman.history import SEGMENT
from dagman.observed import read_history
from dagman.runs import RunPlace
from dagman.workflow import segment_name

_KEPT = re.compile(r"(\d{6,})\.log\.gz")
_PIECE = 1 << 16
_LOOK = 1 << 16
_LOOK_EVERY_S = 3.0
_MARK = 64


@dataclass(frozen=True)
class Log:
    """One log file; ``epoch`` is None for a node's stdout in the workflow directory."""

    path: Path
    node: str
    epoch: int | None


def list_logs(place: RunPlace) -> list[Log]:
    """Kept attempts by epoch, then the nodes' own output files."""
    store = place.store
    nodes = {attempt.epoch: segment.node for segment in read_history(place).segments for attempt in segment.attempts}
    found = []
    if (store / "logs").is_dir():
        for path in sorted((store / "logs").iterdir()):
            match = _KEPT.fullmatch(path.name)
            if match is not None:
                found.append(Log(path, nodes.get(int(match[1]), "segment"), int(match[1])))
    for path in sorted((place.directory / "logs").glob("*.out")):
        found.append(Log(path, path.stem.replace("-", "_"), None))
    return found


def _choose(place: RunPlace, attempt: int | None, segment: int | None) -> list[Path]:
    logs = list_logs(place)
    kept = [log for log in logs if log.epoch is not None]
    if attempt is not None:
        return _of_epoch(place, attempt, kept)
    if segment is not None:
        return _of_segment(place, segment, kept)
    # The newest attempt that has ended; before there is one, whatever another node wrote.
    ended = [(a.began, s.number) for s in read_history(place).segments for a in s.attempts if a.ended is not None]
    if ended:
        return _of_segment(place, max(ended)[1], kept)
    if kept:
        return [kept[-1].path]
    written = [log for log in logs if log.path.stat().st_size]
    if not written:
        raise BadInput(f"{place.directory}: nothing has run yet: segue status {shlex.quote(place.said)}")
    return _both(max(written, key=lambda log: log.path.stat().st_mtime).path)


def _of_epoch(place: RunPlace, epoch: int, kept: list[Log]) -> list[Path]:
    for log in kept:
        if log.epoch == epoch:
            return [log.path]
    # Killed before it could keep anything: what HTCondor brought back is of a segment's last attempt.
    for segment in read_history(place).segments:
        for one in segment.attempts:
            if one.epoch != epoch:
                continue
            out = _output(place, segment.number)
            if one is segment.attempts[-1] and one.ended is not None and out.is_file():
                return _both(out)
            if one.ended is None:
                raise BadInput(f"--attempt {epoch}: it is running: segue logs {shlex.quote(place.said)} --follow")
            raise BadInput(
                f"--attempt {epoch}: there is no log of it: {one.outcome} before one was kept"
                + (f" ({one.reason})" if one.reason else "")
            )
    there = ", ".join(str(log.epoch) for log in kept)
    raise BadInput(f"--attempt {epoch}: no such attempt is known; kept logs: {there or 'none yet'}")


def _of_segment(place: RunPlace, segment: int, kept: list[Log]) -> list[Path]:
    out = _output(place, segment)
    epochs = [a.epoch for s in read_history(place).segments if s.number == segment for a in s.attempts if a.ended]
    mine = {log.epoch: log.path for log in kept if log.node == segment_name(segment)}
    if mine and (not epochs or epochs[-1] in mine or not out.is_file()):
        # All that the agent and the trainer said; HTCondor brings back the last attempt's two halves.
        return [mine[epochs[-1]] if epochs and epochs[-1] in mine else mine[max(epoch for epoch in mine if epoch)]]
    if not out.is_file():
        raise BadInput(
            f"--segment {segment}: no log of that segment (it has not ended yet, or was skipped): segue status {shlex.quote(place.said)}"
        )
    return _both(out)


def _output(place: RunPlace, segment: int) -> Path:
    return place.directory / "logs" / f"segment-{segment:03d}.out"


def _both(out: Path) -> list[Path]:
    error = out.with_suffix(".err")
    return [out, error] if error.is_file() and error.stat().st_size else [out]


def read_log(place: RunPlace, attempt: int | None = None, segment: int | None = None) -> Iterator[str]:
    """The text of one attempt's log, in pieces. BadInput when there is none."""
    for path in _choose(place, attempt, segment):
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield piece.decode("utf-8", errors="replace")
        except (OSError, EOFError) as error:
            raise SegueError(f"{path}: cannot be read to its end: {error}") from error


def told(place: RunPlace, segment: int | None = None) -> str | None:
    """One line on what `read_log` shows when no attempt was named, where that is not of the newest one; None where it is."""
    shown = _choose(place, None, segment)[0]
    attempts = [
        (one.began, found.number, one)
        for found in read_history(place).segments
        if segment in (None, found.number)
        for one in found.attempts
    ]
    of, epoch = _whose(shown, [(number, one) for _, number, one in attempts])
    if not attempts:
        return None if epoch is not None else f"{of}; no segment has run yet"
    _, number, newest = max(attempts, key=lambda found: found[:2])
    name = _name(newest.epoch, number)
    if newest.outcome == "running":
        # Anywhere else the command would be refused.
        where = "" if shutil.which("condor_tail") else "   # on the access point"
        return f"{of}; {name} is running: segue logs {shlex.quote(place.said)} -f{where}"
    if epoch is not None and newest.epoch is not None and epoch != newest.epoch:
        return f"{of}; {name} left no log ({newest.outcome})"
    return None


def _name(epoch: int | None, segment: int) -> str:
    return f"an attempt of {segment_name(segment)}" if epoch is None else f"attempt {epoch}"


def _whose(shown: Path, attempts: list[tuple[int, Attempt]]) -> tuple[str, int | None]:
    """What a log is of, in words, and the attempt's epoch where it is one and known."""
    kept = _KEPT.fullmatch(shown.name)
    if kept is not None:
        return f"attempt {int(kept[1])}", int(kept[1])
    node = shown.stem.replace("-", "_")
    match = SEGMENT.fullmatch(node)
    if match is None:
        return f"node {node}", None
    # HTCondor brings back that of the last one.
    ended = [one.epoch for number, one in attempts if number == int(match[1]) and one.ended is not None]
    epoch = ended[-1] if ended else None
    return _name(epoch, int(match[1])), epoch


def newest_epoch(place: RunPlace) -> int:
    """The newest attempt's, as its claim in the store says; 0 when none can be seen."""
    claims = (place.store / "epochs").glob("[0-9]*.json")
    return max((int(path.stem) for path in claims if path.stem.isdecimal()), default=0)


def follow_running(place: RunPlace, attempt: int | None = None, segment: int | None = None) -> Iterator[str]:
    """The output of the running attempt as it grows, through condor_tail; ends when the attempt ends.

    When none runs, or when ``attempt`` or ``segment`` name another one, what was kept of that.
    """
    history = read_history(place)
    running = [
        one
        for found in history.segments
        for one in found.attempts
        if one.outcome == "running" and segment in (None, found.number)
    ]
    if not running or (attempt is not None and attempt != newest_epoch(place)):
        yield from read_log(place, attempt, segment)
        return
    program = shutil.which("condor_tail")
    if program is None:
        raise SegueError(
            "condor_tail is not on PATH: follow a running attempt on the access point (or in `segue pool run -- …`)"
        )
    yield from _followed(program, running[-1].job)


def _followed(program: str, job: str) -> Iterator[str]:
    """What a job writes, by looking at the end of its output again and again: condor_tail's own -follow repeats blocks (seen in 25.14)."""
    seen = b""
    fails = 0
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        done = subprocess.run([program, "-maxbytes", str(_LOOK), job], capture_output=True, check=False)
        if done.returncode == 0:
            fails = 0
            new = fresh_part(seen, done.stdout)
            seen = (seen + new)[-_LOOK:]
            if new:
                yield decoder.decode(new)
        else:
            # Once may be a starter that begins or a transfer; twice is the end of the attempt.
            fails += 1
            if fails > 1:
                if not seen:
                    raise SegueError(f"condor_tail: {done.stderr.decode(errors='replace').strip() or 'no output'}")
                return
        time.sleep(_LOOK_EVERY_S)


def fresh_part(seen: bytes, end: bytes) -> bytes:
    """What ``end``, the last bytes of a growing file, has beyond ``seen``, the last bytes that were read before.

    The longest overlap counts; without one, more was written in between than is looked at, and all of ``end`` is new.
    """
    if end.startswith(seen):
        return end[len(seen) :]
    mark = seen[-_MARK:]
    place = end.rfind(mark)
    while place >= 0:
        until = place + len(mark)
        if seen.endswith(end[:until]) or end[:until].endswith(seen):
            return end[until:]
        place = end.rfind(mark, 0, until - 1)
    return end
