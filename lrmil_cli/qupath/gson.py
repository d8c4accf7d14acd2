"""JSON as QuPath's JSON library takes it: more than the standard allows, and values of one kind for another.

``parse`` reads a text; the other functions take a value as text, a number, a whole number or a truth value and raise
:class:`Refused` where the library would (qupath/README 1.5).
"""

from __future__ import annotations

import json
import re
from typing import Any

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_DOUBLE = re.compile(r"[+-]?(NaN|Infinity|(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[fFdD]?)")
_HEX_DOUBLE = re.compile(r"[+-]?0[xX]([\da-fA-F]+\.?[\da-fA-F]*|\.[\da-fA-F]+)[pP][+-]?\d+[fFdD]?")
_WHOLE = re.compile(r"[+-]?\d+")
_WORD = re.compile(r"[^/\\;#={}\[\]:, \t\f\r\n]*")
_SKIPPED = re.compile(r"(?:[ \t\r\n]+|/\*.*?\*/|//[^\r\n]*|#[^\r\n]*)*", re.DOTALL)
_WORDS = {"true": True, "false": False, "null": None}
_ESCAPES = {"t": "\t", "b": "\b", "n": "\n", "r": "\r", "f": "\f", "\n": "\n", "'": "'", '"': '"', "\\": "\\", "/": "/"}
#: Digits of a whole number that are kept; longer ones are read as fractions.
_MANY_DIGITS = 300


class Refused(ValueError):
    """A value that the library does not take for what it should be."""


def parse(text: str) -> tuple[Any, bool]:
    """The value of a JSON text, and whether it is JSON by the standard; None for a text of blanks.

    Raises:
        ValueError, RecursionError: QuPath's library refuses it too, or it is nested too deeply for us.
    """
    text = text.removeprefix("\ufeff")
    try:
        return json.loads(text), True
    except ValueError as strict:
        try:
            return _Reader(text).document(), False
        except Refused:
            raise strict from None


class _Reader:
    """A recursive reader of what the standard forbids and the library lets pass: comments, single quotes, words
    without quotes, ``;`` for ``,``, ``=`` for ``:``, and nothing between two commas."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def document(self) -> Any:
        self.text = self.text.removeprefix(")]}'\n")
        if not self._next():
            return None
        value = self._value()
        if self._next():
            raise Refused(f"more after the end, at character {self.at}")
        return value

    def _next(self) -> str:
        """The next character that is no blank and no comment, or "" at the end; it stays where it is."""
        found = _SKIPPED.match(self.text, self.at)
        assert found is not None, "the pattern matches nothing as well"
        self.at = found.end()
        return self.text[self.at : self.at + 1]

    def _value(self) -> Any:
        first = self._next()
        if first == "[":
            return self._array()
        if first == "{":
            return self._object()
        if first in ("'", '"') and first:
            return self._string()
        word = self._word()
        if word.lower() in _WORDS:
            return _WORDS[word.lower()]
        if not _NUMBER.fullmatch(word):
            return word
        return int(word) if word.lstrip("-").isdigit() and len(word) < _MANY_DIGITS else float(word)

    def _word(self) -> str:
        found = _WORD.match(self.text, self.at)
        if found is None or not found.group():
            raise Refused(f"no value at character {self.at}")
        self.at = found.end()
        return found.group()

    def _array(self) -> list[Any]:
        self.at += 1
        out: list[Any] = []
        if self._next() == "]":
            self.at += 1
            return out
        while True:
            out.append(None if self._next() in (",", ";", "]") else self._value())
            if self._separator("]"):
                return out

    def _object(self) -> dict[str, Any]:
        self.at += 1
        out: dict[str, Any] = {}
        if self._next() == "}":
            self.at += 1
            return out
        while True:
            name = self._string() if self._next() in ("'", '"') else self._word()
            if self._next() not in (":", "="):
                raise Refused(f"no ':' at character {self.at}")
            arrow = self.text.startswith("=>", self.at)
            self.at += 2 if arrow else 1
            out[name] = self._value()
            if self._separator("}"):
                return out

    def _separator(self, end: str) -> bool:
        """Step over ``,``, ``;`` or the end; whether it was the end."""
        found = self._next()
        if found not in (",", ";", end) or not found:
            raise Refused(f"no ',' or '{end}' at character {self.at}")
        self.at += 1
        return found == end

    def _string(self) -> str:
        quote = self.text[self.at : self.at + 1]
        if not quote:
            raise Refused("it ends in the middle")
        out, i = [], self.at + 1
        while i < len(self.text) and self.text[i] != quote:
            if self.text[i] != "\\":
                out.append(self.text[i])
                i += 1
            elif self.text[i + 1 : i + 2] == "u" and re.fullmatch(r"[\da-fA-F]{4}", self.text[i + 2 : i + 6]):
                out.append(chr(int(self.text[i + 2 : i + 6], 16)))
                i += 6
            elif self.text[i + 1 : i + 2] in _ESCAPES:
                out.append(_ESCAPES[self.text[i + 1]])
                i += 2
            else:
                raise Refused(f"an unknown escape at character {i}")
        if i >= len(self.text):
            raise Refused("a text that does not end")
        self.at = i + 1
        return "".join(out)


def depth(value: Any) -> int:
    """How many lists and objects lie in one another at most."""
    level, deep = [value] if isinstance(value, (list, dict)) else [], 0
    while level:
        inner = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level, deep = [child for child in inner if isinstance(child, (list, dict))], deep + 1
    return deep


# ---- values --------------------------------------------------------------------------
def _single(value: Any) -> Any:
    """A value without the lists of one item around it."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, (list, dict)):
        raise Refused("null, a list or an object")
    return value


def as_text(value: Any) -> str:
    """Text, or a number or truth value as text. Raises: Refused."""
    value = _single(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_flag(value: Any) -> bool:
    """A truth value; anything that is not ``true`` is false. Raises: Refused."""
    return as_text(value).lower() == "true"


def as_number(value: Any) -> float:
    """A number, also one written as text; it need not be finite. Raises: Refused."""
    value = _single(value)
    if isinstance(value, bool):
        raise Refused("a truth value")
    if isinstance(value, str):
        return double(value)
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def double(text: str) -> float:
    """The number of a text as Java reads it. Raises: Refused."""
    text = text.strip("".join(map(chr, range(33))))
    if _HEX_DOUBLE.fullmatch(text):
        return float.fromhex(text.rstrip("fFdD"))
    if not _DOUBLE.fullmatch(text):
        raise Refused("text that is no number")
    return float(text if text.endswith(("NaN", "Infinity")) else text.rstrip("fFdD"))


def as_whole(value: Any) -> int:
    """A whole number of 32 bits; a fraction loses what is behind the point. Raises: Refused."""
    return scalar_whole(_single(value))


def scalar_whole(value: Any) -> int:
    """As :func:`as_whole`, where no list is allowed. Raises: Refused."""
    if isinstance(value, str):
        if not _WHOLE.fullmatch(value) or not -(2**31) <= int(value[:20]) < 2**31:
            raise Refused("text that is no whole number")
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refused("no number")
    try:
        return int(value)
    except (ValueError, OverflowError) as e:  # NaN and infinity are text to the library
        raise Refused("no whole number") from e
