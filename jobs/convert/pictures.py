"""Frames of a camera: whether one can be decoded, its size, and its pixels in the size asked for.

Checking decodes a JPEG at an eighth of its size, which reads every byte of it and costs a fraction of a full decode.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from jobs.convert.reader import BadEpisode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

Size = tuple[int, int]
"""Height, width."""


def check(found: bytes | Picture) -> Size:
    """Height and width of a frame that can be decoded. Raises BadEpisode when it cannot be."""
    if not isinstance(found, bytes):
        return int(found.shape[0]), int(found.shape[1])
    try:
        with _opened(found) as image:
            width, height = image.size
            image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
            image.load()
    except _damage() as error:
        raise _undecodable(found, error) from error
    return int(height), int(width)


def pixels(found: bytes | Picture, size: Size | None) -> Picture:
    """RGB (H, W, 3) uint8, stretched to ``size`` with a bilinear filter where that differs. Raises BadEpisode for what cannot be decoded."""
    import numpy as np
    from PIL import Image

    if isinstance(found, bytes):
        try:
            with _opened(found) as opened:
                image = opened.convert("RGB")
        except _damage() as error:
            raise _undecodable(found, error) from error
    elif size is None or found.shape[:2] == size:
        return np.ascontiguousarray(found)
    else:
        image = Image.fromarray(np.ascontiguousarray(found))
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _opened(found: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(found))


def _damage() -> tuple[type[BaseException], ...]:
    from PIL import Image

    return (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def _undecodable(found: bytes, error: BaseException) -> BadEpisode:
    return BadEpisode(
        f"an image of {len(found)} bytes cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})"
    )
