"""How many segments a run needs, of which class, and what it needs in staging: arithmetic on spec and site, nothing else.

A segment's usable time is its class's limit less the margin, restoring, starting up, and the last save and publish. Steps are
bounded by what fits into that; the reserve covers evictions and steps slower than thought, and costs nothing when it is not needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from agent.config import Pace
from agent.errors import BadInput
from dagman.site import Gpu, Site
from dagman.spec import Spec
from dagman.toml import suggestion

# A segment in reserve costs one PRE script of milliseconds, a missing one costs a new submission by hand.
RESERVE_FRACTION = 0.5
MOST_SEGMENTS = 10_000
# One eviction in so many seconds of execution is assumed until a run has seen its own rate (used for the save interval alone).
ASSUMED_MEAN_TIME_TO_EVICTION_S = 8 * 3600.0


@dataclass(frozen=True)
class Moving:
    """What checkpoints cost where jobs mount no staging (exit 85): each one ends the trainer, travels to the access point, and the trainer
    starts again. ``restart_s`` seconds each, every ``steps`` steps; ``share`` of the slot's time goes there.
    """

    steps: int
    restart_s: float
    share: float


@dataclass(frozen=True)
class Plan:
    """The answer. Times in seconds, sizes in bytes; ``segments`` includes ``reserve``."""

    queue_class: str
    limit_s: float
    margin_s: float
    usable_s: float
    pace: Pace
    steps_per_segment: int
    needed: int
    reserve: int
    save_interval: int | None
    queue_s: float
    gpus: tuple[Gpu, ...]
    moving: Moving | None = None

    @property
    def segments(self) -> int:
        """Nodes of the chain."""
        return self.needed + self.reserve

    @property
    def training_s(self) -> float:
        """Execution time of the needed segments, without queueing."""
        overhead = self.pace.startup_s + self.pace.restore_s + self.pace.save_s + self.pace.publish_s
        restarts = self._steps // self.moving.steps if self.moving is not None else 0
        moved = restarts * self.moving.restart_s if self.moving is not None else 0.0
        return self.needed * overhead + self._steps * self.pace.step_s + moved

    _steps: int = 0


def pace_of(spec: Spec, site: Site) -> Pace:
    """The user's figures where given, else the site's estimates."""

    def pick(name: str) -> float:
        own: float | None = getattr(spec.pace, name)
        return own if own is not None else float(getattr(site.defaults, name))

    return Pace(pick("step_s"), pick("save_s"), pick("publish_s"), pick("restore_s"), pick("startup_s"))


def young_daly_steps(save_s: float, step_s: float, mean_time_to_eviction_s: float) -> int:
    """Steps between saves that lose least: sqrt(2 * cost of a save * mean time to failure) (Young 1974, Daly 2006)."""
    return max(1, round(math.sqrt(2 * max(save_s, 0.01) * mean_time_to_eviction_s) / step_s))


def moving_of(spec: Spec, pace: Pace, per_segment: int) -> Moving:
    """How often to restart for a checkpoint and what that costs, by run.toml's save_interval or Young's and Daly's."""
    restart = pace.save_s + pace.publish_s + pace.restore_s + pace.startup_s
    chosen = spec.segments.save_interval or young_daly_steps(restart, pace.step_s, ASSUMED_MEAN_TIME_TO_EVICTION_S)
    steps = max(1, min(chosen, per_segment, spec.steps))
    return Moving(steps, restart, restart / (restart + steps * pace.step_s))


def _too_many(spec: Spec, site: Site, name: str, step_s: float, needed: int, reserve: int) -> str:
    """Which of the keys makes a chain too long, and what to do about it."""
    if spec.segments.count is None and needed > MOST_SEGMENTS:
        longer = any(entry.limit_s > site.classes[name].limit_s for entry in site.classes.values())
        remedy = "take a longer class" if longer else "give fewer steps, or a measured pace.step_s"
        return f"steps: {spec.steps} steps of {step_s:g} s make {needed} segments of class {name}; {remedy}"
    own = "" if spec.segments.reserve is not None else " (half as many, unless segments.reserve says otherwise)"
    remedy = "give a smaller segments.count or segments.reserve"
    if spec.segments.count is None:
        remedy = "take a longer class, or give a smaller segments.reserve"
    return (
        f"segments.{'reserve' if spec.segments.count is None else 'count'}: {needed} segments and {reserve} in reserve{own} are more than "
        f"{MOST_SEGMENTS}: {remedy}"
    )


def _required(requirements: str | None, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Those for which the user's expression can be true, by what the site's table knows of them; all of them where it is false for each,
    because then it asks for something that the table does not have.
    """
    if requirements is None:
        return gpus
    from classad2 import ClassAd, ExprTree

    expression = ExprTree(requirements)

    def refused(gpu: Gpu) -> bool:
        known = {"GPUs_DeviceName": gpu.name, "GPUs_Capability": gpu.capability, "GPUs_GlobalMemoryMb": gpu.memory_mb}
        return expression.eval(ClassAd(known), ClassAd(known)) is False

    return tuple(gpu for gpu in gpus if not refused(gpu)) or gpus


def make_plan(spec: Spec, site: Site) -> Plan:
    """BadInput when the class is unknown, or too short for one step with its save and publish."""
    name = spec.segments.queue_class or site.default_class
    if name not in site.classes:
        raise BadInput(
            f"segments.class: {name!r} is not a class of site {site.name}; there are {', '.join(site.classes)}"
            f"{suggestion(name, site.classes)}"
        )
    limit = site.classes[name].limit_s
    own = spec.agent.margin_s
    margin = site.margin_s(name) if own is None else own
    pace = pace_of(spec, site)
    overhead = pace.startup_s + pace.restore_s + pace.save_s + pace.publish_s
    usable = limit - margin - overhead
    per_segment = math.floor(usable / pace.step_s + 1e-9)
    if per_segment < 1:
        enough = [
            other
            for other, entry in site.classes.items()
            if entry.limit_s - (site.margin_s(other) if own is None else own) - overhead >= pace.step_s
        ]
        if own is not None and limit - site.margin_s(name) - overhead >= pace.step_s:
            remedy = f"give a smaller agent.margin_s (the site's: {site.margin_s(name):g} s)"
            remedy += f", or take class {enough[0]}" if enough else ""
        else:
            remedy = f"take class {enough[0]}" if enough else "give smaller, measured values in [pace]"
        raise BadInput(
            f"segments.class: {name} ({limit:g} s) is shorter than one step plus one publish: margin {margin:g} s + start-up "
            f"{pace.startup_s:g} s + restore {pace.restore_s:g} s + save {pace.save_s:g} s + publish {pace.publish_s:g} s + step "
            f"{pace.step_s:g} s = {margin + overhead + pace.step_s:g} s; {remedy}"
        )
    interval = spec.segments.save_interval
    if interval is not None and interval > per_segment and interval < spec.steps:
        raise BadInput(
            f"segments.save_interval: {interval} steps do not fit into one segment of class {name} (about {per_segment} steps): the run "
            f"would redo the same steps for ever; at most {per_segment}, or leave it out and the agent chooses"
        )
    moving = None
    if spec.agent.checkpoint_exit:
        moving = moving_of(spec, pace, per_segment)
        per_segment = max(moving.steps, math.floor(per_segment * (1 - moving.share)) // moving.steps * moving.steps)
    needed = spec.segments.count or math.ceil(spec.steps / per_segment)
    reserve = (
        spec.segments.reserve if spec.segments.reserve is not None else max(2, math.ceil(RESERVE_FRACTION * needed))
    )
    if needed + reserve > MOST_SEGMENTS:
        raise BadInput(_too_many(spec, site, name, pace.step_s, needed, reserve))
    fitting = tuple(site.fitting_gpus(spec.resources.gpu_memory_mb, spec.resources.gpu_capability))
    if site.gpus and not fitting and (spec.resources.gpus is None or spec.resources.gpus > 0):
        raise BadInput(
            f"resources: no GPU of {site.title} has {spec.resources.gpu_memory_mb or 0} MB and capability "
            f"{spec.resources.gpu_capability or 0:g}; the largest is {max(site.gpus, key=lambda gpu: gpu.memory_mb).name}"
        )
    fitting = _required(spec.resources.requirements, fitting)
    wanted = site.resources.gpus if spec.resources.gpus is None else spec.resources.gpus
    roomy = tuple(gpu for gpu in fitting if gpu.per_machine >= wanted > 0)
    if fitting and wanted and not roomy:
        raise BadInput(
            f"resources.gpus: no machine of {site.title} has {wanted} GPUs that fit; at most {max(gpu.per_machine for gpu in fitting)} in one machine"
        )
    return Plan(
        queue_class=name, limit_s=limit, margin_s=margin, usable_s=usable, pace=pace, steps_per_segment=per_segment, needed=needed,
        reserve=reserve, save_interval=interval, queue_s=site.defaults.queue_s, gpus=roomy, moving=moving, _steps=spec.steps,
    )  # fmt: skip
