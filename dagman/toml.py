"""Reading TOML and telling a person everything that is wrong with it, at once: file, key, what is allowed."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
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
        # Some editors begin a file with a mark that TOML does not know.
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
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
    except ValueError:
        raise BadInput(
            f"{path}: cannot be read as TOML: a number in it has thousands of digits; no key takes such a one"
        ) from None
    except RecursionError:
        raise BadInput(
            f"{path}: cannot be read as TOML: brackets in it are nested too deep; no key needs that"
        ) from None
    except PermissionError:
        raise BadInput(
            f"{path}: cannot be read: Permission denied; correct its mode, or that of its directory"
        ) from None
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


# What is wrong with a value, in TOML's words rather than Python's.
_SAYINGS = {
    "int_type": "must be a whole number: no quotes, no decimal point, no unit",
    "float_type": "must be a number: no quotes, no unit",
    "bool_type": "must be true or false, without quotes",
    "string_type": "must be a string, in quotes",
    "tuple_type": "must be a list, in square brackets",
    "finite_number": "must be a finite number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must be {form}",
}


def suggestion(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean "x"?` where one of ``allowed`` is close, else nothing."""
    names = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(given.lower(), names, 1)
    return f'; did you mean "{names[close[0]]}"?' if close else ""


def _number(value: Any) -> Any:
    """A bound as a person writes it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _finding(key: str, entry: Mapping[str, Any], forms: Mapping[str, str]) -> str:
    """What is wrong with the value of ``key``, and what was found."""
    kind, context, shown = str(entry["type"]), dict(entry.get("ctx") or {}), entry.get("input")
    if kind == "value_error":
        # Our own findings begin with the name that is wrong, as it is written.
        text = str(entry["msg"]).removeprefix("Value error, ")
    elif kind in ("dict_type", "model_type", "model_attributes_type"):
        written = f"[[{key[: key.rindex('[')]}]]" if key.endswith("]") else f"[{key}]"
        text = (
            f"must be {'a table and no list' if isinstance(shown, list) else 'a table'}: {written} with its keys below"
        )
    elif kind == "tuple_type" and isinstance(shown, Mapping):
        text = f"must be a list of tables: [[{key}]] with its keys below"
    elif kind in _SAYINGS:
        pattern = str(context.get("pattern", ""))
        context = {name: _number(value) for name, value in context.items()}
        text = _SAYINGS[kind].format(**context, form=forms.get(pattern, f"of the form {pattern}"))
    else:
        text = str(entry["msg"])[:1].lower() + str(entry["msg"])[1:]
    if isinstance(shown, bool):
        text += f" (found {'true' if shown else 'false'})"
    elif isinstance(shown, str | int | float) and (kind != "value_error" or repr(shown) not in text):
        text += f" (found {shown!r})"
    if kind == "literal_error" and isinstance(shown, str):
        text += suggestion(shown, re.findall(r"'([^']*)'", str(context.get("expected", ""))))
    return text


def _unknown(key: str, table: str, known: dict[str, list[str]]) -> str:
    """What is said of a key that ``table`` does not have: a slip of the pen, the right key in the wrong table, else what is allowed."""
    allowed = known.get(table)
    if not allowed:
        return "unknown key"
    close = difflib.get_close_matches(key.lower(), allowed, 1)
    if close:
        return f'unknown key; did you mean "{close[0]}"? Allowed here: {", ".join(allowed)}'
    # TOML has no way back to the top once a table has begun: keys end up in the table above them.
    name = key.lower()
    places = [other for other, keys in known.items() if name in keys and other != table]
    if "" in places:
        return f"unknown key; {name} belongs to the top of the file, before the first [table]"
    if places:
        return f"unknown key; {name} belongs to {' or '.join(f'[{place}]' for place in places)}"
    return f"unknown key; allowed here: {', '.join(allowed)}"


def explain(
    error: ValidationError,
    where: str,
    known: dict[str, list[str]] | None = None,
    forms: Mapping[str, str] | None = None,
) -> str:
    """One line for each finding, in the file's order.

    ``known``: allowed keys of each table, for unknown ones; ``forms``: what a pattern asks for, in words.
    """
    lines = []
    for entry in error.errors():
        key = _key(entry["loc"])
        if entry["type"] == "extra_forbidden":
            table = _key(entry["loc"][:-1]) if len(entry["loc"]) > 1 else ""
            text = _unknown(str(entry["loc"][-1]), re.sub(r"\[\d+\]", "", table), known or {})
        elif entry["type"] == "missing":
            text = "is required"
        else:
            text = _finding(key, entry, forms or {})
        lines.append(f"{where}: {key}: {text}")
    if len(lines) == 1:
        return lines[0]
    return f"{where}: {len(lines)} things are wrong\n" + "\n".join(
        f"  {line.removeprefix(where + ': ')}" for line in lines
    )
