"""What one conversion is asked to do; the same object in the command, in another environment's Python (as JSON) and in each worker."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from agent.errors import BadInput

FORMATS = ("v2.1", "v3.0")
_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class ConvertOptions:
    """``fps`` frames a second of the result; ``downsample`` every which frame is kept, so the recording has fps × downsample;
    ``image_size`` (height, width) or None to keep; ``out`` the dataset's directory; ``rename`` feature → its name in the dataset.
    """

    source: str
    repo_id: str
    out: str
    fps: int = 10
    downsample: int = 1
    format: str | None = None
    layout: str = "auto"
    image_size: tuple[int, int] | None = None
    default_task: str | None = None
    robot_type: str | None = None
    video: bool = False
    workers: int = 0
    skip_bad: bool = False
    rename: tuple[tuple[str, str], ...] = ()

    @property
    def source_path(self) -> Path:
        return Path(self.source)

    @property
    def out_path(self) -> Path:
        return Path(self.out)

    @property
    def partial(self) -> Path:
        """Where the dataset grows until it is whole."""
        return self.out_path.with_name(f"{self.out_path.name}.segue-partial")

    def dump(self) -> str:
        """As JSON on one line."""
        return json.dumps(asdict(self))

    def what_is_written(self) -> dict[str, object]:
        """The part that decides the bytes of an episode: a resumed conversion must have the same."""
        left_out = {"out", "workers", "skip_bad"}
        return {key: value for key, value in json.loads(self.dump()).items() if key not in left_out}


def load(text: str) -> ConvertOptions:
    """What ``dump`` wrote."""
    found = json.loads(text)
    size = found["image_size"]
    found["image_size"] = (int(size[0]), int(size[1])) if size else None
    found["rename"] = tuple((str(old), str(new)) for old, new in found["rename"])
    return ConvertOptions(**found)


def checked(options: ConvertOptions) -> ConvertOptions:
    """The options with absolute paths and a number of workers. Raises BadInput for values that cannot be."""
    if not _REPO_ID.fullmatch(options.repo_id):
        raise BadInput(
            f"--repo-id {options.repo_id!r}: is not a dataset's name; use NAME or OWNER/NAME of letters, digits, '-', '_' and '.'"
        )
    for name, value in (("--fps", options.fps), ("--downsample", options.downsample)):
        if value < 1:
            raise BadInput(f"{name} {value}: must be a whole number of 1 or more")
    if options.image_size is not None and min(options.image_size) < 1:
        raise BadInput(
            f"--image-size {options.image_size[0]} {options.image_size[1]}: height and width must be 1 or more"
        )
    if options.format is not None and options.format not in FORMATS:
        raise BadInput(f"--format {options.format}: must be one of {', '.join(FORMATS)}")
    renamed = [old for old, _ in options.rename]
    for old in renamed:
        if renamed.count(old) > 1:
            raise BadInput(f"--rename {old}=…: is given more than once; a feature has one name")
    if options.workers < 0:
        raise BadInput(f"--workers {options.workers}: must be 1 or more (or be left out: one for each core)")
    workers = options.workers or len(os.sched_getaffinity(0))
    source, out = _home(options.source_path).resolve(), _home(options.out_path).absolute()
    if out.exists() or out.is_symlink():
        raise BadInput(f"{out}: already exists; name another place with --out, or remove it")
    return replace(options, source=str(source), out=str(out), workers=workers)


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise BadInput(f"{path}: this machine knows no such user") from None


def default_out(repo_id: str) -> Path:
    """Where lerobot and OpenPI look for a dataset: $HF_LEROBOT_HOME/<repo-id>, else below Hugging Face's cache."""
    home = os.environ.get("HF_LEROBOT_HOME")
    if home:
        return Path(home) / repo_id
    cache = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    return _home(Path(cache)) / "lerobot" / repo_id
