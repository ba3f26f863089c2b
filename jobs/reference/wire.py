"""What travels between a robot and a policy server: msgpack, with NumPy arrays as small maps, as OpenPI's clients write and read them.

An array is `{b"__ndarray__": True, b"data", b"dtype", b"shape"}`, a NumPy number `{b"__npgeneric__": True, b"data", b"dtype"}`. Nothing else of
Python travels, so what a stranger sends can only be data.
"""

from __future__ import annotations

from typing import Any

from agent.errors import BadInput

_KINDS = "biuf"
_ARRAY, _NUMBER = b"__ndarray__", b"__npgeneric__"


def encode(message: Any) -> bytes:
    """One message: nested maps and lists of numbers, texts, bytes and arrays."""
    import msgpack

    packed: bytes = msgpack.packb(message, default=_plain)
    return packed


def decode(data: bytes) -> Any:
    """The reverse. Raises BadInput when it is no such message."""
    import msgpack

    try:
        return msgpack.unpackb(data, object_hook=_numpy)
    except BadInput:
        raise
    except Exception as error:  # msgpack has several of its own, and ValueError
        raise BadInput(f"the message is not msgpack with NumPy arrays ({type(error).__name__}: {error})") from error


def _plain(value: Any) -> Any:
    import numpy as np

    if isinstance(value, np.ndarray):
        return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {_NUMBER: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _numpy(found: dict[Any, Any]) -> Any:
    import numpy as np

    if _ARRAY not in found and _NUMBER not in found:
        return found
    try:
        kind = np.dtype(found[b"dtype"])
        if kind.kind not in _KINDS:
            raise ValueError(f"numbers are needed, not {kind}")
        if _NUMBER in found:
            return kind.type(found[b"data"])
        return np.frombuffer(found[b"data"], kind).reshape(found[b"shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"an array in the message is damaged ({type(error).__name__}: {error})") from error
