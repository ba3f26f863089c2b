"""What goes on beside the training and may fail without harm: W&B, telemetry, carried caches, and keeping what an attempt said.

Each touches staging through an errand of its own, at most one at a time, and never more than a hundredth of the time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from agent.attempt import Attempt
from agent.errand import Errand, Outcome, Report, patience_s
from agent.loop import steady
from agent.staging import Staging
from agent.telemetry import Telemetry
from agent.training import Training

_KEEP_S = 60.0
_COST_SHARE = 100.0
_LAST_S = 20.0
_LEAVE_RESERVE_S = 1.0
_PROBE_WAIT_S = 2.0
_LABEL_TRIES = 3
_LABEL_S = 90.0


class Companions:
    """Made once an attempt; ``begin`` before the first start, ``last`` when no trainer runs any more."""

    def __init__(self, attempt: Attempt, staging: Staging) -> None:
        self._attempt = attempt
        self._staging = staging
        self._training: Training | None = None
        self._keeping: Errand | None = None
        self._kept_size = -1
        self._bytes = 0
        self._next_keep = time.monotonic() + _KEEP_S
        self._online = False
        self._carried: Sequence[str] = ()
        self._carry_known = ""
        self._probe: Errand | None = None
        self._labelling: Errand | None = None
        self._identity = ""
        self._key: str | None = None
        self._unlabelled = 0

    # --- W&B -----------------------------------------------------------------------------------------------------

    def take_secret(self) -> None:
        """Read and remove the key file; begin to see whether W&B's server can be reached."""
        wandb = self._attempt.job.wandb
        if wandb is None:
            return
        from agent.wandb_run import reachable, take_key

        self._key = take_key(wandb, self._attempt.place)
        self._online = wandb.mode == "online"
        if wandb.mode == "auto" and self._key:
            env = self._attempt.job.env  # a server of one's own is named there (WANDB_BASE_URL)
            self._probe = Errand(
                self._attempt.loop,
                lambda report: {"online": reachable({**os.environ, **env})},
                self._probed,
                silent_s=_PROBE_WAIT_S,
                low_priority=False,
            )

    def restarts_here(self) -> None:
        """No trainer runs, and HTCondor starts the job again in this sandbox: the next execution knows, and needs the key file too."""
        self._attempt.place.note_restart()
        wandb = self._attempt.job.wandb
        if wandb is None or self._key is None:
            return
        from agent.wandb_run import leave_key

        with suppress(OSError):  # the next one says that it has no key, and writes offline
            leave_key(wandb, self._attempt.place, self._key)

    def _probed(self, outcome: Outcome) -> None:
        self._online = outcome.ok and bool(outcome.value.get("online"))

    def environment(self, checkpoint_root: Path) -> dict[str, str]:
        """WANDB_* for the trainer; waits for the probe, which ran while the run was opened."""
        wandb = self._attempt.job.wandb
        if wandb is None:
            return {}
        from agent.wandb_run import environment, offline_directory, run_id

        probe = self._probe
        if probe is not None:
            self._attempt.loop.run_until(
                lambda: probe.finished or self._attempt.leaving, time.monotonic() + _PROBE_WAIT_S
            )
        directory = offline_directory(self._attempt.place)
        directory.mkdir(exist_ok=True)
        online = self._online and not self._attempt.wandb_failed and not self._attempt.wandb_unsent
        told = environment(wandb, self._key, run_id(wandb, checkpoint_root), online, directory)
        self._identity = told["WANDB_RUN_ID"]
        self._unlabelled = _LABEL_TRIES if told["WANDB_MODE"] == "online" and (wandb.name or wandb.tags) else 0
        # of a start that the client ended, the warning has told it
        if told["WANDB_MODE"] == "offline" and wandb.mode != "offline" and not self._attempt.wandb_failed:
            self._attempt.warn(self._why_offline())
        return told

    def _label(self, training: Training) -> None:
        """Put W&B's run right where the trainer names it itself: once it trains, the run is there."""
        wandb, key = self._attempt.job.wandb, self._key
        known = training.recipe.labels_wandb and training.step > training.start.resume_step
        if not self._unlabelled or not known or self._labelling is not None or wandb is None or key is None:
            return
        from agent.wandb_run import DEFAULT_URL

        def work(report: Report) -> dict[str, Any]:
            from agent.recipes.environment import ca_bundle
            from agent.wandb_label import Server, label

            os.environ.update(training.start.job.env)  # a process of its own; server and proxy may be named there
            url = os.environ.get("WANDB_BASE_URL") or DEFAULT_URL
            certificates = ca_bundle(training.start)
            label(Server(key, url, str(certificates) if certificates else None), wandb, self._identity)
            return {}

        def done(outcome: Outcome) -> None:
            self._labelling = None
            self._unlabelled = 0 if outcome.ok else max(0, self._unlabelled - 1)
            if not outcome.ok and not self._unlabelled and outcome.error != "Cancelled":
                self._attempt.warn(f"{outcome.message}; training goes on", key="wandb-label")

        self._labelling = Errand(self._attempt.loop, work, done, silent_s=_LABEL_S)

    def _why_offline(self) -> str:
        """What began offline stays so until it is sent: trainers resume with `resume="must"`, which ends them where W&B's server does not
        know the run, and the server drops steps that come after later ones.
        """
        later = "it writes offline; `segue wandb sync` sends it later"
        if not self._key:
            return f"there is no W&B key: {later}"
        if unsent := self._attempt.wandb_unsent:
            what = f"what {unsent} earlier attempts" if unsent > 1 else "what an earlier attempt"
            return (
                f"{what} wrote to W&B offline is not sent yet, so this one writes offline too: after `segue wandb sync` the next attempts are "
                "online again"
            )
        return f"W&B cannot be reached from here: {later}"

    # --- telemetry -----------------------------------------------------------------------------------------------

    @cached_property
    def _telemetry(self) -> Telemetry:
        return Telemetry(self._attempt)

    def carry(self, carried: Sequence[str]) -> None:
        """Before a start: which caches travel; what lies there now has come from the store."""
        from agent.carry import mark

        if not self._carried:
            self._carried = tuple(carried)
            with suppress(OSError):  # nothing depends on caches but time
                self._carry_known = mark(self._attempt.place.scratch, self._carried)

    def started(self, training: Training) -> None:
        """A trainer runs: watch it."""
        if self._training is None:
            self._attempt.loop.every(self._attempt.job.telemetry_s, self._sample)
        self._training = training
        self._telemetry.note(
            "start", epoch=self._attempt.epoch, machine=self._attempt.place.machine, step=training.start.resume_step
        )

    def _sample(self) -> None:
        if self._training is not None and not self._training.over:
            self._telemetry.sample(self._training)
            self._label(self._training)
            if time.monotonic() >= self._next_keep:
                self.keep()

    def note(self, event: str, **facts: object) -> None:
        """One line in the ledger."""
        self._telemetry.note(event, **facts)

    # --- keeping -------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Bring log, ledger, offline W&B files and changed caches to the store, unless that is under way or nothing is new."""
        attempt = self._attempt
        if self._keeping is not None or attempt.superseded or not attempt.epoch:
            return
        size = attempt.log.path.stat().st_size if attempt.log.path.exists() else 0
        if size == self._kept_size and not self._carried:
            return
        began = time.monotonic()

        def done(outcome: Outcome) -> None:
            self._keeping = None
            self._next_keep = time.monotonic() + max(_KEEP_S, _COST_SHARE * (time.monotonic() - began))
            if outcome.ok:
                self._kept_size = size
                self._carry_known = outcome.value.get("carry", self._carry_known)
            elif outcome.error != "Cancelled":
                # Staging that is away has one warning, whoever notices it first.
                key = "staging" if outcome.error in ("StoreUnavailable", "Hung", "RunGone") else "keep"
                attempt.warn(f"{outcome.message}; training goes on", key=key)

        def told(report: dict[str, Any]) -> None:
            self._bytes += report.get("size", 0)
            if "warning" in report:
                attempt.warn(report["warning"], key="wandb")

        self._bytes = 0
        sources = {"log": attempt.log.path, "jsonl": attempt.own / "telemetry.jsonl"}
        self._keeping = Errand(
            attempt.loop,
            lambda report: self._staging.keep(attempt.epoch, sources, self._carried, self._carry_known, report),
            done,
            report=told,
            silent_s=_LAST_S,
        )

    def last(self, until: float) -> None:
        """Keep the end of the log too; waits for it until the Unix time ``until`` at most, and says what was cut."""
        if not self._attempt.epoch or self._attempt.superseded:
            return
        began = time.monotonic()
        until += began - steady()
        self._wait(began, until)
        if self._keeping is None and time.monotonic() < self._limit(until) and not self._attempt.leave_now:
            self.keep()  # one that was under way has not seen the end
            self._wait(began, until)
        if self._keeping is not None:
            if self._bytes:
                self._attempt.warn(
                    f"keeping {self._bytes / 1e6:.0f} MB of caches and offline W&B files took longer than the {time.monotonic() - began:.0f} s that "
                    "were left: what was kept before stays, the newest part is lost"
                )
            self._keeping.cancel()

    def _wait(self, began: float, until: float) -> None:
        """For the keeping under way: longer than usual where it moves much, which it says itself."""
        attempt = self._attempt
        while self._keeping is not None and not attempt.leave_now:
            limit = min(self._limit(until), began + patience_s(self._bytes, _LAST_S))
            if time.monotonic() >= limit:
                return
            attempt.loop.run_until(
                lambda known=attempt.leaving_until: (  # type: ignore[misc]
                    self._keeping is None or attempt.leave_now or attempt.leaving_until != known
                ),
                limit,
            )

    def _limit(self, until: float) -> float:
        """``until``, or sooner when a SIGTERM has come meanwhile."""
        leaving = self._attempt.leaving_until
        return until if leaving is None else min(until, time.monotonic() + leaving - _LEAVE_RESERVE_S - steady())
