"""Reading what a run left on the disk, for dagman.history: the workflow directory and the store, never the queue.

Files are read once and tolerantly: what is damaged, half written or not there is left out, and the rest still tells the story.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.errors import BadInput
from agent.handover import known_commit
from agent.keeping import ledger_of
from dagman import events as ev
from dagman.epochs import ClaimSeen
from dagman.events import Event, read_events
from dagman.history import SEGMENT, Gone, History, NewestCommit, Observed, dag_state, timeline
from dagman.runs import RunPlace, own_run_file
from dagman.toml import read_toml
from dagman.workflow import PLACEHOLDER

_COMMIT = re.compile(r"(\d{9,})\.e(\d{6,})\.tar")
_VARS = re.compile(r'VARS (\S+) .*\bclass="([^"]*)".*')


def newest_commit(store: Path) -> NewestCommit | None:
    """The commit that a restore tries first: highest epoch, then highest step; from names and times alone."""
    try:
        names = [entry.name for entry in (store / "checkpoints").iterdir()]
    except OSError:
        return None
    found = sorted(
        ((int(match[2]), int(match[1]), match[0]) for match in map(_COMMIT.fullmatch, names) if match), reverse=True
    )
    for place, (epoch, step, name) in enumerate(found):
        try:
            facts = (store / "checkpoints" / name).stat()
        except OSError:
            continue  # pruned since the listing
        before = found[place + 1] if place + 1 < len(found) else None
        step_s = None
        if before is not None and before[0] == epoch and before[1] < step:
            try:
                spent = facts.st_mtime - (store / "checkpoints" / before[2]).stat().st_mtime
                step_s = spent / (step - before[1]) if spent > 0 else None
            except OSError:
                pass
        return NewestCommit(name, step, epoch, facts.st_size, facts.st_mtime, step_s)
    return None


def _objects(paths: list[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(paths):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, dict):
            yield path, data


def read_claims(store: Path) -> list[ClaimSeen]:
    """All epochs' claims, oldest first."""
    found = []
    for path, data in _objects(list((store / "epochs").glob("[0-9]*.json"))):
        try:
            claim = ClaimSeen(int(path.stem), str(data["job"]), float(data["began"]))
        except (KeyError, TypeError, ValueError):
            continue
        found.append(claim)
    return found


def read_handovers(directory: Path) -> dict[int, dict[str, Any]]:
    """Handovers by segment."""
    found = {}
    for path, data in _objects(list((directory / "handovers").glob("segment-*.json"))):
        number = path.stem.removeprefix("segment-")
        if number.isdigit() and data.get("state") != "pending":
            found[int(number)] = data
    return found


def known_step(directory: Path, handovers: Mapping[int, Mapping[str, Any]]) -> int | None:
    """Step of the newest commit that this workflow knows of, wherever the store is now: from its handovers, and from what its jobs are
    told of earlier submissions; None without one.
    """
    names = [str(each.get("commit") or "") for each in handovers.values()]
    names.append(known_commit(directory / PLACEHOLDER))
    steps = [int(match[1]) for match in map(_COMMIT.fullmatch, names) if match]
    return max(steps, default=None)


def read_last_words(directory: Path) -> dict[str, str]:
    """The last line of each helper node's stderr, where there is one."""
    found = {}
    for path in (directory / "logs").glob("*.err"):
        if path.stem.startswith("segment-"):
            continue
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            continue
        if lines:
            found[path.stem] = lines[-1]
    return found


def read_classes(dag: Path) -> dict[str, str]:
    """Queue class of every segment, in the order of the .dag file."""
    found = {}
    try:
        with dag.open(encoding="utf-8") as file:
            for line in file:
                match = _VARS.fullmatch(line.rstrip("\n")) if line.startswith("VARS segment_") else None
                if match is not None and SEGMENT.fullmatch(match[1]):
                    found[match[1]] = match[2]
    except (OSError, UnicodeDecodeError):
        return {}
    return found


def read_done(dag: Path, dag_events: list[Event]) -> frozenset[str]:
    """Nodes that the newest submission took for done: from the newest rescue file that was there when it began.

    `condor_submit_dag -f` renames rescue files, so one under its own name was used.
    """
    began = max((event.at for event in dag_events if event.kind == ev.SUBMIT), default=None)
    if began is None:
        return frozenset()
    found: list[tuple[int, Path]] = []
    for path in dag.parent.glob(f"{dag.name}.rescue*"):
        number = path.name.removeprefix(f"{dag.name}.rescue")
        try:
            # The log's times are whole seconds.
            if number.isdigit() and path.stat().st_mtime < began + 1:
                found.append((int(number), path))
        except OSError:
            continue
    if not found:
        return frozenset()
    try:
        lines = max(found)[1].read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.split()[1] for line in lines if line.startswith("DONE ") and len(line.split()) > 1)


def _result(place: RunPlace) -> str:
    if place.job.checkpoint_exit:
        return f"the result is in {place.store / 'final'}"
    return f"bring the result here: segue pull {shlex.quote(place.said)}"


def _asked_steps(place: RunPlace) -> int | None:
    """`steps` of run.toml as it is now, by that one key: what else it says does not matter to a workflow that runs."""
    try:
        steps = read_toml(own_run_file(Path(place.said))).get("steps")
    except BadInput:
        return None
    return steps if isinstance(steps, int) else None


def observe(place: RunPlace) -> Observed:
    """Everything that this machine can see of the run, read once."""
    directory, job = place.directory, place.job
    dag = directory / f"{job.run}.dag"
    store = place.store
    dag_events = read_events(directory / f"{dag.name}.dagman.log")
    handovers, commit = read_handovers(directory), newest_commit(store)
    visible = store.parent.parent.is_dir()
    claims = read_claims(store)
    lost = known_step(directory, handovers) if visible and commit is None else None
    submit, steps = f"segue submit {shlex.quote(place.said)}", None
    if dag_state(dag_events).state not in ("queued", "running", "held"):
        from dagman.foreseen import submitting

        submit, steps = submitting(place)
    else:
        steps = _asked_steps(place)
    return Observed(
        run=job.run,
        steps=job.steps,
        classes=read_classes(dag),
        node_events=read_events(directory / "events.log"),
        skip_events=read_events(directory / f"{dag.name}.nodes.log"),
        dag_events=dag_events,
        handovers=handovers,
        claims=claims,
        unpublished=ledger_of(store / "logs", claims[-1].epoch).unpublished if claims else "",
        commit=commit,
        staging_visible=visible,
        gone=None if lost is None else Gone(str(store), lost, store.is_dir()),
        done=read_done(dag, dag_events),
        last_words=read_last_words(directory),
        submit=submit,
        result=_result(place),
        look=f"segue commits {shlex.quote(place.said)}",
        asked_steps=steps,
    )


def read_history(place: RunPlace) -> History:
    """The run so far."""
    return timeline(observe(place))
