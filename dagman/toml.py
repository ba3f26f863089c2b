"""Reading TOML and telling a person everything that is wrong with it, at once: file, key, what is allowed."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.errors import BadInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """The file's content; BadInput with the line when it is not TOML, or not there."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; `segue init` writes one to start from") from None
    except IsADirectoryError:
        raise BadInput(
            f"{path}: is a directory and has no run.toml in it; `segue init` writes one to start from"
        ) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


def _key(location: Iterable[str | int]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if part.isprintable() and part else repr(part)
            text += f".{shown}" if text else shown
    return text or "(the whole file)"


def _unknown(key: str, table: str, known: dict[str, list[str]]) -> str:
    """What is said of a key that ``table`` does not have: a slip of the pen, the right key in the wrong table, else what is allowed."""
    allowed = known.get(table)
    if not allowed:
        return "unknown key"
    close = difflib.get_close_matches(key.lower(), allowed, 1)
    if close:
        return f'unknown key; did you mean "{close[0]}"? Allowed here: {", ".join(allowed)}'
    # TOML has no way back to the top once a table has begun: keys end up in the table above them.
    places = [other for other, keys in known.items() if key in keys and other != table]
    if "" in places:
        return f"unknown key; {key} belongs to the top of the file, before the first [table]"
    if places:
        return f"unknown key; {key} belongs to {' or '.join(f'[{place}]' for place in places)}"
    return f"unknown key; allowed here: {', '.join(allowed)}"


def explain(error: ValidationError, where: str, known: dict[str, list[str]] | None = None) -> str:
    """One line for each finding, in the file's order; ``known``: allowed keys of each table, for unknown ones."""
    lines = []
    for entry in error.errors():
        key = _key(entry["loc"])
        if entry["type"] == "extra_forbidden":
            table = _key(entry["loc"][:-1]) if len(entry["loc"]) > 1 else ""
            text = _unknown(str(entry["loc"][-1]), re.sub(r"\[\d+\]", "", table), known or {})
        elif entry["type"] == "missing":
            text = "is required"
        else:
            text = entry["msg"]
            # Our own findings begin with the name that is wrong, as it is written.
            own = entry["type"] == "value_error"
            text = text.removeprefix("Value error, ") if own else text[:1].lower() + text[1:]
            shown = entry.get("input")
            if isinstance(shown, str | int | float | bool) and repr(shown) not in text:
                text += f" (found {shown!r})"
        lines.append(f"{where}: {key}: {text}")
    if len(lines) == 1:
        return lines[0]
    return f"{where}: {len(lines)} things are wrong\n" + "\n".join(
        f"  {line.removeprefix(where + ': ')}" for line in lines
    )
