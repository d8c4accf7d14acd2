"""The reference of all commands in ``README.md`` beside this file, from what the commands declare.

``python -m lrmil_cli.commands.reference`` writes it anew; a test fails where that was forgotten. It reads the
declarations and not the rendered help, which differs between terminals and versions of typer.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from textwrap import dedent, fill

from lrmil_cli.commands.all_commands import COMMANDS
from lrmil_cli.commands.common import with_common_options
from lrmil_cli.commands.declared import Declared, declared

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- reference: made by python -m lrmil_cli.commands.reference -->", "<!-- /reference -->"
WIDTH = 120


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
