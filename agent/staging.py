"""The agent's errands to staging, each a function that runs in a child process and returns plain JSON data.

Only here does the agent meet the store; a hung mount stops the child and nothing else.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config import JobConfig
from agent.errand import Report
from agent.errors import BadInput, ReadDamaged, SegueError
from agent.place import Place
from agent.recipes.base import Finished

if TYPE_CHECKING:
    from agent.store import Claim, Restored, Retention, Store


KEPT_NAME = "kept"
_SPARE_ITEMS = 50
_SPARE_COMMITS = 3
_MOST_WANDB_BYTES = 1 << 30


def store_root(job: JobConfig, place: Place) -> Path:
    """The run's store: in staging, or in scratch where none is mounted."""
    if not job.checkpoint_exit:
        return job.store_root
    root = place.scratch / job.store_root
    root.mkdir(exist_ok=True)
    return root


@dataclass(frozen=True)
class Opening:
    """What opening the run brought: the restored commit (handover's ``restored``), its label and pace, and how long it took."""

    restored: dict[str, Any] | None = None
    label: str | None = None
    pace: Mapping[str, float] = field(default_factory=dict)
    restore_s: float = 0.0
    high_water: int = 0
    before: Mapping[str, Any] = field(default_factory=dict)
    """How the attempt before this one ended, by its own last word; empty when it was killed."""


@dataclass(frozen=True)
class Staging:
    """What every errand needs to know; made once, copied into each child by the fork."""

    job: JobConfig
    root: Path
    segment: int
    place: Place
    known: str = ""
    """Name of the newest commit that the workflow knew when it submitted this job; empty when it knew of none."""

    def store(self) -> Store:
        """The run's store."""
        from agent.store import Budget, Store

        return Store(self.root, budget=Budget(self.job.budget.bytes, self.job.budget.items))

    def open(
        self, checkpoint_root: Path, report: Report, finished: Callable[[], Sequence[Finished]] = tuple
    ) -> dict[str, Any]:
        """Claim an epoch, sweep, unpack inputs and code, restore the newest good commit into ``checkpoint_root``.

        In this order, so that what comes with the code can neither overwrite nor join what was restored. ``finished``: the recipe's
        view of the checkpoints there; BadInput when one of them came with the code or an input.
        """
        from agent.store import Claimant

        store = self.store()
        self._require_known(store, report)
        claim = store.claim(
            Claimant(self.place.machine, self.place.job_id, self.segment),
            self.job.fingerprint,
            accept=self.job.accept_change,
        )
        report({"claim": asdict(claim), "epoch": claim.epoch})
        store.sweep(claim)
        if self.job.wandb is not None:
            with suppress(OSError):
                report({"wandb_unsent": len(list((self.root / "wandb").glob("[0-9]*.tar")))})
        try:
            found = self._contents(store, checkpoint_root, report, finished)
        except ReadDamaged as error:
            self._require_first_word(store, claim, error)
            raise
        if claim.epoch > 1:  # a first start need not import it
            from agent.keeping import ledger_of, sweep

            try:
                sweep(self.root, claim.epoch)
            except OSError as error:
                report({"warning": f"{self.root}: what killed attempts left of their logs was not removed: {error}"})
            ledger = ledger_of(self.root / "logs", claim.epoch - 1)
            found["high_water"] = max(found["high_water"], ledger.step)
            found["before"] = ledger.end
        return found

    def _require_known(self, store: Store, report: Report) -> None:
        """Raise RunGone, before anything is made, when there is no commit although the workflow knew one: the training must not begin anew
        because a person moved the run's directory, or because this is another staging. StoreUnavailable where not even the directory of all
        runs is there: then this machine's mount may be wrong, and another's right.
        """
        from agent.store.errors import RunGone, StoreUnavailable
        from agent.store.names import parse_commit

        known = parse_commit(self.known)
        if known is None or not self.root.parent.parent.is_dir() or store.commits():
            return
        report({"newest": {"step": known[0], "commit": self.known}})  # so that the next handover knows it, too
        if not self.root.parent.is_dir():
            raise StoreUnavailable(
                f"{self.root.parent}: is not there, although this run had published step {known[0]} ({self.known}): is staging mounted on this "
                "machine as elsewhere? Without the run's directory, `segue submit` begins anew at step 0"
            )
        raise RunGone(
            f"{self.root}: has no commit, although this run had published step {known[0]} ({self.known}): was the run's directory removed, or "
            "is this another staging? Nothing was begun. Bring it back, then `segue submit`; without it `segue submit` begins anew at step 0"
        )

    @contextmanager
    def _there(self) -> Iterator[None]:
        """Raise RunGone for what fails in the block because somebody removed the directory of a run that is claimed. Where even the
        directory of all runs is away it is staging that is.
        """
        from agent.store.errors import RunGone, StoreError, Superseded

        gone = RunGone(
            f"{self.root}: the run's directory is gone, while staging is there: somebody removed or moved it; nothing is made in its place. "
            "Bring it back, and what is finished is published"
        )
        try:
            yield
        except Superseded:
            raise
        except (OSError, StoreError) as error:
            if self._is_gone():
                raise gone from error
            raise
        if self._is_gone():
            raise gone

    def _is_gone(self) -> bool:
        """Whether a look at it says so; one that fails says nothing."""
        try:
            self.root.stat()
        except FileNotFoundError:
            with suppress(OSError):
                return stat.S_ISDIR(self.root.parent.stat().st_mode)
        except OSError:
            return False
        return False

    def _require_first_word(self, store: Store, claim: Claim, error: ReadDamaged) -> None:
        """Raise SegueError, which ends the run, when the attempt before this one found the same on another machine."""
        from agent.keeping import ledger_of

        machines = {record.epoch: record.machine for record in store.records()}
        before = machines.get(claim.epoch - 1, "")
        said = str(ledger_of(self.root / "logs", claim.epoch - 1).end.get("reason", ""))
        if before not in ("", self.place.machine) and str(error) in said:
            raise SegueError(f"{error} ({before} found the same)") from error

    def _contents(
        self, store: Store, checkpoint_root: Path, report: Report, finished: Callable[[], Sequence[Finished]]
    ) -> dict[str, Any]:
        """All that goes into scratch."""
        self._clear(checkpoint_root)
        commits = store.commits()
        if commits:
            report({"newest": {"step": commits[0].step, "commit": commits[0].name}})
        complete = any(commit.step >= self.job.steps for commit in commits)  # then nothing is trained
        if not complete:
            self._bring(checkpoint_root, report, finished)
        found = self._restore(store, checkpoint_root, report)
        if complete and (found["restored"] is None or found["restored"]["step"] < self.job.steps):  # it was damaged
            self._clear(checkpoint_root)
            self._bring(checkpoint_root, report, finished)
            found = self._restore(store, checkpoint_root, report)
        return found

    def _bring(self, checkpoint_root: Path, report: Report, finished: Callable[[], Sequence[Finished]]) -> None:
        """Inputs, code and caches into scratch; no checkpoint may have come with them."""
        from agent.inputs import fetch

        for target in fetch(self.job, self.place.scratch):
            report({"say": f"unpacked {target}"})
        if (self.root / "carry").is_dir():
            from agent.carry import bring

            try:
                report({"say": f"brought {bring(self.root / 'carry', self.place.scratch)} cached files"})
            except Exception as error:  # nothing depends on them but time
                report(
                    {
                        "warning": f"{self.root / 'carry'}: cached files were not brought, the trainer makes them anew: {error}"
                    }
                )
        foreign = finished() if checkpoint_root.is_dir() else ()
        if foreign:
            where = (foreign[-1].root / foreign[-1].paths[0]).relative_to(self.place.scratch)
            raise BadInput(
                f"{where}: this checkpoint of step {foreign[-1].step} came with the code or an input, so it is not this run's: remove it there "
                "or add it to .gitignore (what git ignores does not travel), or let `checkpoints` name another directory"
            )

    def _clear(self, checkpoint_root: Path) -> None:
        """What an earlier attempt left in this directory goes: staging decides. What is not ours stays, with an error."""
        mark = self.place.scratch / ".segue" / "owns-checkpoints"
        if checkpoint_root.is_dir() and any(checkpoint_root.iterdir()):
            if not mark.exists():
                raise BadInput(f"{checkpoint_root}: has files that are not this run's; start in an empty directory")
            from agent.recipes.directories import remove

            remove(checkpoint_root)
        mark.parent.mkdir(exist_ok=True)
        mark.touch()

    def restore_afresh(self, checkpoint_root: Path, report: Report) -> dict[str, Any]:
        """Remove what lies in ``checkpoint_root`` and restore the newest good commit."""
        from shutil import rmtree

        from agent.recipes.directories import loosen

        loosen(checkpoint_root)
        rmtree(checkpoint_root, ignore_errors=True)
        with self._there():  # no commit is read, but this run has been claimed: that would be a start at step 0
            return self._restore(self.store(), checkpoint_root, report)

    def _restore(self, store: Store, checkpoint_root: Path, report: Report) -> dict[str, Any]:
        began = time.monotonic()
        checkpoint_root.mkdir(parents=True, exist_ok=True)
        report({"size": max((commit.size for commit in store.commits()), default=0)})
        restored: Restored | None = store.restore(checkpoint_root, report=lambda text: report({"warning": text}))
        if restored is None:
            return asdict(Opening())
        manifest = restored.manifest
        report({"say": f"restored step {manifest.step} from {restored.commit.name}"})
        return asdict(
            Opening(
                {"step": manifest.step, "commit": restored.commit.name},
                manifest.label,
                dict(manifest.pace),
                time.monotonic() - began,
                manifest.step,
            )
        )

    def publish(
        self,
        claim: Mapping[str, Any],
        finished: Finished,
        snapshot: Path,
        pace: Mapping[str, float],
        parent: str | None,
        metrics: Mapping[str, float],
        report: Report,
    ) -> dict[str, Any]:
        """Publish one snapshot and prune; a prune that fails is a warning."""
        from agent.store import Metadata

        store = self.store()
        owner = _claim(claim)
        report({"size": _bytes_below([snapshot])})
        metadata = Metadata(
            finished.step, finished.label, self.job.recipe, parent, pace=dict(pace), metrics=dict(metrics)
        )
        rate = self.job.publish_bytes_per_s
        with self._there():
            commit = store.publish(
                owner, snapshot, metadata, seen=finished.seen, retention=self._retention(), bytes_per_second=rate
            )
        return {"step": commit.step, "commit": commit.name, "bytes": commit.size, "warnings": self._prune(store, owner)}

    def withdraw(self, claim: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Set the commit of this step aside: it was made before the trainer had finished it."""
        return {"aside": self.store().withdraw(_claim(claim), step)}

    def _retention(self) -> Retention:
        from agent.store import Retention

        rule = self.job.retention
        return Retention(rule.keep, rule.every, rule.best)

    def _prune(self, store: Store, owner: Claim) -> list[str]:
        from agent.store.errors import StoreError, Superseded

        try:
            store.prune(owner, self._retention())
        except Superseded:
            raise
        except StoreError as error:
            return [str(error)]
        return []

    def keep(
        self, epoch: int, sources: dict[str, Path], carried: Sequence[str], carry_known: str, report: Report
    ) -> dict[str, Any]:
        """Keep log and ledger of this attempt, its offline W&B files, and carried caches when they changed."""
        from agent.store.errors import speaking

        with self._there(), speaking("keeping the attempt's log in", str(self.root)):
            return self._keep(epoch, sources, carried, carry_known, report)

    def _keep(
        self, epoch: int, sources: dict[str, Path], carried: Sequence[str], carry_known: str, report: Report
    ) -> dict[str, Any]:
        from agent.keeping import archive, attempts_kept, keep
        from agent.wandb_run import KEPT_BELOW, offline_runs

        most = attempts_kept(self.job.budget.items)
        keep(self.root / "logs", epoch, sources, most)
        runs = offline_runs(self.place.scratch) if self.job.wandb is not None else []
        if runs:
            size = _bytes_below(runs)
            report({"size": size})
            if archive(self.root / "wandb", f"{epoch:06d}.tar", runs, KEPT_BELOW, _MOST_WANDB_BYTES):
                self._drop_wandb(most, report)
            elif size > _MOST_WANDB_BYTES:
                report(
                    {
                        "warning": f"the offline W&B files of attempt {epoch} are larger than the {_MOST_WANDB_BYTES >> 20} MiB that are kept, so "
                        f"their newest part is lost when the job ends: log less media; `segue wandb sync` with the run.toml of "
                        f"{self.job.run} sends what is kept"
                    }
                )
        found = ""
        if carried:
            from agent.carry import mark, take

            found = mark(self.place.scratch, carried)
            if found and found != carry_known:
                report({"size": _bytes_below([self.place.scratch / name for name in carried])})
                take(self.root / "carry", self.place.scratch, carried, epoch)
        return {"carry": found}

    def _drop_wandb(self, most: int, report: Report) -> None:
        """Offline W&B archives wait for a person. They go, oldest first, only when commits would lack their room."""
        from agent.keeping import drop_oldest

        archives = list((self.root / "wandb").glob("[0-9]*.tar"))
        if len(archives) <= most:
            return
        store = self.store()
        spare = _SPARE_COMMITS * max((commit.size for commit in store.commits()), default=0)
        rooms = store.rooms()

        def short(share: int) -> bool:
            return any(
                (
                    room.items is not None
                    and room.items < share * min(_SPARE_ITEMS, (self.job.budget.items or 1000) // 20)
                )
                or (room.bytes is not None and room.bytes < share * spare)
                for room in rooms
            )

        if not short(2):
            return
        sync = f"`segue wandb sync` with the run.toml of {self.job.run} now sends them"
        if short(1):
            report(
                {
                    "warning": f"offline W&B files of the oldest of {len(archives)} attempts are dropped, the run's room is short: {sync}"
                }
            )
            drop_oldest(self.root / "wandb", most)
        else:
            report(
                {
                    "warning": f"offline W&B files of {len(archives)} attempts fill the run's room, and the oldest are dropped soon: {sync}"
                }
            )

    def list_kept(self, epoch: int) -> None:
        """Without a mounted staging HTCondor adds what comes back to what lies at the access point and removes nothing. So the store says
        which commits it has; the PRE script of the next segment removes older ones that are not among them.
        """
        from agent.keeping import place

        names = sorted(path.name for path in (self.root / "checkpoints").glob("[0-9]*.tar"))
        try:
            place(self.root, KEPT_NAME, "".join(f"{line}\n" for line in (f"{epoch:06d}", *names)).encode())
        except OSError:
            return

    def beat(self, claim: Mapping[str, Any]) -> dict[str, Any]:
        """Show that this attempt lives; Superseded when a newer one owns the run."""
        store, mine = self.store(), _claim(claim)
        with self._there():
            store.require_own(mine)
            store.heartbeat(mine)
        return {}


def _bytes_below(paths: Sequence[Path]) -> int:
    """Bytes of the regular files in ``paths`` and below; what vanishes meanwhile does not count."""
    total = 0
    for top in paths:
        for directory, _, names in os.walk(top):
            for name in names:
                with suppress(OSError):
                    found = os.lstat(f"{directory}/{name}")
                    total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _claim(fields: Mapping[str, Any]) -> Claim:
    from agent.store import Claim

    return Claim(**fields)
