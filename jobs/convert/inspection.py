"""Every check on an episode, before anything is written: lengths, shapes, numbers, time stamps, rate, images that decode.

One episode is judged alone (`inspect`, in a worker); `judge` then holds them against the first good one, because a dataset has one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.errors import BadInput
from jobs.convert.options import ConvertOptions
from jobs.convert.pictures import Size, check
from jobs.convert.reader import BadEpisode, Episode, EpisodeRef, as_bad_episode, reader_of, text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE_TOLERANCE = 0.05
"""By how much the recorded rate may differ from fps × downsample; a control loop in software is a few percent off."""

LONGEST_GAP = 10.0
"""Intervals between two frames beyond which the recording was interrupted."""

_RESERVED = ("timestamp", "frame_index", "episode_index", "index", "task_index", "task")
_SHOWN = 5


@dataclass(frozen=True)
class Inspection:
    """``frames`` that will be written; ``vectors`` and ``cameras`` the dataset's features, sorted by name; ``problem`` None for a good one."""

    ref: EpisodeRef
    frames: int = 0
    vectors: tuple[tuple[str, int], ...] = ()
    cameras: tuple[tuple[str, Size], ...] = ()
    task: str = ""
    problem: str | None = None


def inspect(ref: EpisodeRef, layout: str, options: ConvertOptions) -> Inspection:
    """Open and check one episode. A bad one is returned with its problem."""
    try:
        with reader_of(layout).open_episode(ref) as episode:
            return _inspected(ref, episode, options)
    except BadEpisode as error:
        return Inspection(ref, problem=str(error))


def _inspected(ref: EpisodeRef, episode: Episode, options: ConvertOptions) -> Inspection:
    rows = _length(episode)
    _numbers(episode)
    if episode.timestamps is not None:
        _times(episode.timestamps, options)
    names = renamed([*episode.vectors, *episode.cameras], options)
    kept = range(0, rows, options.downsample)
    cameras = {}
    for name, camera in episode.cameras.items():
        sizes: dict[Size, int] = {}
        for index in kept:
            with as_bad_episode(ref.path, f"frame {index} of camera {name!r}"):
                try:
                    sizes.setdefault(check(camera.frame(index)), index)
                except BadEpisode as error:
                    raise BadEpisode(f"camera {name!r}, frame {index}: {error}") from error
        if len(sizes) > 1:
            (first, _), (other, where) = list(sizes.items())[:2]
            raise BadEpisode(f"camera {name!r} changes from {_size(first)} to {_size(other)} at frame {where}")
        cameras[names[name]] = next(iter(sizes))
    task = episode.task or text(options.default_task)
    if not task:
        raise BadEpisode("has no task of its own; give one with --default-task")
    vectors = {names[name]: values.shape[1] for name, values in episode.vectors.items()}
    return Inspection(ref, len(kept), tuple(sorted(vectors.items())), tuple(sorted(cameras.items())), task)


def _length(episode: Episode) -> int:
    lengths = {name: len(values) for name, values in episode.vectors.items()} | dict(episode.lengths)
    lengths |= {name: camera.count for name, camera in episode.cameras.items()}
    if episode.timestamps is not None:
        lengths["timestamps"] = len(episode.timestamps)
    if not episode.vectors:
        raise BadEpisode("holds no numbers")
    if min(lengths.values()) != max(lengths.values()):
        usual = max(set(lengths.values()), key=list(lengths.values()).count)
        odd = next(name for name, length in lengths.items() if length != usual)
        raise BadEpisode(f"is ragged: {odd!r} has {lengths[odd]} entries where the others have {usual}")
    rows = next(iter(lengths.values()))
    if rows == 0:
        raise BadEpisode("has no frames")
    return rows


def _numbers(episode: Episode) -> None:
    import numpy as np

    for name, values in episode.vectors.items():
        wrong = ~np.isfinite(values)
        if wrong.any():
            row, column = (int(number) for number in np.argwhere(wrong)[0])
            raise BadEpisode(f"{name!r} holds {values[row, column]} at frame {row}, column {column}")


def _times(stamps: NDArray[np.float64], options: ConvertOptions) -> None:
    import numpy as np

    if not np.isfinite(stamps).all():
        raise BadEpisode(f"the time stamp of frame {int(np.argmin(np.isfinite(stamps)))} is not finite")
    if len(stamps) < 2:
        return
    steps = np.diff(stamps)
    if (steps <= 0).any():
        raise BadEpisode(f"time stamps do not increase at frame {int(np.argmax(steps <= 0)) + 1}")
    usual = float(np.median(steps))
    if steps.max() > LONGEST_GAP * usual:
        where = int(np.argmax(steps))
        raise BadEpisode(
            f"is interrupted for {steps.max():.2f} s after frame {where}, where frames are {usual:.3f} s apart"
        )
    rate, wanted = 1.0 / usual, options.fps * options.downsample
    if not _close(rate, wanted):
        raise BadEpisode(
            f"was recorded at {rate:.1f} frames/s, but --fps {options.fps} × --downsample {options.downsample} is {wanted}{_advice(rate, options)}"
        )


def _advice(rate: float, options: ConvertOptions) -> str:
    """Which --downsample would do, or that none does: the rate is not a multiple of fps."""
    factor = round(rate / options.fps)
    if _close(rate, options.fps * factor):
        return f"; use --downsample {factor}"
    for downsample in (options.downsample, 1):
        fps = round(rate / downsample)
        if _close(rate, fps * downsample):
            return f"; {options.fps} does not divide it, use --fps {fps} with --downsample {downsample}"
    return "; are its time stamps in seconds?"


def _close(rate: float, wanted: float) -> bool:
    return abs(rate - wanted) <= RATE_TOLERANCE * wanted


def renamed(names: Sequence[str], options: ConvertOptions) -> dict[str, str]:
    """Name in the source → feature of the dataset. Raises BadEpisode for a name that a dataset cannot have, or that appears twice."""
    table = dict(options.rename)
    for name in table:
        if name not in names:
            raise BadEpisode(f"has no feature {name!r}, which --rename names (has: {', '.join(sorted(names))})")
    result = {name: table.get(name, name) for name in names}
    for name in result.values():
        if "/" in name or name in _RESERVED:
            raise BadEpisode(
                f"a feature cannot be called {name!r} in a LeRobot dataset; give it another name with --rename {name}=NEW"
            )
    if len(set(result.values())) != len(result):
        raise BadEpisode("two features have the same name after --rename")
    return result


def judge(inspections: Sequence[Inspection]) -> list[Inspection]:
    """The same list, where an episode that has other features or other image sizes than the first good one has become a bad one."""
    first = next((found for found in inspections if found.problem is None), None)
    if first is None:
        return list(inspections)
    return [found if found.problem else replace(found, problem=_difference(first, found)) for found in inspections]


def _difference(first: Inspection, other: Inspection) -> str | None:
    mine, theirs = dict(first.vectors) | dict(first.cameras), dict(other.vectors) | dict(other.cameras)
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in theirs:
            return f"lacks {name!r}, which {first.ref.name} has"
        if name not in mine:
            return f"has {name!r}, which {first.ref.name} has not"
    for name, width in other.vectors:
        if mine[name] != width:
            return f"{name!r} has {width} columns, in {first.ref.name} it has {mine[name]}"
    for name, size in other.cameras:
        expected = dict(first.cameras)[name]
        if expected != size:
            return f"camera {name!r} has images of {_size(size)}, in {first.ref.name} they are {_size(expected)}"
    return None


def good_ones(inspections: Sequence[Inspection], skip_bad: bool) -> list[Inspection]:
    """The episodes to convert. Raises BadInput that names the bad ones unless they may be skipped, or when none is left."""
    good = [found for found in inspections if found.problem is None]
    bad = [found for found in inspections if found.problem is not None]
    if bad and (not skip_bad or not good):
        named = "; ".join(f"{found.ref.name} {found.problem}" for found in bad[:_SHOWN])
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        end = "no episode is left" if skip_bad else "repair them, or leave them out with --skip-bad"
        raise BadInput(
            f"{len(bad)} of {len(inspections)} episodes cannot be converted: {named}{more}. Nothing was written: {end}"
        )
    return good


def _size(size: Size) -> str:
    return f"{size[1]}×{size[0]} pixels"
