"""What commands declare: their arguments and options, for the reference and for settings in files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import typer
from typer.models import ArgumentInfo, OptionInfo

from lrmil_cli.commands.options import names_of

#: What stands for a value of these types where nothing better was declared.
VALUES: dict[type, str] = {bool: "", str: "TEXT", int: "INTEGER", float: "NUMBER"}


@dataclass(frozen=True)
class Declared:
    """One argument or option of a command, as it was declared.

    Attributes:
        name: of the parameter; names: that a user may give, none of an argument; value: what stands for its value,
            "" of a flag; kind: its type, of one value; many: it may be repeated.
        default: ``inspect.Parameter.empty`` where a value must be given.
    """

    name: str
    names: tuple[str, ...]
    value: str
    kind: type
    many: bool
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
        one = next(k for k in VALUES if _is(k, kind))
        value = "" if one is bool else info.metavar or VALUES[one]
        yield Declared(p.name, names_of(p), value, one, "list" in str(kind), info.help or "", p.default, info)


def _is(wanted: type, kind: Any) -> bool:
    """Whether a type is the wanted one, or optional, or a list of it."""
    return kind is wanted or any(_is(wanted, k) for k in get_args(kind))


def options_of(command: Callable[..., None]) -> dict[str, Declared]:
    """The options of a command by their long names, without dashes in front."""
    return {p.names[-1].partition("/")[0].lstrip("-"): p for p in declared(command) if p.names}
