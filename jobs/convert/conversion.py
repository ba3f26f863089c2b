"""The whole conversion: list, check everything, convert what is not converted yet, join, rename.

Until the last rename everything lies in `<out>.segue-partial`, so that `<out>` is either absent or whole. Layout of that directory:

    conversion.json   the options and the lerobot version that began it
    done/000012.json  episode 12 is whole: its place, what was found in it, its lines of meta/
    dataset/          grows (v2.1), or is joined from parts/ at the end (v3.0)
    work/             episodes in the making; removed at each start
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.errors import BadInput, SegueError
from jobs.convert import episode_job
from jobs.convert.episode_job import Place
from jobs.convert.inspection import Inspection, good_ones, judge
from jobs.convert.options import ConvertOptions, checked
from jobs.convert.package import installed_format, installed_version
from jobs.convert.part import told
from jobs.convert.progress import Progress
from jobs.convert.reader import EpisodeRef, reader_of, recognise
from jobs.convert.workers import Workers


@dataclass(frozen=True)
class Converted:
    """The finished dataset: ``resumed`` of its ``episodes`` were there from an earlier start; ``skipped`` name and problem of each bad one."""

    dataset: Path
    format: str
    layout: str
    episodes: int
    frames: int
    resumed: int
    skipped: tuple[tuple[str, str], ...]

    def dump(self) -> str:
        """As JSON on one line."""
        return json.dumps(
            {**self.__dict__, "dataset": str(self.dataset), "skipped": [list(pair) for pair in self.skipped]}
        )


def convert(asked: ConvertOptions, say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)) -> Converted:
    """Convert all episodes of ``asked.source``. ``say`` takes lines for people.

    Raises BadInput for a source or options that cannot be converted (nothing is written then), SegueError when writing fails (what is
    converted stays for the next start).
    """
    options = checked(asked)
    layout = recognise(options.source_path, options.layout)
    reader = reader_of(layout)
    options = replace(options, robot_type=options.robot_type or reader.ROBOT_TYPE)
    form = installed_format(options.format)
    refs = reader.episodes(options.source_path)
    _refuse_inside(options)
    with (
        _locked(options),
        _environment(options),
        Workers(min(options.workers, len(refs)), ["jobs.convert.preload"]) as workers,
    ):
        known = _known(options, refs)
        found = _inspections(workers, refs, known, layout, options)
        good = good_ones(found, options.skip_bad)
        skipped = tuple((bad.ref.name, bad.problem or "") for bad in found if bad.problem is not None)
        for name, problem in skipped:
            say(f"segue: skipped {name}: {problem}")
        tasks = list(dict.fromkeys(each.task for each in good))
        places = _places(good, tasks)
        _begin(options, form)
        markers = _converted(workers, places, known, layout, options, form)
        workers.one(episode_job.join, options, form, [marker for marker, _ in markers], tasks)
        _publish(options)
    frames = sum(each.frames for each in good)
    resumed = sum(there for _, there in markers)
    return Converted(options.out_path, form, layout, len(good), frames, resumed, skipped)


def _refuse_inside(options: ConvertOptions) -> None:
    if options.out_path.is_relative_to(options.source_path):
        raise BadInput(f"--out {options.out}: lies inside the source {options.source}; name a place outside it")


@contextmanager
def _environment(options: ConvertOptions) -> Iterator[None]:
    """What the workers' libraries read when they are imported: no bars, no network, caches that go with the partial directory."""
    wanted = {
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(options.partial / "work" / "cache"),
        "SVT_LOG": "1",
        "PYTHONWARNINGS": "ignore:resource_tracker",  # interrupted workers leave the tidying of their locks to it, and it says so
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _locked(options: ConvertOptions) -> Iterator[None]:
    """One conversion at a time into one place; the lock goes with the process. The parent of ``out`` is made when it is missing."""
    lock = options.out_path.with_name(f".{options.out_path.name}.segue-lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BadInput(
                    f"{options.out}: another conversion is writing it; wait for its end or name another --out"
                ) from error
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except OSError as error:
        raise told(options.out_path, error) from error


def _known(options: ConvertOptions, refs: Sequence[EpisodeRef]) -> dict[str, dict[str, Any]]:
    """Markers of an earlier start whose source has not changed, by the episode's name. Raises BadInput when it was begun otherwise."""
    begun = options.partial / "conversion.json"
    if not begun.exists():
        shutil.rmtree(options.partial, ignore_errors=True)
        return {}
    if json.loads(begun.read_text(encoding="utf-8")) != _beginning(options):
        raise BadInput(
            f"{options.partial}: was begun with other options or another lerobot; run it with those, or remove that directory to start anew"
        )
    signatures = {ref.name: episode_job.signature(ref) for ref in refs}
    markers: dict[str, dict[str, Any]] = {}
    for path in sorted((options.partial / "done").glob("*.json")):
        marker = json.loads(path.read_text(encoding="utf-8"))
        if signatures.get(marker["name"]) == marker["signature"]:
            markers[marker["name"]] = {**marker, "index": int(path.stem)}
    return markers


def _beginning(options: ConvertOptions) -> dict[str, Any]:
    return {"format": 1, "options": options.what_is_written(), "lerobot": installed_version()}


def _inspections(
    workers: Workers, refs: Sequence[EpisodeRef], known: dict[str, dict[str, Any]], layout: str, options: ConvertOptions
) -> list[Inspection]:
    found = {ref.name: _remembered(ref, known[ref.name]) for ref in refs if ref.name in known}
    unknown = [ref for ref in refs if ref.name not in found]
    bar = Progress("check", len(refs), len(found))
    for place, inspection in workers.each(episode_job.inspect_one, unknown, layout, options):
        found[unknown[place].name] = inspection
        bar.step()
    bar.close()
    return judge([found[ref.name] for ref in refs])


def _remembered(ref: EpisodeRef, marker: dict[str, Any]) -> Inspection:
    vectors, cameras, task = marker["inspection"]
    return Inspection(
        ref,
        int(marker["length"]),
        tuple((str(name), int(width)) for name, width in vectors),
        tuple((str(name), (int(size[0]), int(size[1]))) for name, size in cameras),
        str(task),
    )


def _places(good: Sequence[Inspection], tasks: Sequence[str]) -> list[Place]:
    places, row = [], 0
    for index, found in enumerate(good):
        places.append(Place(found, index, row, tasks.index(found.task)))
        row += found.frames
    return places


def _begin(options: ConvertOptions, form: str) -> None:
    """Make the partial directory and leave out what an earlier start had in the making."""
    shutil.rmtree(options.partial / "work", ignore_errors=True)
    for name in ("work", "done", "dataset" if form == "v2.1" else "parts"):
        (options.partial / name).mkdir(parents=True, exist_ok=True)
    temporary = options.partial / "conversion.tmp"
    temporary.write_text(json.dumps(_beginning(options)), encoding="utf-8")
    temporary.replace(options.partial / "conversion.json")


def _converted(
    workers: Workers,
    places: Sequence[Place],
    known: dict[str, dict[str, Any]],
    layout: str,
    options: ConvertOptions,
    form: str,
) -> list[tuple[dict[str, Any], bool]]:
    """For each place its marker, and whether it was there before. Markers of other places go first: their files are overwritten."""
    markers: dict[int, tuple[dict[str, Any], bool]] = {}
    for place in places:
        marker = known.get(place.found.ref.name)
        if marker is not None and marker["index"] == place.index and place.same_as(marker):
            markers[place.index] = marker, True
    for path in (options.partial / "done").iterdir():
        if path.suffix != ".json" or int(path.stem) not in markers:
            path.unlink()
    missing = [place for place in places if place.index not in markers]
    _remove_leftovers(options, set(markers), form)
    bar = Progress("convert", len(places), len(markers))
    for number, marker in workers.each(episode_job.convert_one, missing, layout, options, form):
        markers[missing[number].index] = marker, False
        bar.step()
    bar.close()
    return [markers[index] for index in range(len(places))]


def _remove_leftovers(options: ConvertOptions, kept: set[int], form: str) -> None:
    """Files of episodes without a marker: those of a kill between the move and the marker, and of a longer list before."""
    if form == "v2.1":
        shutil.rmtree(options.partial / "dataset" / "meta", ignore_errors=True)
        for path in (options.partial / "dataset").rglob("episode_*"):
            if path.is_file() and int(path.stem.removeprefix("episode_")) not in kept:
                path.unlink()
    else:
        for path in (options.partial / "parts").iterdir():
            if int(path.name) not in kept:
                shutil.rmtree(path)


def _publish(options: ConvertOptions) -> None:
    """The rename that makes the dataset visible."""
    if options.out_path.exists():
        raise BadInput(f"{options.out}: has appeared meanwhile; remove it and run the same command again")
    (options.partial / "dataset").rename(options.out_path)
    try:
        shutil.rmtree(options.partial)
    except OSError as error:
        raise SegueError(
            f"{options.out} is whole, but {options.partial} cannot be removed ({error.strerror}); remove it"
        ) from error
