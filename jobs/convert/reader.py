"""The contract of a layout of recorded episodes, and the table of those that are known.

A reader is a module with LAYOUT (its name), PACKAGES (what it imports), ROBOT_TYPE (where the user gives none), `recognises(source)`, which
only looks at names, and `episodes(source)`, which lists. Opening happens in a worker, one episode at a time, through `open_episode(ref)`.
Images are handed over one by one, so that an episode's frames never lie decoded in memory together.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from agent.errors import BadInput, SegueError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Seconds = NDArray[np.float64]
    Picture = NDArray[np.uint8]

READERS = {
    "lab": "jobs.convert.lab",
    "aloha": "jobs.convert.aloha",
    "npz": "jobs.convert.npz",
    "zarr": "jobs.convert.zarr_buffer",
}
"""Layout → module, in the order in which they are tried."""


@dataclass(frozen=True)
class EpisodeRef:
    """One episode of a source: ``name`` for people, ``path`` the file, ``span`` the first and last row + 1 where a file holds several,
    ``state`` what changes with the content where ``path`` is a directory, whose own time does not.
    """

    name: str
    path: Path
    span: tuple[int, int] | None = None
    state: str = ""


@dataclass(frozen=True)
class Camera:
    """``count`` frames; ``frame(i)`` gives an encoded image (JPEG, PNG) as bytes or decoded RGB pixels (H, W, 3) uint8."""

    count: int
    frame: Callable[[int], bytes | Picture]


@dataclass(frozen=True)
class Episode:
    """What is recorded: ``vectors`` feature name → (N, D) float32; ``cameras`` feature name → frames; ``timestamps`` (N,) in seconds or None;
    ``task`` the instruction where the file has one. Lengths may still differ: the inspection says so.
    """

    vectors: Mapping[str, Floats]
    cameras: Mapping[str, Camera]
    timestamps: Seconds | None = None
    task: str | None = None
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Further arrays that must be as long as the rest, name in the file → length."""


class Reader(Protocol):
    """A module of this shape is a reader."""

    LAYOUT: str
    PACKAGES: Sequence[str]
    ROBOT_TYPE: str | None

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether ``source`` looks like this layout, by its names alone."""

    @staticmethod
    def episodes(source: Path) -> list[EpisodeRef]:
        """All episodes in their order. Raises BadInput when there are none."""

    @staticmethod
    def open_episode(ref: EpisodeRef) -> AbstractContextManager[Episode]:
        """Open one. Raises BadEpisode when it is not of this layout."""


class BadEpisode(BadInput):
    """One episode cannot be converted; the sentence is without the episode's name, which the caller puts before it."""


def reader_of(layout: str) -> Reader:
    """The reader's module. Raises SegueError when a package that it needs is missing in this Python."""
    reader = cast(Reader, importlib.import_module(READERS[layout]))
    missing = [name for name in reader.PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SegueError(
            f"reading the layout {layout!r} needs {missing[0]}, which is not in this Python: {sys.executable} -m pip install {' '.join(missing)}"
        )
    return reader


def recognise(source: Path, layout: str) -> str:
    """``layout`` itself, or for "auto" the first layout that recognises ``source``. Raises BadInput when none does."""
    if not source.exists():
        raise BadInput(f"{source}: does not exist; name the directory or file that holds the episodes")
    if layout != "auto":
        return layout
    for name, module in READERS.items():
        if cast(Reader, importlib.import_module(module)).recognises(source):
            return name
    raise BadInput(
        f"{source}: no known layout: no ep*/episode.h5 (lab), no *.hdf5 (aloha), no *.npz (npz), no data/ and meta/episode_ends (zarr); "
        "see docs/convert.md"
    )


def no_episodes(source: Path, what: str) -> BadInput:
    """The error of a source in which nothing matches ``what``."""
    return BadInput(f"{source}: holds no episodes ({what}); name the directory above them")


@contextmanager
def as_bad_episode(path: Path, kind: str) -> Iterator[None]:
    """What goes wrong while a file is opened or read becomes a BadEpisode; a full or broken disk does not."""
    try:
        yield
    except (BadEpisode, SegueError):
        raise
    except MemoryError:
        raise
    except Exception as error:  # h5py, zipfile and zarr raise of every kind on a damaged file
        text = " ".join(str(error).split()) or type(error).__name__
        raise BadEpisode(f"{path} cannot be read as {kind} ({text})") from error


def matrix(values: Any, name: str) -> Floats:
    """(N,) or (N, D) numbers as (N, D) float32. Raises BadEpisode for anything else."""
    import numpy as np

    found = np.asarray(values)
    if found.dtype.kind not in "fiub" or found.ndim not in (1, 2):
        raise BadEpisode(
            f"{name!r} has shape {found.shape} of {found.dtype}, where numbers of shape (N,) or (N, D) are needed"
        )
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and the inspection names it
        wide = found.astype(np.float32)
    return wide[:, None] if wide.ndim == 1 else wide


def seconds(values: Any, name: str) -> Seconds:
    """(N,) numbers as float64. Raises BadEpisode for anything else."""
    import numpy as np

    found = np.asarray(values)
    if found.dtype.kind not in "fiu" or found.ndim != 1:
        raise BadEpisode(f"{name!r} has shape {found.shape} of {found.dtype}, where seconds of shape (N,) are needed")
    return cast("Seconds", found.astype(np.float64))


def text(value: Any) -> str | None:
    """A string, or bytes in UTF-8, as a string without blanks around it; None for nothing."""
    if value is None:
        return None
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value).strip() or None
