"""Which epoch each attempt had: from claims and handovers where there are any, and by counting in between.

The store keeps the newest claims only, and an evicted attempt sends no handover. But epochs are strictly increasing over a run, and an
attempt makes one claim: between two attempts that are known, as many epochs as attempts can be meant in one way alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dagman.attempts import Attempt

# A machine's clock and the access point's may differ by so much (seconds) when a claim is matched with an attempt.
CLOCKS_S = 5.0


@dataclass(frozen=True)
class ClaimSeen:
    """What is known of an epoch: the job that claimed it, and when (Unix seconds, by the machine's clock)."""

    epoch: int
    job: str
    began: float


def claim_of_handover(handover: Mapping[str, Any]) -> ClaimSeen | None:
    """The claim that a handover speaks of, None when it does not."""
    epoch, job, began = (handover.get(key) for key in ("epoch", "job_id", "began"))
    if not isinstance(epoch, int) or epoch < 1 or not isinstance(job, str) or not isinstance(began, int | float):
        return None
    return ClaimSeen(epoch, job, float(began))


def epochs_of(attempts: Sequence[Attempt], claims: Sequence[ClaimSeen]) -> dict[int, int]:
    """Epoch by the attempt's place in ``attempts``, which are those of the whole run in the order of their begin."""
    places: dict[int, int] = {}
    for claim in sorted({claim.epoch: claim for claim in claims}.values(), key=lambda claim: claim.epoch):
        place = _place(attempts, claim, places)
        if place is not None:
            places[place] = claim.epoch
    known = sorted(places.items())
    if any(after <= before for (_, before), (_, after) in pairwise(known)):
        return places  # not one history (a run was begun anew): no counting
    for (left, low), (right, high) in pairwise([(-1, 0), *known]):
        if right - left == high - low:
            places.update((left + gap, low + gap) for gap in range(1, right - left))
    return places


def _place(attempts: Sequence[Attempt], claim: ClaimSeen, taken: Mapping[int, int]) -> int | None:
    """The last attempt of the claim's job that had begun by then."""
    fitting = [
        place
        for place, attempt in enumerate(attempts)
        if attempt.job == claim.job
        and place not in taken
        and attempt.began - CLOCKS_S <= claim.began <= (attempt.ended or float("inf")) + CLOCKS_S
    ]
    begun = [place for place in fitting if attempts[place].began <= claim.began]
    return begun[-1] if begun else fitting[0] if fitting else None
