"""From job.json to the exit code: the frame around one attempt. Nothing that was started survives it, and a handover is always left."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent import errand, exit_codes
from agent.attempt import Attempt, End
from agent.config import JobConfig
from agent.deadline import find_deadline
from agent.errors import SegueError
from agent.handover import Handover, known_commit, reserve, write
from agent.loop import Loop, steady
from agent.opening import OpeningErrand
from agent.place import look_around
from agent.processes import become_subreaper, kill_below, reap
from agent.recipes import recipe as recipe_named
from agent.staging import Staging, store_root

if TYPE_CHECKING:
    from agent.segment import Segment


def run(job: JobConfig, segment: int, queue_class: str, handover_path: Path) -> int:
    """Run one attempt; returns the process's exit code (agent.exit_codes). Raises SegueError for a job that cannot begin at all."""
    _have_descriptors()
    place = look_around()
    deadline = find_deadline(job, queue_class, place)
    loop = Loop()
    try:
        try:
            os.chdir(place.scratch)
            attempt = Attempt(job, segment, queue_class, place, deadline, loop)
        except OSError as error:
            begun = Handover(job.run, segment, queue_class, job.steps, machine=place.machine, slot=place.slot)
            begun.job_id, begun.began = place.job_id, place.began
            return _no_scratch(begun, place.scratch, error, handover_path)
        reserve(handover_path)
        loop.on_signal = lambda number: _signalled(attempt, number)
        loop.on_child = _reaped
        segment_run: Segment | None = None
        try:
            _inherit_orphans()
            recipe = recipe_named(job.recipe)
            recipe.configure(job)
            staging = Staging(job, store_root(job, place), segment, place, known_commit(handover_path))
            opening = OpeningErrand(attempt, recipe, staging)
            from agent.segment import Segment  # while the errand works

            segment_run = Segment(attempt, recipe, staging, opening)
            end = segment_run.whole()
        except SegueError as error:
            end = End("failed", exit_codes.PERMANENT, str(error))
        except Exception as error:  # a fault of the agent's own must not look like the run's end
            attempt.log.last.extend(_trace(error))
            end = End("temporary", exit_codes.TEMPORARY, f"the agent itself failed: {type(error).__name__}: {error}")
        code = _finish(attempt, end, handover_path)
        if segment_run is not None:
            _close(segment_run, end)
        return code
    finally:
        kill_below(os.getpid(), seconds=5.0)
        loop.close()
        errand.running.clear()


def _inherit_orphans() -> None:
    """What the trainer leaves behind comes to us. SegueError where Python lacks the means."""
    try:
        become_subreaper()
    except ImportError as error:
        raise SegueError(
            f"{sys.executable}: this Python has no ctypes ({error}), and the agent needs it: build it where libffi is, or let another python3 come "
            "first in the image's PATH (docs/images.md)"
        ) from error


def _have_descriptors() -> None:
    """Where stdin, stdout or stderr is closed, nothing of ours may get its number: what the trainer says would be written there."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(fd)


def _no_scratch(handover: Handover, scratch: Path, error: OSError, path: Path) -> int:
    """The end of an attempt that has no room for its log, so that nothing can begin; another machine's disk may be better."""
    handover.state, handover.exit_code = "temporary", exit_codes.TEMPORARY
    handover.reason = f"the scratch directory {scratch} cannot be used ({error}); trying again, if possible elsewhere"
    handover.ended = time.time()
    print(f"segue: {handover.state}: {handover.reason}", file=sys.stderr)
    with suppress(OSError, ValueError):
        write(handover, path)
    return exit_codes.TEMPORARY


def _reaped() -> None:
    """Orphans that this sub-reaper inherited, errands and keepers; the pipes tell how those ended."""
    reap()


def _trace(error: Exception) -> list[str]:
    import traceback

    return "".join(traceback.format_exception(error)).splitlines()


def _signalled(attempt: Attempt, number: int) -> None:
    """HTCondor's SIGTERM, or a person's: the first gives notice, the second ends it now."""
    name = signal.Signals(number).name
    if attempt.leaving:
        attempt.say(f"{name} again: leaving now")
        attempt.leave_now = True
        attempt.on_leaving()
        return
    attempt.leaving_until = steady() + attempt.place.vacate_s
    attempt.say(f"{name}: leaving within {attempt.place.vacate_s:.0f} s")
    attempt.on_leaving()


def _close(segment_run: Segment, end: End) -> None:
    """Nothing that fails when the end is written down changes it: a complete run's job must not fail for the keeping of its log."""
    try:
        segment_run.close(end)
    except Exception as error:
        segment_run.attempt.say(f"closing the attempt failed ({type(error).__name__}: {error}); how it ended stays")


def _finish(attempt: Attempt, end: End, path: Path) -> int:
    """Write the handover and say the end."""
    handover = attempt.handover
    handover.state, handover.exit_code, handover.reason = end.state, end.exit_code, end.reason
    handover.ended = time.time()
    handover.pace = attempt.carried_pace()
    handover.goodput = attempt.goodput.until_now()
    if end.exit_code != exit_codes.OK and not handover.last_lines:
        handover.last_lines = list(attempt.log.last)
    attempt.say(f"{end.state}: {end.reason}")
    try:
        write(handover, path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        attempt.say(f"{path}: the handover cannot be written ({why}): is the scratch disk full?")
        return end.exit_code or exit_codes.TEMPORARY
    return end.exit_code
