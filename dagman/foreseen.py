"""What staging already holds of a run, and what follows for submitting it: a changed configuration, steps that are reached.

Told from names, claims and remembered digests, so that `segue plan` and `segue status` can say it at once; the agent decides, at each claim.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from agent.config import STORE_NAME, InputArchive
from agent.errors import BadInput, SegueError
from agent.pack import Member, members
from agent.store.claims import differences
from dagman.code import NAME as CODE
from dagman.code import read_checkout
from dagman.inputs import Recorded, examine, read_record, same_source, state_of
from dagman.observed import known_step, newest_commit, read_handovers
from dagman.paths import beside
from dagman.prepare import (
    UNTOUCHED,
    Asked,
    Difference,
    accepting,
    ask,
    is_staged,
    record_path,
    recorded_fingerprint,
    requests,
    wandb_key,
)
from dagman.refusals import Refusal, refusals
from dagman.room import Need, need
from dagman.runs import RunPlace, own_run_file
from dagman.spec import workflow_directory
from dagman.workflow import Workflow, fingerprint
from dagman.write import refused_while_running

# So much is read to learn a digest that nobody remembers; more is left to `segue submit`.
MOST_READ_BYTES = 200_000_000
_SHOWN = 100


@dataclass(frozen=True)
class Foreseen:
    """``changed``: fields that `segue submit` would refuse, ``flags`` to accept them; ``unread``: inputs that only it will read;
    ``unstaged``: inputs that no record says are in staging as they are now; ``refused``: what is wrong with run.toml or this machine.

    ``running``: why nothing can be submitted now: this workflow's DAGMan runs. It is no fault of run.toml's, so not among ``refused``.
    ``reached``: the newest commit's step, None before there is one or where staging is not visible.
    """

    store: Path
    changed: tuple[Difference, ...] = ()
    unread: tuple[str, ...] = ()
    reached: int | None = None
    unstaged: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    running: str | None = None

    @property
    def flags(self) -> str:
        """``--accept-change FIELD`` for each, empty when nothing is refused."""
        return accepting(self.changed)


def foresee(asked: Asked) -> Foreseen:
    """Look at the run's store where it is visible from here. Raises BadInput, SegueError for sources that cannot be looked at."""
    store = _store(asked)
    # As dagman.prepare: without a mounted staging the agent alone compares.
    before = None if asked.spec.agent.checkpoint_exit else recorded_fingerprint(store)
    unstaged = _unstaged(asked)
    if before is None:
        return Foreseen(store, reached=_reached(store), unstaged=unstaged)
    now, unread = _fingerprint_now(asked)
    known = {name: value for name, value in before.items() if name not in unread}
    return Foreseen(
        store, tuple(differences(known, now)), tuple(sorted(unread & before.keys())), _reached(store), unstaged
    )


def _unstaged(asked: Asked) -> tuple[str, ...]:
    """Inputs that only `segue stage` can bring to the jobs, and that it has not brought as far as is known here."""
    # Without staging rules the inputs of such a run travel from the workflow directory.
    moved = asked.spec.agent.checkpoint_exit and not asked.site.staging.transfers
    if "{this}" in asked.site.python or moved:
        return ()
    record, found = read_record(record_path(asked.run_toml)), []
    for one in requests(asked.spec, asked.run_toml):
        before = record.get(one.name)
        if before is None or not is_staged(asked, before) or not same_source(before, one.source):
            found.append(one.name)
        elif one.source.exists():
            now = _digest(one.name, one.source, members(one.source), record)
            if now is None or now.archive != before.archive:
                found.append(f"{one.name} (changed since)")
    return tuple(found)


def _store(asked: Asked) -> Path:
    """The run's store as this machine would see it."""
    if asked.spec.agent.checkpoint_exit:
        return workflow_directory(asked.spec, asked.run_toml) / STORE_NAME
    return asked.staging / "segue" / asked.spec.name


def _reached(store: Path) -> int | None:
    commit = newest_commit(store)
    return None if commit is None else commit.step


def needed(asked: Asked) -> Need:
    """What the run will occupy in staging, by its newest commit where that can be seen."""
    commit = newest_commit(_store(asked))
    return need(asked, None if commit is None else commit.bytes)


def _fingerprint_now(asked: Asked) -> tuple[dict[str, str], set[str]]:
    """The fingerprint as far as it is known without reading much, and the fields of it that are not."""
    record = read_record(record_path(asked.run_toml))
    inputs, unread = [], set()
    for request in requests(asked.spec, asked.run_toml):
        entries = members(request.source) if request.source.exists() else None
        found = _digest(request.name, request.source, entries, record)
        if found is None:
            unread.add("dataset" if request.name == "dataset" else f"asset.{request.name}")
        else:
            inputs.append(_archive(request.name, found))
    code = None
    if asked.spec.code is not None:
        directory = beside(asked.run_toml.parent, asked.spec.code)
        entries = list(read_checkout(directory).entries) if directory.exists() else None
        found = _digest(CODE, directory, entries, record)
        code = None if found is None else _archive(CODE, found)
        unread |= {CODE} if found is None else set()
    return fingerprint(asked.spec, inputs, code), unread


def _archive(name: str, found: Recorded) -> InputArchive:
    return InputArchive(name, found.archive, found.sha256, found.bytes, "")


def _digest(name: str, source: Path, entries: list[Member] | None, record: dict[str, Recorded]) -> Recorded | None:
    before = record.get(name)
    if entries is None:
        return before if same_source(before, source) else None
    if before is not None and before.state == state_of(entries):
        return before
    return examine(name, source, entries, record) if sum(entry.size for entry in entries) <= MOST_READ_BYTES else None


def refusal(asked: Asked, found: Foreseen) -> str | None:
    """One sentence on what `segue submit` refuses, None when it refuses nothing that is known here."""
    if not found.changed:
        return None
    fields = "; ".join(f"{name} was {_short(before)}, is now {_short(now)}" for name, before, now in found.changed)
    return (
        f"`segue submit` will refuse: run {asked.spec.name!r} was begun in {found.store} with another configuration ({fields}): accept the "
        f"change with {found.flags}, or give the new run another `name`{UNTOUCHED if found.reached is None else ''}"
    )


def unstaged_note(found: Foreseen) -> str | None:
    """One sentence on inputs that `segue stage` has still to bring."""
    if not found.unstaged:
        return None
    return f"data: not staged yet: {', '.join(found.unstaged)}; jobs find nothing else, so run `segue stage` before `segue submit`"


def unread_note(found: Foreseen) -> str | None:
    """One sentence on inputs whose digest is not known without reading them whole."""
    if not found.unread:
        return None
    flags = accepting([(name, None, None) for name in found.unread])
    return (
        f"{', '.join(found.unread)}: is not known without reading all of it; `segue submit` does, and refuses if it is not what the run was "
        f"begun with (then: {flags}, or another `name`)"
    )


def _short(value: str | None) -> str:
    text = "(not set)" if value is None else value
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def progress(steps: int, found: Foreseen) -> str | None:
    """One sentence when a submission would train nothing: the run is complete, or ``steps`` lies below what it has reached."""
    if found.reached is None or found.reached < steps:
        return None
    if found.reached == steps:
        return f"already complete: step {found.reached} of {steps} is in {found.store}; nothing to train; raise `steps` to go on"
    return (
        f"steps: {steps} is below step {found.reached}, which the run has reached in {found.store}; nothing to train, and nothing is taken "
        f"back: the result stays that of step {found.reached}; put `steps` above it to go on"
    )


def progress_of(workflow: Workflow) -> str | None:
    """The same of a generated workflow."""
    store = workflow.job.store_seen_from(workflow.directory)
    return progress(workflow.job.steps, Foreseen(store, reached=_reached(store)))


def missing_inputs(workflow: Workflow) -> str | None:
    """One sentence on inputs that jobs will look for in staging and that are not there, where that can be seen from here."""
    job = workflow.job
    if not Path(job.staging).is_dir():
        return None
    wanted = [one for one in job.inputs if not one.source and one.travels != "plain"]
    absent = [one.name for one in wanted if not (job.inputs_root / one.archive).exists()]
    if not absent:
        return None
    return f"{', '.join(absent)}: not in {job.inputs_root}, so the node `stage` will fail before any GPU is asked for: run `segue stage` first"


def begins_anew(workflow: Workflow) -> str | None:
    """One sentence when the store has no commit although this workflow knew of one: submitting it is the way to begin anew on purpose."""
    store = workflow.job.store_seen_from(workflow.directory)
    if not store.parent.parent.is_dir() or newest_commit(store) is not None:
        return None
    step = known_step(workflow.directory, read_handovers(workflow.directory))
    if step is None:
        return None
    return (
        f"{store}: no commit is there any more, and this workflow had published step {step}: the run begins anew at step 0; to go on "
        "instead, bring that directory back before the first segment starts"
    )


def before_submitting(workflow: Workflow) -> list[str]:
    """What to say of a workflow that is about to be submitted, and is all the same."""
    return [
        text
        for text in (missing_inputs(workflow), *workflow.notes, progress_of(workflow), begins_anew(workflow))
        if text is not None
    ]


def all_refused(found: Foreseen) -> list[str]:
    """What `segue submit` would refuse now, changes of the configuration apart: those can be accepted."""
    return [*([found.running] if found.running else []), *(one.text for one in found.refused)]


def notes(asked: Asked, found: Foreseen) -> list[str]:
    """All of it, for `segue plan`."""
    said = (unstaged_note(found), refusal(asked, found), unread_note(found), progress(asked.spec.steps, found))
    refused = [f"`segue submit` will refuse: {text}" for text in all_refused(found)]
    return [*refused, *(text for text in said if text is not None), *_no_key(asked)]


def _no_key(asked: Asked) -> list[str]:
    try:
        return wandb_key(asked, keep=False)[1]
    except BadInput:
        return []  # refused, and said so


def foresee_or_say(asked: Asked) -> tuple[Foreseen, list[str]]:
    """As `foresee` and `notes`; whatever `segue submit` would refuse is a note as well."""
    refused, store = refusals(asked), _store(asked)
    running = refused_while_running(workflow_directory(asked.spec, asked.run_toml), f"{asked.spec.name}.dag")
    try:
        found = replace(foresee(asked), refused=refused, running=running)
    except (BadInput, SegueError) as error:
        own = Refusal(str(error).removeprefix(f"{asked.run_toml}: "), staging_too=True)
        found = Foreseen(store, reached=_reached(store), refused=refused or (own,), running=running)
    except OSError as error:
        found = Foreseen(store, refused=refused, running=running)
        unknown = f"staging: {store}: cannot be read here ({error.strerror}): what it holds of the run is not known"
        return found, [*notes(asked, found), unknown]
    return found, notes(asked, found)


def submitting(place: RunPlace) -> tuple[str, int | None]:
    """The command that submits this run again, with what it needs to be accepted, and the steps that its run.toml asks for now.

    Whatever is wrong with run.toml is for `segue submit` to say.
    """
    run = shlex.quote(place.said)
    try:
        own_run_file(Path(place.said))
    except BadInput:
        return f"segue submit RUN_TOML --to {run}   # RUN_TOML: what it was made from", None
    command = f"segue submit {run}"
    try:
        asked = ask(Path(place.said))
        found = foresee(asked)
    except (BadInput, SegueError, OSError):
        return command, None
    if found.changed:
        command += f" {found.flags}   # if the change is meant; else put the old value back"
    return command, asked.spec.steps
