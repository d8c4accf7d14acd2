"""What is said of a command line that cannot be parsed: what is wrong with it, and what to type.

The parser's errors are told apart by their names, because the module they are in differs between versions of typer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lrmil_cli.commands.examples import EXAMPLES
from lrmil_cli.errors import UsageError

if TYPE_CHECKING:
    from lrmil_cli.commands.declared import Declared

#: Where the words of the line are kept for messages: in the ``meta`` of the parser's context.
WORDS = "lrmil.words"


def usage_text(e: Any, command: str, numbers: Mapping[str, Declared]) -> str:
    """One line on an error of the parser.

    Args:
        command: its name, "" where none was named; numbers: its parameters that are numbers.
    """
    kind, context = type(e).__name__, getattr(e, "ctx", None)
    see = f"see `lrmil {command} --help`".replace("  ", " ")
    p = getattr(e, "param", None)
    if kind == "MissingParameter" and p is not None:
        return f"{_name(p)} is missing: {_meant(p)}" + (f"; as in `lrmil {EXAMPLES[command][0]}`" if command else "")
    if kind == "NoSuchOption":
        near = " or ".join(e.possibilities or ())
        return f"{e.option_name}: no such option of `lrmil {command}`; " + (f"did you mean {near}?" if near else see)
    if kind == "BadOptionUsage" and "requires an argument" in e.format_message():
        return f"{e.option_name} needs a value; {see}"
    if kind == "BadParameter" and p is not None:
        value = _given(p, context.meta.get(WORDS, ()) if context is not None else ())
        if p.name in numbers and value is not None:
            return f"{_name(p)} {value}: {_wanted(numbers[p.name])}"
    text = " ".join(e.format_message().split())
    extra = re.fullmatch(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)\.?", text)
    if extra and context is not None:
        takes = " ".join(q.metavar or q.name for q in context.command.params if q.param_type_name == "argument")
        return f"{extra[1]}: one too many, `lrmil {command}` takes {takes or 'none'}; quote names with spaces"
    return f"{text.rstrip('.')}; {see}"


def check_dashes(words: Sequence[str], options: Sequence[str]) -> None:
    """``-output x`` is ``--output x`` with a dash too few, and would be understood as ``-o utput``.

    Raises:
        UsageError: such a word is there.
    """
    for word in words:
        if word == "--":
            return
        name, _, value = word.partition("=")
        if re.fullmatch(r"-[a-z][a-z-]+", name) and f"-{name}" in options:
            raise UsageError(f"{name}: long options have two dashes; say -{name}{'=' + value if value else ''}")


def _name(p: Any) -> str:
    """``-o``, of an argument what stands for it."""
    return p.opts[0] if p.param_type_name == "option" else p.metavar or p.name


def _meant(p: Any) -> str:
    first = (p.help or "").partition(". ")[0].partition("  [")[0].rstrip(".")
    first = first[:1].lower() + first[1:] if first[1:2].islower() else first
    return f"{p.metavar} ({first})" if p.param_type_name == "option" and p.metavar else first


def _given(p: Any, words: Sequence[str]) -> str | None:
    """The value that the line has for an option, the last one."""
    found = None
    for word, following in zip(words, [*words[1:], None]):
        for name in p.opts:
            if word == name:
                found = following
            elif word.startswith(f"{name}=" if name.startswith("--") else name):
                found = word[len(name) :].removeprefix("=")
    return found


def _wanted(p: Declared) -> str:
    low, high = p.info.min, p.info.max
    number = "a whole number" if p.kind is int else "a number"
    if low is not None and high is not None:
        return f"give {number} from {low:g} to {high:g}"
    return f"give {number}" + (f" of {low:g} or more" if low is not None else "")
