"""How an attempt ends, as sentences: pure functions from what happened to an End, and the judgement on a crash."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent import exit_codes
from agent.attempt import Attempt, End
from agent.errand import Outcome
from agent.failures import MOST_RESTARTS, OF_THE_MACHINE, Failure, Restarts, Verdict, classify
from agent.hang import Hang, memory_kills
from agent.loop import steady
from agent.training import Training

if TYPE_CHECKING:
    from agent.publishing import Publisher

_ELSEWHERE = (
    "StoreUnavailable",
    "NoGoodCommit",
    "NoRoom",
    "Hung",
    "Killed",
    "OSError",
    "InputMissing",
    "UnpackFailed",
    "DamagedOnTheWay",
    "DigestMismatch",
)
"""What a disk, a mount, a transfer or a machine that reads badly did; an OSError of any kind has that name (errand.py)."""
_NO_PROGRAM = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.E2BIG)
"""The system's words for a program that is no program; whatever else it says, the machine is at fault."""
_HOPELESS = 2.0
_MOST_NAMES = 8


def complete(step: int, steps: int) -> End:
    """The newest commit is at or beyond the run's last step."""
    return End("complete", exit_codes.OK, f"the run is complete: step {step} of {steps}")


def superseded(attempt: Attempt) -> End:
    """A newer claim owns the run. When it is this job's own (lost, and started elsewhere) nobody reads the exit code. When it is another's,
    two workflows would take the run from each other segment by segment until both are used up, so this one's ends.
    """
    machine, job = attempt.superseded_by
    if not machine or job == attempt.place.job_id:
        return End("superseded", exit_codes.OK, attempt.superseded)
    who = f"job {job} on {machine}" if job else f"an attempt on {machine}"
    return End(
        "superseded",
        exit_codes.PERMANENT,
        f"another workflow runs this run: {who} has taken it ({attempt.superseded}); remove one of the two, or give it another run name",
    )


def cannot_open(outcome: Outcome) -> End:
    """Claim, restore or inputs failed, and no newer attempt is the reason."""
    if outcome.error in _ELSEWHERE:
        return End("temporary", exit_codes.TEMPORARY, outcome.message)
    if not outcome.foreseen:  # memory or processes lack here, or it is a mistake of ours: the retries are bounded
        reason = f"the run could not be opened: {outcome.error}: {outcome.message}"
        return End("temporary", exit_codes.TEMPORARY, reason)
    return End("failed", exit_codes.PERMANENT, outcome.message)


def left(attempt: Attempt, committed: int) -> End:
    """A signal ended the attempt."""
    what = f"step {committed} is published" if committed else "nothing is published yet"
    return End("temporary", exit_codes.TEMPORARY, f"{_told(attempt)}; {what}")


def left_early(attempt: Attempt) -> End:
    """The same, before the run was opened: what is published may not have been looked at."""
    if attempt.handover.commit:
        return left(attempt, attempt.handover.step)
    reason = f"{_told(attempt)}, before the run was opened; what is published stays"
    return End("temporary", exit_codes.TEMPORARY, reason)


def _told(attempt: Attempt) -> str:
    return "told twice to leave" if attempt.leave_now else "told to leave (evicted, held or removed)"


def too_short(attempt: Attempt) -> str:
    """Why no step fits into this class, with the measured times."""
    pace = attempt.experience.pace
    return (
        f"a segment of class {attempt.queue_class} ({attempt.limit_s:.0f} s) is shorter than start-up ({pace.startup_s:.1f} s), "
        f"one step ({pace.step_s:.2f} s), one save ({pace.save_s:.1f} s) and one publish ({pace.publish_s:.1f} s) with "
        f"the margin ({attempt.deadline.margin_s:.0f} s): choose a longer class or save more often"
    )


def _needed_s(attempt: Attempt) -> float:
    """The shortest segment that brings a step."""
    pace = attempt.experience.pace
    return pace.startup_s + pace.step_s + pace.save_s + pace.publish_s + attempt.deadline.margin_s


def _fruitless(attempt: Attempt, text: str) -> End:
    """No checkpoint, and nothing failed: the time was too short. Once, that may be the machine or a wrong guess of the pace, and the next
    attempt plans with what was measured in this one; twice from the same step, or by far too short, it would be so for ever.
    """
    attempt.fruitless = True
    if attempt.fruitless_before or _needed_s(attempt) > _HOPELESS * attempt.limit_s:
        return End("failed", exit_codes.PERMANENT, text)
    return End("temporary", exit_codes.TEMPORARY, f"{text}; it is tried once more, with the times measured here")


def no_room_for_a_step(attempt: Attempt) -> End:
    """Before the first start: not even one step fits; because opening took most of the time, or because the class is too short."""
    spent = steady() - attempt.place.began
    if spent > attempt.limit_s / 2:
        reason = f"claim, restore and inputs took {spent:.0f} of {attempt.limit_s:.0f} s: staging is slow here"
        return End("temporary", exit_codes.TEMPORARY, reason)
    return _fruitless(attempt, too_short(attempt))


def never_found(attempt: Attempt, training: Training, root: Path) -> End | None:
    """With nothing finished below ``root``: an End when the trainer must have saved all the same, so that no retry would find anything.

    It must have when it ended as it was told to, or well when it made more steps than lie between two saves. At a limit two such
    intervals are needed, because the first save may be under way.
    """
    start, ended = training.start, training.ended
    made = training.step - start.resume_step
    if ended is None or made <= 0 or start.resume_step != attempt.restored_step:
        return None
    interval = start.save_interval or attempt.job.save_interval
    if ended.exit_code == 0 and not training.stopped_by_agent:
        as_told = training.step >= start.last_step or training.stop_asked is not None
        must = as_told or (interval is not None and made > interval)
    else:
        must = interval is not None and made >= 2 * interval
    if not must:
        return None
    return End(
        "failed",
        exit_codes.PERMANENT,
        f"no finished checkpoint in {root} after {made} steps; there {lying(root)}: let the trainer save there, {_form(attempt)}",
    )


def _form(attempt: Attempt) -> str:
    return f"in the form that the recipe {attempt.job.recipe} knows, or say in [trainer.options] of run.toml where and how it saves (docs/recipes.md)"


def lying(root: Path) -> str:
    """What is in a directory, for a sentence."""
    try:
        names = sorted((path.name for path in root.iterdir()), key=lambda name: (len(name), name))
    except OSError:
        names = []
    if not names:
        return "is nothing"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"are: {', '.join(names[:_MOST_NAMES])}{more}"


def in_place(attempt: Attempt, publisher: Publisher) -> End:
    """Nothing tells when a checkpoint of this trainer is finished, so none can be relied on that is published while it runs."""
    from agent.store.names import commit_name

    handover = attempt.handover
    if handover.step in publisher.torn and handover.step != attempt.restored_step:
        restored = (handover.restored or {}).get("commit")
        handover.step = publisher.committed_step
        earlier = commit_name(handover.step, attempt.epoch)
        handover.commit = restored if handover.step == attempt.restored_step else earlier
    aside = [name for name in publisher.torn.values() if name]
    handover.commits = [one for one in handover.commits if one["step"] not in publisher.torn]
    told = f" (its commit is set aside as {', '.join(aside)})" if aside else ""
    if publisher.stuck:
        stuck = ", ".join(commit_name(step, attempt.epoch) for step in publisher.stuck)
        told += f" (move {stuck} out of the run's checkpoints/ by hand: that could not be done here)"
    return End(
        "failed",
        exit_codes.PERMANENT,
        f"the trainer writes its checkpoints in place: {publisher.in_place}{told}; let it write under another name and rename when it is done, "
        f'or say in [trainer.options] of run.toml which file comes last: done = "marker", marker = "…" (docs/recipes.md)',
    )


def time_used(attempt: Attempt, committed: int, made: int, crashes: int, reason: str, root: Path) -> End:
    """The planned end; a segment that brought nothing must not be followed by others that bring nothing either."""
    if committed > attempt.restored_step:
        return End("time-used", exit_codes.OK, f"step {committed} of {attempt.job.steps} is published; {reason}")
    if crashes:
        return End(
            "temporary",
            exit_codes.TEMPORARY,
            f"no checkpoint came out of this attempt, the trainer failed {crashes} times; {reason}{attempt.began_anew}",
        )
    steps = f"the trainer made {made} steps" if made > 0 else "the trainer reported no step"
    if _needed_s(attempt) > attempt.limit_s:
        text = f"no checkpoint came out of this segment ({steps}): {too_short(attempt)}"
    else:
        text = (
            f"no checkpoint came out of this segment of {attempt.limit_s:.0f} s: {steps} and finished no checkpoint in {root}; there {lying(root)}: "
            f"let it save there more often, {_form(attempt)}, or choose a longer class"
        )
    return _fruitless(attempt, text + attempt.began_anew)


def unpublished(step: int, trouble: Outcome | None) -> End:
    """The last checkpoint could not be brought to staging in time."""
    why = trouble.message if trouble is not None else "staging did not take it in time"
    reason = f"step {step} could not be published: {why}"
    if trouble is not None and trouble.error in ("NoRoom", "RunGone", "BadCheckpoint"):
        return End("failed", exit_codes.PERMANENT, reason)
    return End("temporary", exit_codes.TEMPORARY, reason)


def _unsaved(training: Training) -> str:
    """Of a trainer that came to its last step and ended well."""
    start = training.start
    root = training.recipe.checkpoint_root(start)
    return (
        f"the trainer ended well at step {training.step}, and there is no finished checkpoint of step {start.last_step} in {root}; "
        f"there {lying(root)}: let it save at its last step too (SEGUE_LAST_STEP; docs/recipes.md)"
    )


def crashed(attempt: Attempt, training: Training, hang: Hang, restarts: Restarts) -> End | None:
    """Book a crash; an End when it must not be tried again here."""
    ended = training.ended
    assert ended is not None
    lines = attempt.log.last_lines()
    if training.keeper.problem and training.keeper.problem_errno not in _NO_PROGRAM:
        sentence = (
            f"the trainer cannot be started on this machine: {training.keeper.problem}; the segment goes on elsewhere"
        )
        failure = Failure("node-fault", Verdict.ELSEWHERE, sentence)
    elif training.keeper.problem:
        sentence = f"the trainer cannot be started: {training.keeper.problem}; check python and args in run.toml"
        failure = Failure("not-found", Verdict.NEVER, sentence)
    else:
        failure = classify(
            ended,
            lines,
            stepped=training.clock.first is not None,
            resumed=training.start.resume_step > 0,
            out_of_memory=memory_kills() > hang.memory_kills,
            hung=hang.hung,
        )
    if failure.kind == "early-end" and training.step >= training.start.last_step:
        failure = replace(failure, sentence=_unsaved(training))
    ran_before = (
        attempt.restored_step > 0 and not attempt.stepped
    )  # what brought it so far is the same, this machine is not
    if ran_before and failure.kind in OF_THE_MACHINE:
        failure = replace(failure, verdict=Verdict.ELSEWHERE)
    # Once, W&B is no reason to count: the next start writes offline (companions.py), and a training must not end for its sake.
    excused = failure.kind == "wandb" and attempt.job.wandb is not None and not attempt.wandb_failed
    attempt.wandb_failed |= failure.kind == "wandb"
    if not excused:
        restarts.note(training.step)
    attempt.handover.failure = {
        "class": failure.kind,
        "exit_code": ended.exit_code,
        "signal": ended.signal,
        "step": training.step,
    }
    attempt.handover.last_lines = lines or attempt.handover.last_lines
    where = f"step {training.step}"
    attempt.warn(
        f"start {attempt.handover.starts} failed after {where}: {failure.kind}: {failure.sentence} ({ended.text})"
    )
    failure = replace(failure, sentence=f"{failure.sentence}{attempt.began_anew}")
    if failure.verdict is Verdict.NEVER:
        return End("failed", exit_codes.PERMANENT, f"{failure.sentence} (after {where}, {ended.text})")
    reason = f"{failure.sentence} (after {where} on {attempt.place.machine}, {ended.text})"
    if restarts.exhausted and ran_before:
        reason = f"no start on {attempt.place.machine} made a step, the run came to step {attempt.restored_step} before ({failure.kind}): {reason}"
        return End("temporary", exit_codes.TEMPORARY, reason)
    if restarts.exhausted:
        named = f"after step {restarts.step}" + (
            "" if failure.kind == "early-end" else f", in step {restarts.step + 1},"
        )
        when = named if restarts.step > 0 else "before its first step"
        text = f"no progress in {restarts.same} starts: the trainer ends {when} each time ({failure.kind}): {failure.sentence}"
        return End("failed", exit_codes.PERMANENT, text)
    if failure.verdict is Verdict.ELSEWHERE or restarts.total >= MOST_RESTARTS:
        return End("temporary", exit_codes.TEMPORARY, reason)
    return None
