"""One seeded history of a run on the simulated disk: up to three attempts, alive at once or in turn, each crashed, stalled or met
with errors at any call; then a fresh attempt restores, and I1 to I8 are checked against what was acknowledged.

Threads carry the attempts but only one ever runs, and it hands over where the seed says: a seed replays exactly.
"""

from __future__ import annotations

import errno
import os
import random
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from agent.store import Budget, Claim, Claimant, FingerprintChanged, Metadata, Retention, Store, StoreError, Superseded
from agent.store.budget import usage
from agent.store.copying import Pace
from agent.store.errors import BadArchive
from agent.store.names import Commit
from agent.store.restore import check_commit
from tests.store.fates import Fate, fates
from tests.store.simulated_disk import Client, Dead, Disk, Node

ROOT = "/staging/segue/run"
COMMIT = re.compile(r"(\d{9})\.e(\d{6})\.tar")
SIZES = (0, 1, 511, 512, 513, 700, 1500)
SPOKEN = {"sync", "sync_directory", "write", "create", "reserve", "names", "open", "unlink", "stat"}
SAME = {"recipe": "reference", "data": "1"}
OTHER = {"recipe": "reference", "data": "2"}

Key = tuple[int, int]
"""(epoch, step): readers' order, spelled out here a second time on purpose."""
Tree = dict[str, tuple[str, bytes]]


@dataclass
class World:
    """What truly happened, kept apart from the store."""

    seed: int
    disk: Disk
    rng: random.Random
    budget: Budget
    rule: Retention
    written: dict[Key, Tree] = field(default_factory=dict)
    acknowledged: list[Key] = field(default_factory=list)
    claimed: dict[int, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    points: set[tuple[str, str, int, str]] = field(default_factory=set)
    calls: int = 0
    dead: bool = False

    def wrong(self, invariant: str, what: str) -> None:
        self.violations.append(f"{invariant}: {what}")


class Scheduler:
    """Runs one attempt at a time; ``point`` is where another may take over."""

    def __init__(self, world: World, chance: float) -> None:
        self._world = world
        self._chance = chance
        self._rng = random.Random(world.rng.random())
        self._attempts: list[Attempt] = []
        self._done = threading.Lock()
        self._done.acquire()

    def run(self, attempts: list[Attempt]) -> None:
        self._attempts = attempts
        if len(attempts) == 1:
            attempts[0].live()
            return
        for one in attempts:
            one.turn.acquire()
            threading.Thread(target=self._thread, args=(one,), daemon=True).start()
        self._next(None).turn.release()
        self._done.acquire()

    def _thread(self, attempt: Attempt) -> None:
        attempt.turn.acquire()
        try:
            attempt.live()
        finally:
            attempt.over = True
            if all(one.over for one in self._attempts):
                self._done.release()
            else:
                self._next(None).turn.release()

    def _ready(self, attempt: Attempt) -> bool:
        return self._world.calls >= max(attempt.fate.starts, attempt.stalled_until)

    def _next(self, current: Attempt | None) -> Attempt:
        alive = [one for one in self._attempts if not one.over and one is not current]
        ready = [one for one in alive if self._ready(one)]
        return self._rng.choice(ready) if ready else min(alive, key=lambda one: max(one.fate.starts, one.stalled_until))

    def point(self, attempt: Attempt) -> None:
        if len(self._attempts) == 1:
            return
        stalled = attempt.stalled_until > self._world.calls
        if not stalled and self._rng.random() >= self._chance:
            return
        others = [one for one in self._attempts if one is not attempt and not one.over]
        if not others or (not stalled and not any(self._ready(one) for one in others)):
            return
        chosen = self._next(attempt)
        chosen.turn.release()
        attempt.turn.acquire()


class Attempt:
    """One execution: claim, sweep, restore, then train and publish until its fate or its work ends."""

    def __init__(
        self, world: World, number: int, fate: Fate, scheduler: Scheduler, changed: bool, publishes: int
    ) -> None:
        self.world = world
        self.number = number
        self.fate = fate
        self.turn = threading.Lock()
        self.over = False
        self.stalled_until = 0
        self.restored: Key | None = None
        self.said: list[str] = []
        self.finished = False
        self._scheduler = scheduler
        self._changed = changed
        self._publishes = publishes
        self._rng = random.Random(world.rng.random())
        self._tries = random.Random(f"{world.seed} {number} tries again")
        self._calls = 0
        self._of_name: dict[str, int] = {}
        self._dead = False
        self._phase = "claim"
        self._phase_calls = 0
        self._tokens = 0
        self.client = Client(world.disk, f"machine-{number}")
        self.client.before, self.client.after = self._before, self._after
        self.client.half, self.client.spoil = self._half, self._spoil
        self.scratch = f"/scratch/{number}"
        world.disk.place(self.scratch, None)
        self.store = Store(
            Path(ROOT),
            fs=self.client,
            budget=world.budget,
            workers=0,
            clock=lambda: world.disk.clock,
            token=self._token,
        )

    def _token(self) -> str:
        self._tokens += 1
        return f"{self.number}{self._tokens:03x}"

    # What befalls it

    def _enter(self, phase: str) -> None:
        self._phase, self._phase_calls = phase, 0

    def _die(self, place: str) -> None:
        self.world.points.add((self._phase, self._call, self._phase_calls, place))
        self._dead = True
        if self.fate.crash_kind == "machine":
            self.world.disk.lose(self.client.name)
        elif self.fate.crash_kind == "power":
            self.world.dead = True
            self.world.disk.lose(None)
        raise Dead

    def _before(self, call: str, path: str) -> None:
        if self._dead or self.world.dead:
            raise Dead
        self.world.calls += 1
        self._calls += 1
        self._phase_calls += 1
        self._call = call
        fate = self.fate
        self._of_name[call] = self._of_name.get(call, 0) + 1
        if (self._of_name[call] if call == fate.stall_at else 0 if fate.stall_at else self._calls) == fate.stall:
            self.stalled_until = self.world.calls + fate.stall_calls
        self._scheduler.point(self)
        if self.world.dead:
            raise Dead
        if fate.crash_place == "before" and self._crashes(call):
            self._die("before")
        if fate.error and path.startswith("/staging") and self._fails(call):
            raise OSError(fate.error_number, os.strerror(fate.error_number), path)

    def _crashes(self, call: str) -> bool:
        if self.fate.crash_at:
            return call == self.fate.crash_at and self._of_name[call] == self.fate.crash
        return self._calls == self.fate.crash

    def _fails(self, call: str) -> bool:
        fate = self.fate
        if fate.error_at:
            return call == fate.error_at and fate.error <= self._of_name[call] < fate.error + fate.error_calls
        return call in SPOKEN and fate.error <= self._calls < fate.error + fate.error_calls

    def _after(self, call: str, path: str) -> None:
        if self.fate.crash_place != "before" and self._crashes(call):
            self._die("after")
        if self.fate.repeated and path.startswith("/staging"):
            if call == "link":
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            if call == "rename":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _half(self, size: int) -> int | None:
        if self.fate.crash_place != "half" or not self._crashes("write"):
            return None
        self.world.points.add((self._phase, "write", self._phase_calls, "half"))
        self._dead = True
        return self._rng.randrange(size + 1)

    def _spoil(self, read: memoryview) -> None:
        if self._phase == "restore" and self.fate.reads_badly and len(read):
            read[len(read) // 2] ^= 1
        if self._phase == "restore" and self.fate.bad_read and len(read) and self._phase_calls >= self.fate.bad_read:
            self.fate.bad_read = 0
            read[self._rng.randrange(len(read))] ^= 1 << self._rng.randrange(8)

    # What it does

    def live(self) -> None:
        try:
            self._live()
            self.finished = True
        except Dead:
            return
        except StoreError:
            return
        except Exception as error:
            self.world.wrong("I6", f"attempt {self.number} ended with {error!r} instead of a sentence")

    def _live(self) -> None:
        world = self.world
        changed = self._changed and bool(world.claimed)
        before = tuple(world.claimed)
        try:
            claim = self.store.claim(Claimant(self.client.name), OTHER if changed else SAME)
        except FingerprintChanged:
            if not changed:
                world.wrong("I8", "an unchanged fingerprint was refused")
            raise
        if changed:
            world.wrong("I8", f"epoch {claim.epoch} resumed under a changed fingerprint")
        if claim.epoch in world.claimed:
            world.wrong("I4", f"epoch {claim.epoch} was claimed twice")
        if claim.epoch < max(before, default=0):
            world.wrong("I4", f"epoch {claim.epoch} came after a higher one")
        world.claimed[claim.epoch] = self.client.name
        if self._rng.random() < 0.7:  # sweeping is tidiness; nothing may depend on it
            self._enter("sweep")
            self.store.sweep(claim)
        step = self._restore()
        if self._rng.random() < 0.15:  # consolidation prunes after its claim, a person whenever she likes
            self._enter("prune")
            self.store.prune(claim if self._rng.random() < 0.5 else None, world.rule)
        for _ in range(self._publishes):
            step += self._rng.choice((10, 20, 30))
            self._publish(claim, step)

    def _restore(self) -> int:
        world = self.world
        owed = max(world.acknowledged, default=None)
        place = f"{self.scratch}/restored"
        self.client.mkdir(place)
        self._enter("restore")
        found = self.store.restore(Path(place), report=self.said.append)
        if found is None:
            if owed is not None:
                world.wrong("I1", f"nothing restored although step {owed[1]} of epoch {owed[0]} was acknowledged")
            return 0
        self.restored = (found.commit.epoch, found.commit.step)
        if owed is not None and self.restored < owed:
            world.wrong("I1", f"restored {self.restored} although {owed} was acknowledged")
        if tree_of(world.disk.find(place)) != world.written.get(self.restored):
            world.wrong("I3", f"{self.restored} was restored with another content than was published")
        return found.commit.step

    def _publish(self, claim: Claim, step: int) -> None:
        world = self.world
        key = (claim.epoch, step)
        source = f"{self.scratch}/{step}"
        world.written[key] = self._train(source)
        metadata = Metadata(step, str(step), "reference", metrics={"loss": self._rng.random()})
        for left in reversed(range(self._tries.choice((1, 2, 3)))):  # as the agent, which keeps the snapshot
            try:
                self._publish_and_prune(claim, Path(source), metadata)
                return
            except Superseded:
                raise
            except StoreError:
                if not left and self._rng.random() < 0.5:
                    self._enter("prune")
                    self.store.prune(claim, world.rule)

    def _publish_and_prune(self, claim: Claim, source: Path, metadata: Metadata) -> None:
        world = self.world
        newer = max(world.claimed)
        alone = sum(1 for one in self._scheduler._attempts if not one.over) <= 1
        self._enter("publish")
        commit = self.store.publish(claim, source, metadata, retention=world.rule)
        world.acknowledged.append((claim.epoch, metadata.step))
        if newer > claim.epoch:
            world.wrong(
                "I4", f"epoch {claim.epoch} published {commit.name} although epoch {newer} owned the run before"
            )
        if alone and world.budget.bytes is not None:
            used = usage(Client(world.disk, "looker"), ROOT)
            if used.bytes > world.budget.bytes or used.items > (world.budget.items or 0):
                world.wrong("I5", f"{used} exceed {world.budget}")
        if self._rng.random() < 0.8:
            self._enter("prune")
            self.store.prune(claim, world.rule)
        self._enter("heartbeat")
        self.store.heartbeat(claim)

    def _train(self, source: str) -> Tree:
        disk = self.world.disk
        top = source.rpartition("/")[2]
        disk.place(source, None)
        disk.place(f"{source}/{top}", None)
        disk.place(f"{source}/{top}/assets", None)
        tree: Tree = {top: ("directory", b""), f"{top}/assets": ("directory", b"")}
        for number in range(self._rng.choice((1, 2, 3))):
            data = self._rng.randbytes(self._rng.choice(SIZES))
            disk.place(f"{source}/{top}/{number}", data)
            tree[f"{top}/{number}"] = ("file", data)
        return tree


def tree_of(node: Node, prefix: str = "") -> Tree:
    """All below a directory as live clients see it."""
    found: Tree = {}
    for name, below in node.entries.items():
        found[prefix + name] = (below.kind, bytes(below.data))
        if below.kind == "directory":
            found.update(tree_of(below, f"{prefix}{name}/"))
    return found


def names_in(world: World) -> list[str]:
    """What lies in the directory of the commits, none where it is not there."""
    try:
        return list(Client(world.disk, "judge").names(f"{ROOT}/checkpoints"))
    except FileNotFoundError:
        return []


def good_keys(world: World) -> tuple[list[Key], list[str]]:
    """(commits that are whole and say what was published, best first; names of those that are not), judged by unbroken code."""
    looker = Client(world.disk, "judge")
    directory = f"{ROOT}/checkpoints"
    good: list[Key] = []
    bad: list[str] = []
    for name in names_in(world):
        match = COMMIT.fullmatch(name)
        if match is None:
            continue
        step, epoch = int(match[1]), int(match[2])
        commit = Commit(Path(f"{directory}/{name}"), step, epoch, 0, 0.0)
        try:
            manifest = check_commit(looker, commit, Pace(), 0)
        except BadArchive:
            bad.append(name)
            continue
        wanted = world.written.get((epoch, step))
        shown = {one.path: one.size for one in manifest.entries}
        if wanted is None or shown != {path: len(data) for path, (_, data) in wanted.items()}:
            bad.append(name)
        else:
            good.append((epoch, step))
    return sorted(good, reverse=True), bad


def judge(world: World, good: list[Key], bad: list[str]) -> None:
    """I1, I2 after all attempts have ended and before anything repairs."""
    for name in bad:
        world.wrong("I2", f"{name} is not complete under its final name")
    owed = sorted(set(world.acknowledged), reverse=True)[:2]
    for place, key in enumerate(owed):
        if sum(1 for one in good if one >= key) <= place:
            world.wrong("I1", f"acknowledged {owed}, but only {good[:3]} can be restored")
            break
    every = world.rule.every
    if every is not None:
        # A commit that was set aside stands for its multiple as well: whether it is good is not for a prune to say.
        there = {int(match[1]) // every for name in names_in(world) if (match := COMMIT.match(name))}
        for lost in {step // every for _, step in world.acknowledged} - there - {0}:
            world.wrong("I1", f"a commit at or after step {lost * every} was acknowledged, and none stays")


def rot(world: World, key: Key) -> None:
    """Flip one bit of a commit on the disk."""
    node = world.disk.find(f"{ROOT}/checkpoints/{key[1]:09d}.e{key[0]:06d}.tar")
    place = world.rng.randrange(len(node.data))
    node.data[place] ^= 1 << world.rng.randrange(8)
    node.synced_data = bytes(node.data)


Mutant = Callable[[], AbstractContextManager[object]]


def play(seed: int, mutant: Mutant = nullcontext) -> World:
    """Play history number ``seed`` with the store as it is, or broken by ``mutant``; the world says what was violated."""
    rng = random.Random(seed)
    disk = Disk(random.Random(rng.random()))
    disk.place("/staging", None)
    disk.place("/scratch", None)
    tight = rng.random() < 0.25
    budget = Budget(rng.randrange(25_000, 70_000), rng.randrange(9, 14)) if tight else Budget()
    world = World(seed, disk, rng, budget, Retention(rng.choice((2, 2, 3)), (None, 30, 50)[seed % 3]))
    poor = random.Random(f"{seed} what this disk lacks")
    disk.reserves, disk.links = poor.random() < 0.7, poor.random() < 0.9
    scheduler = Scheduler(world, rng.choice((0.02, 0.1, 0.5)))
    attempts = [
        Attempt(world, number, fate, scheduler, number > 0 and rng.random() < 0.1, rng.choice((1, 2, 3, 4)))
        for number, fate in enumerate(fates(rng, seed))
    ]
    with mutant():
        scheduler.run(attempts)
    world.dead = False
    if rng.random() < 0.5:
        disk.lose(None)
    good, bad = good_keys(world)
    judge(world, good, bad)
    rotten = bool(good) and rng.random() < 0.2
    if rotten:
        rot(world, good.pop(0))
        world.acknowledged = [key for key in world.acknowledged if good and key <= good[0]]
    if not bad:
        _restore_afresh(world, mutant, good, rotten, len(attempts))
    return world


def _restore_afresh(world: World, mutant: Mutant, good: list[Key], rotten: bool, number: int) -> None:
    """I1, I3 and I4 as a fresh attempt meets them, alone and undisturbed."""
    fresh = Scheduler(world, 0.0)
    last = Attempt(world, number, Fate(), fresh, False, 0)
    with mutant():
        fresh.run([last])
        if last.finished:
            last.store.sweep(Claim(max(world.claimed), ""))
    if rotten and not good:
        if last.finished or last.restored is not None:
            world.wrong("I1", "a run whose only commit is bad was taken for an empty one")
        if not good_keys(world)[1]:
            world.wrong("I3", "the only commit was set aside")
    elif not last.finished:
        world.wrong("I1", "a fresh attempt could not open the run")
    elif last.restored != (good[0] if good else None):
        world.wrong("I3", f"a fresh attempt restored {last.restored}; {good[:1]} is the newest good commit")
    epoch = max(world.claimed)
    left = [name for name in tree_of(world.disk.find(ROOT)) if _made_by(name) <= epoch]
    if left and last.finished:
        world.wrong("I2", f"temporary names were not swept: {left}")


def _made_by(name: str) -> float:
    """The epoch that made a temporary or un-referenced name; infinite for other names."""
    match = re.search(r"/\.(?:claim-|run-|\d{9}\.e)(\d{6}).*\.(?:tmp|pruned)$", f"/{name}")
    return int(match[1]) if match else float("inf")
