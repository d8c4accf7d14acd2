"""What every command has: ``-q -v --log --debug``, and a voice that says how far it is."""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from lrmil_cli import __version__
from lrmil_cli.commands.help import shown
from lrmil_cli.commands.options import debug, names_of, quiet, verbose
from lrmil_cli.commands.report import logged, speaking
from lrmil_cli.errors import UsageError
from lrmil_cli.files.header import command_line

_COMMON = {
    "quiet": (quiet, Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but warnings and errors.")]),
    "verbose": (verbose, Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]),
    "debug": (debug, Annotated[bool, typer.Option("--debug", help="Show the traceback of an internal error.")]),
}


Log = Annotated[
    Optional[str],
    typer.Option("--log", metavar="FILE", help="Also keep all messages in a file, each with its time."),
]


def with_common_options(command: Callable[..., None], called: str = "") -> Callable[..., None]:
    """The command with ``-q -v --log --debug`` added to its signature, so that no command has to list them.

    Args:
        called: its name, for the line that says how far it is.
    """
    own = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, (_, annotation) in _COMMON.items()
    ]
    added.append(inspect.Parameter("log", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Log))
    signature = own.replace(parameters=[shown(p) for p in [*own.parameters.values(), *added]])

    @functools.wraps(command)
    def wrapped(**kwargs: Any) -> None:
        for name, (variable, _) in _COMMON.items():
            variable.set(kwargs.pop(name))
        log: str | None = kwargs.pop("log")
        for name, value in kwargs.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{names_of(own.parameters[name])[-1]} {value}: give a number")
        still = _shares_the_terminal(kwargs)
        heading = f"lrmil {__version__}: {command_line.get()}"
        with logged(Path(log), heading, "--log") if log else nullcontext(), speaking(called, still=still):
            command(**kwargs)

    vars(wrapped).update(__signature__=signature)
    wrapped.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    del vars(wrapped)["__wrapped__"]  # typer would look through to the undecorated function
    return wrapped


def _shares_the_terminal(values: Mapping[str, Any]) -> bool:
    """Whether others write to the terminal meanwhile: a table on stdout, or the command that we are fed by."""
    out = sys.stdout.isatty() and "-" in (values.get("output"), values.get("geojson"))
    fed = any(
        v == "-" or (isinstance(v, list) and "-" in v) for k, v in values.items() if k not in ("output", "geojson")
    )
    return out or fed


def voice() -> list[str]:
    """Those of ``-q -v --debug`` that the running command was given, for commands that it runs."""
    return [f"--{name}" for name, (variable, _) in _COMMON.items() if variable.get()]
