"""Once a minute: show that this attempt lives, and see whether a newer one owns the run."""

from __future__ import annotations

from agent.attempt import Attempt
from agent.errand import Errand, Outcome
from agent.staging import Staging

BEAT_S = 60.0
_SILENT_S = 300.0


class Heartbeat:
    """Begins with its construction; a beat that staging does not answer is the only one under way."""

    def __init__(self, attempt: Attempt, staging: Staging) -> None:
        self._attempt = attempt
        self._staging = staging
        self._beating = False
        attempt.loop.every(BEAT_S, self.beat)

    def beat(self) -> None:
        """One beat, unless it would be the second at a time or the attempt is about to end."""
        if self._beating or self._attempt.superseded or self._attempt.leaving:
            return
        self._beating = True
        import agent.keeping
        import agent.store.store  # noqa: F401  (once here, instead of in each child from now on)

        Errand(
            self._attempt.loop, lambda report: self._staging.beat(self._attempt.claim), self._done, silent_s=_SILENT_S
        )

    def _done(self, outcome: Outcome) -> None:
        self._beating = False
        if outcome.error == "Superseded":
            self._attempt.note_superseded(outcome)
        elif not outcome.ok and outcome.error != "Cancelled":
            self._attempt.warn(f"{outcome.message}; training goes on", key="staging")
