"""The reference of all commands in ``README.md`` beside this file, from what the commands declare.

``python -m lrmil_cli.commands.reference`` writes it anew; a test fails where that was forgotten. It reads the
declarations and not the rendered help, which differs between terminals and versions of typer.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, fill
from typing import Any, get_args

import typer
from typer.models import ArgumentInfo, OptionInfo

from lrmil_cli.commands.all_commands import COMMANDS
from lrmil_cli.commands.options import names_of, with_common_options

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- reference: made by python -m lrmil_cli.commands.reference -->", "<!-- /reference -->"
WIDTH = 120
#: What stands for a value of these types where nothing better was declared.
VALUES = {str: "TEXT", int: "INTEGER", float: "NUMBER"}


@dataclass(frozen=True)
class Declared:
    """One argument or option of a command, as it was declared.

    Attributes:
        name: of the parameter; names: that a user may give, none of an argument; value: what stands for its value,
            "" of a flag.
        default: ``inspect.Parameter.empty`` where a value must be given.
    """

    name: str
    names: tuple[str, ...]
    value: str
    help: str
    default: Any
    info: OptionInfo | ArgumentInfo

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def declared(command: Callable[..., None]) -> Iterator[Declared]:
    """The parameters of a command, in order."""
    for p in inspect.signature(command, eval_str=True).parameters.values():
        if p.annotation is typer.Context:
            continue
        kind, info = get_args(p.annotation)
        if not isinstance(info, (OptionInfo, ArgumentInfo)):
            raise TypeError(f"parameter {p.name}: declare it with Annotated[TYPE, typer.Option(...)]")
        value = "" if _is(bool, kind) else info.metavar or next(v for k, v in VALUES.items() if _is(k, kind))
        yield Declared(p.name, names_of(p), value, info.help or "", p.default, info)


def _is(wanted: type, kind: Any) -> bool:
    """Whether a type is the wanted one, or optional, or a list of it."""
    return kind is wanted or any(_is(wanted, k) for k in get_args(kind))


def usage(name: str, parameters: list[Declared]) -> str:
    """How a command is called, in one line."""
    arguments = [p.value if p.required else f"[{p.value}]" for p in parameters if not p.names]
    needed = [f"{p.names[0]} {p.value}" for p in parameters if p.names and p.required]
    return " ".join(["lrmil", name, *arguments, *needed, "[OPTIONS]"])


def describe(p: Declared) -> str:
    """One parameter as an item of a list."""
    called = ", ".join(f"`{n}`" for n in p.names[:-1]) + (", " if p.names[1:] else "")
    called += "`" + " ".join([*p.names[-1:], *([p.value] if p.value else [])]) + "`"
    parts = [called + (" (required):" if p.required else ":"), markdown(p.help)]
    if p.info.show_default and not (p.required or p.default is None or p.default is False):
        parts.append(f"[default: {p.default}]")
    low, high = p.info.min, p.info.max
    if low is not None or high is not None:
        parts.append(f"[at least {low:g}]" if high is None else f"[{low:g} to {high:g}]")
    return wrapped(" ".join(parts), "- ", "  ")


def wrapped(text: str, first: str = "", later: str = "") -> str:
    return fill(text, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def markdown(text: str) -> str:
    """Help as Markdown: nothing of it but code between backticks may mean anything there, wherever a line breaks."""
    pieces = " ".join(text.split()).split("`")
    for i in range(0, len(pieces), 2):
        pieces[i] = re.sub(r"[<*]", r"\\\g<0>", pieces[i])
        pieces[i] = re.sub(r"(?<!\S)-(?=[\s.,])", "`-`", pieces[i])
    return "`".join(pieces)


def reference() -> str:
    """All commands with their arguments and options."""
    common = list(declared(with_common_options(lambda: None)))
    lines = ["", "Every command also has:", "", *map(describe, common), "- `-h`, `--help`: Show the help.", ""]
    for name, command in COMMANDS.items():
        parameters = list(declared(command))
        paragraphs = dedent("    " + inspect.cleandoc(command.__doc__ or "")).split("\n\n")
        lines += [f"### lrmil {name}", "", "```", usage(name, parameters), "```", ""]
        lines += [line for text in paragraphs for line in (wrapped(markdown(text)), "")]
        lines += [*map(describe, parameters), ""]
    return "\n".join(lines)


def with_reference(text: str) -> str:
    """The README with the reference as it should be, between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{README}: the markers of the reference are gone: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{reference()}{END}{after}"


def main() -> None:
    README.write_text(with_reference(README.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
