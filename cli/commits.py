"""`segue commits`, `segue verify`, `segue prune`: what lies in a run's store, whether it is whole, and what may go."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from agent.store import Retention, Store
    from agent.store.budget import Room
    from dagman.runs import RunPlace


def _open(run: str) -> tuple[str, Store, RunPlace | None]:
    """The run's name, its store and where it was generated (None for a store's own directory)."""
    from agent.errors import SegueError
    from agent.store import Budget, Store
    from dagman.paths import absolute
    from dagman.quotas import asked

    given = absolute(Path(run))
    if (given / "checkpoints").is_dir() and (given / "epochs").is_dir():
        return given.name, Store(given, quotas=asked()), None
    from dagman.runs import find_run

    place = find_run(run)
    job = place.job
    if job.staging and not Path(job.staging).is_dir():
        raise SegueError(
            f"staging {job.staging} is not mounted here: ask where it is, on an access point or on the transfer host"
        )
    store = Store(place.store, budget=Budget(job.budget.bytes, job.budget.items), quotas=asked())
    return job.run, store, place


@click.command("commits")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def commits(run: str, as_json: bool) -> None:
    """List the commits of RUN (a run.toml, a workflow directory or a store's directory), the one to restore first on top."""
    from cli.output import console, duration, size, table

    name, store, place = _open(run)
    found = store.commits()
    aside = store.set_aside()
    left = store.leftover_bytes()
    rooms = store.rooms() if store.root.is_dir() else []
    if as_json:
        rows = [
            {
                "commit": one.name,
                "step": one.step,
                "epoch": one.epoch,
                "bytes": one.size,
                "published": one.published,
                "verified": one.verified,
            }
            for one in found
        ]
        data = {
            "run": name,
            "store": str(store.root),
            "commits": rows,
            "set_aside": [path.name for path in aside],
            "leftover_bytes": left,
            "room": [{"source": one.source, "bytes": one.bytes, "items": one.items} for one in rooms],
        }
        click.echo(json.dumps(data))
        return
    out = console()
    now, typed = time.time(), shlex.quote(run)
    if found:
        lines = [
            [
                str(one.step),
                str(one.epoch),
                size(one.size),
                f"{duration(max(0.0, now - one.published))} ago",
                "never" if one.verified is None else f"{duration(max(0.0, now - one.verified))} ago",
                one.name,
            ]
            for one in found
        ]
        out.print(table(["step", "epoch", "size", "published", "verified", "commit"], lines))
    else:
        click.echo(f"{name} has no commits yet in {store.root}", err=True)
    for path in aside:
        prunable = (
            typed if place is not None else "RUN_TOML"
        )  # the store's own directory does not say what a prune must keep
        click.echo(f"set aside as bad: {path.name} (segue prune {prunable} --set-aside removes it)", err=True)
    if left:
        click.echo(
            f"{size(left)} are of publishes that were killed or are under way: the next attempt removes what is left of them; when no job of "
            f"this run is alive, {store.leftovers_removal}",
            err=True,
        )
    for room in rooms:
        click.echo(f"room: {_said(room)}", err=True)
    if found:
        click.echo(f"next: segue verify {typed}", err=True)


def _said(room: Room) -> str:
    from cli.output import size

    parts = [] if room.bytes is None else [size(room.bytes) if room.bytes >= 0 else f"{size(-room.bytes)} too little"]
    if room.items is not None and room.items < 1 << 40:  # some file systems count no items and name a giant number
        parts.append(f"{room.items} items")
    return f"{room.source} leaves {' and '.join(parts) or 'no bound'}"


@click.command("verify")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(run: str, as_json: bool) -> None:
    """Read every byte of every commit of RUN and compare it with its manifest; exit 1 when one is bad."""
    from agent.store import CommitGone
    from agent.store.errors import NewerFormat

    name, store, _ = _open(run)
    bad: dict[str, list[str]] = {}
    good: list[str] = []
    newer = False
    for commit in store.commits():
        try:
            problems = store.verify(commit)
        except CommitGone as error:
            click.echo(error, err=True)
            continue
        except NewerFormat as error:
            problems, newer = [str(error)], True
        if problems:
            bad[commit.name] = problems
        else:
            good.append(commit.name)
        if not as_json:
            click.echo(f"{commit.name}: {'; '.join(problems) if problems else 'good'}")
    if as_json:
        click.echo(json.dumps({"run": name, "good": good, "bad": bad}))
    else:
        click.echo(f"{len(good)} good, {len(bad)} bad", err=True)
        for line in _advice(run, store, newer, bool(good)) if bad else ():
            click.echo(line, err=True)
    if bad:
        raise SystemExit(1)


def _advice(run: str, store: Store, newer: bool, some_good: bool) -> list[str]:
    """What follows from bad commits. Removing is offered with nothing to paste: the last copies may be good and this machine bad."""
    if newer:
        return ["nothing is wrong with what a newer segue wrote: verify it with that one"]
    if some_good:
        return ["a restore skips the bad ones by itself; nothing needs to be removed"]
    return [
        "no restore finds a good one, so the run cannot go on; if another machine finds all of them bad as well, remove "
        f"{store.root / 'checkpoints'}/*.tar and the run begins anew",
        f"next: segue verify {shlex.quote(run)}   # on another machine too: this one may read them badly",
    ]


@click.command("prune")
@click.argument("run")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--keep",
    type=click.IntRange(min=2),
    metavar="K",
    help="Keep the newest K good commits.  [default: what run.toml says]",
)
@click.option("--set-aside", is_flag=True, help="Also remove commits that were found bad and set aside.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prune(run: str, dry_run: bool, keep: int | None, set_aside: bool, as_json: bool) -> None:
    """Remove commits of RUN that its retention does not ask for; the newest two good ones always stay.

    The retention is what run.toml says now. A run's own directory in staging does not know it: there --keep has to be given.
    """
    from cli.output import size

    name, store, place = _open(run)
    wanted = _retention(run, place, keep)
    removed = store.prune(None, wanted, dry_run=dry_run)
    aside: list[Path] = []
    if set_aside:
        aside = store.set_aside() if dry_run else store.remove_set_aside()
    if as_json:
        data = {
            "run": name,
            "dry_run": dry_run,
            "removed": [one.name for one in removed],
            "bytes": sum(one.size for one in removed),
            "set_aside": [path.name for path in aside],
        }
        click.echo(json.dumps(data))
        return
    verb = "would remove" if dry_run else "removed"
    for one in removed:
        click.echo(f"{verb} {one.name} ({size(one.size)})")
    for path in aside:
        click.echo(f"{verb} {path.name}")
    total = sum(one.size for one in removed)
    click.echo(
        f"{verb} {len(removed) + len(aside)} files, {size(total)} of commits; {len(store.commits())} commits there",
        err=True,
    )
    if dry_run and (removed or aside):
        options = (f" --keep {keep}" if keep else "") + (" --set-aside" if set_aside else "")
        click.echo(f"next: segue prune {shlex.quote(run)}{options}", err=True)


def _retention(run: str, place: RunPlace | None, keep: int | None) -> Retention:
    """What run.toml says now, else what the workflow was generated with; ``keep`` goes before it. BadInput where neither is known."""
    from agent.errors import BadInput
    from agent.store import Retention
    from dagman.runs import own_run_file
    from dagman.spec import load_spec

    if place is None:
        if keep is None:
            raise BadInput(
                f"{run}: this directory does not say what the run's retention is: give run.toml instead, or --keep K"
            )
        click.echo(
            f"{run}: retention.every and retention.best are not known here, so nothing is kept for their sake: give run.toml instead if it has them",
            err=True,
        )
        return Retention(keep)
    try:
        run_toml = own_run_file(Path(run))
    except BadInput:
        rule = place.job.retention  # generated with --to: its run.toml is somewhere else
        return Retention(keep or rule.keep, rule.every, rule.best)
    asked = load_spec(run_toml).retention
    return Retention(keep or asked.keep, asked.every, asked.best)
