"""Job and machine ads as HTCondor leaves them in the scratch directory, with the little of the ClassAd language that limits are written in.

Values may be expressions (`MachineMaxVacateTime = 10 * 60`). What is not understood is None, never a guess and never an error:
an ad is information, not input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Value = bool | int | float | str | None
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)|(?P<string>"(?:[^"\\]|\\.)*")|(?P<name>[A-Za-z_][A-Za-z0-9_.]*)
    |(?P<op>=\?=|=!=|&&|\|\||<=|>=|==|!=|[-+*/%()<>!?:,]))""",
    re.VERBOSE,
)
_LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*(.*?)\s*$")
_LEVELS: tuple[tuple[str, ...], ...] = (
    ("||",),
    ("&&",),
    ("==", "!=", "=?=", "=!="),
    ("<", "<=", ">", ">="),
    ("+", "-"),
    ("*", "/", "%"),
)
_DEEPEST = 30


class _NotUnderstood(Exception):
    """The expression uses more of the language than this module knows."""


@dataclass(frozen=True)
class Ad:
    """An ad's expressions as text, by lower-case name."""

    expressions: Mapping[str, str] = field(default_factory=dict)

    def value(self, name: str) -> Value:
        """The value of an attribute; None when it is absent, undefined or not understood."""
        return _evaluate(self, name, 0)

    def number(self, name: str) -> float | None:
        """The value as a number."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        try:
            return float(value)
        except OverflowError:
            return None

    def text(self, name: str) -> str | None:
        """The value as text."""
        value = self.value(name)
        return value if isinstance(value, str) else None


def parse(text: str) -> Ad:
    """An ad in the old form, one `Name = expression` a line; other lines are left out."""
    found = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            found[match[1].lower()] = match[2]
    return Ad(found)


def read(path: Path | None) -> Ad:
    """The ad in a file; empty when there is none."""
    if path is None:
        return Ad()
    try:
        return parse(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return Ad()


def _evaluate(ad: Ad, name: str, depth: int) -> Value:
    expression = ad.expressions.get(
        name.lower().rpartition(".")[2] if name.lower().startswith(("my.", "target.")) else name.lower()
    )
    if expression is None or depth > _DEEPEST:
        return None
    try:
        reader = _Reader(ad, _tokens(expression), depth)
        value = reader.choice()
        return value if reader.at_end() else None
    except (_NotUnderstood, ArithmeticError, ValueError, RecursionError):
        return None


def _tokens(text: str) -> list[tuple[str, str]]:
    found, place = [], 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise _NotUnderstood
        found.append((match.lastgroup, match[match.lastgroup]))
        place = match.end()
    return found


class _Reader:
    """Recursive descent over the tokens of one expression; undefined is None and spreads through arithmetic."""

    def __init__(self, ad: Ad, tokens: list[tuple[str, str]], depth: int) -> None:
        self._ad, self._tokens, self._depth, self._place = ad, tokens, depth, 0

    def at_end(self) -> bool:
        return self._place == len(self._tokens)

    def _next(self, *wanted: str) -> str | None:
        if not self.at_end() and self._tokens[self._place][0] == "op" and self._tokens[self._place][1] in wanted:
            self._place += 1
            return self._tokens[self._place - 1][1]
        return None

    def _need(self, wanted: str) -> None:
        if self._next(wanted) is None:
            raise _NotUnderstood

    def choice(self) -> Value:
        """condition ? a : b"""
        condition = self._level(0)
        if self._next("?") is None:
            return condition
        yes = self.choice()
        self._need(":")
        no = self.choice()
        return None if condition is None else yes if condition else no

    def _level(self, number: int) -> Value:
        if number == len(_LEVELS):
            return self._unary()
        left = self._level(number + 1)
        while (op := self._next(*_LEVELS[number])) is not None:
            left = _apply(op, left, self._level(number + 1))
        return left

    def _unary(self) -> Value:
        op = self._next("-", "+", "!")
        if op is None:
            return self._atom()
        value = self._unary()
        if op == "!":
            return None if value is None else not value
        if not isinstance(value, (int, float)):
            return None
        return -value if op == "-" else value

    def _atom(self) -> Value:
        if self._next("(") is not None:
            value = self.choice()
            self._need(")")
            return value
        if self.at_end():
            raise _NotUnderstood
        kind, text = self._tokens[self._place]
        self._place += 1
        if kind == "number":
            return float(text) if any(mark in text for mark in ".eE") else int(text)
        if kind == "string":
            return re.sub(r"\\(.)", r"\1", text[1:-1])
        if kind == "name":
            if self._next("(") is not None:
                return self._function(text.lower())
            constants: dict[str, Value] = {"true": True, "false": False, "undefined": None, "error": None}
            return constants[text.lower()] if text.lower() in constants else _evaluate(self._ad, text, self._depth + 1)
        raise _NotUnderstood

    def _function(self, name: str) -> Value:
        arguments: list[Value] = []
        if self._next(")") is None:
            arguments.append(self.choice())
            while self._next(",") is not None:
                arguments.append(self.choice())
            self._need(")")
        numbers = [value for value in arguments if isinstance(value, (int, float))]
        if name == "ifthenelse" and len(arguments) == 3:
            return None if arguments[0] is None else arguments[1] if arguments[0] else arguments[2]
        if name in ("min", "max") and numbers and len(numbers) == len(arguments):
            return min(numbers) if name == "min" else max(numbers)
        if name in ("int", "floor", "round", "real") and len(numbers) == 1:
            return (
                float(numbers[0]) if name == "real" else round(numbers[0]) if name == "round" else int(numbers[0] // 1)
            )
        if name == "isundefined" and len(arguments) == 1:
            return arguments[0] is None
        raise _NotUnderstood


def _apply(op: str, left: Value, right: Value) -> Value:
    if op == "=?=":
        return left == right
    if op == "=!=":
        return left != right
    if op == "&&":
        return (
            False
            if left is False or right is False
            else None
            if left is None or right is None
            else bool(left and right)
        )
    if op == "||":
        return True if left is True or right is True else None if left is None or right is None else bool(left or right)
    if left is None or right is None:
        return None
    if isinstance(left, str) or isinstance(right, str):
        if op in ("==", "!=") and isinstance(left, str) and isinstance(right, str):
            return (left.lower() == right.lower()) == (op == "==")
        return None
    return _arithmetic(op, left, right)


def _arithmetic(op: str, left: float, right: float) -> Value:
    if op in ("/", "%"):
        if right == 0:
            return None
        if op == "%":
            return int(left) % int(right)
        return int(left / right) if isinstance(left, int) and isinstance(right, int) else left / right
    results: dict[str, Value] = {
        "+": left + right,
        "-": left - right,
        "*": left * right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
        "==": left == right,
        "!=": left != right,
    }
    return results[op]
