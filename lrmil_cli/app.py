"""The Typer app: registers the commands, turns errors into exit codes."""

from __future__ import annotations

import errno
import io
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from glob import glob
from typing import Annotated, Any

import typer

from lrmil_cli import __version__
from lrmil_cli.commands.all_commands import COMMANDS
from lrmil_cli.commands.common import with_common_options
from lrmil_cli.commands.declared import declared
from lrmil_cli.commands.help import PanelCommand, epilog
from lrmil_cli.commands.options import debug
from lrmil_cli.commands.report import is_speaking, pasted, tell
from lrmil_cli.commands.wrong_usage import usage_text
from lrmil_cli.errors import LrmilError, UsageError
from lrmil_cli.files.atomic import FULL
from lrmil_cli.files.header import command_line

INTERRUPTED = 130
#: As the shell counts a process that SIGPIPE ended.
CLOSED_PIPE = 141
#: Commands that leave alone what is up to date, so that saying them again goes on after a break.
RESUMED = frozenset(
    "tile match embed train-teacher distill-encoder distill-student predict report export-geojson export-onnx "
    "run demo".split()
)
_WINDOWS = os.name == "nt"

app = typer.Typer(
    name="lrmil",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Slide classification at 5x, distilled from 20x (LRMIL), for the shell and for QuPath.\n\n"
    "The chain: tile (twice) -> match -> distill-encoder -> train-teacher -> distill-student -> predict -> "
    "export-geojson; `lrmil run` is all of it. Start with `lrmil demo DIR`. Research use only.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, function in COMMANDS.items():
    app.command(name, cls=PanelCommand, epilog=epilog(name))(with_common_options(function, name))


def _version(show: bool) -> None:
    if show:
        print(f"lrmil {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: bool = typer.Option(False, "-V", "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


@app.command("help", hidden=True)
def help_of(ctx: typer.Context, command: Annotated[str, typer.Argument(help="A command.")] = "") -> None:
    """Show the help of a command."""
    known = ctx.parent.command if ctx.parent is not None else None
    found = getattr(known, "commands", {}).get(command) if command else known
    if found is None or ctx.parent is None:
        raise UsageError(f"help {command}: no such command; `lrmil --help` lists them")
    name = f"lrmil {command}".strip()
    own = typer.Context(found, info_name=name, help_option_names=["-h", "--help"])
    print(found.get_help(own if command else ctx.parent))


def run(args: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code; messages go to stderr."""
    command_line.set(shlex.join(["lrmil", *args]))
    debug.set(False)
    try:
        # The runner is handed down: `demo` types command lines, and nothing below may import this file.
        code = app(args=list(args), standalone_mode=False, obj=run)
        # Newer versions of typer turn Ctrl-C into this exit code, older ones into Abort.
        return _interrupted(args) if code == INTERRUPTED else code if isinstance(code, int) else 0
    except LrmilError as e:
        return _fail(" ".join(str(e).split()), e.exit_code)
    except typer.Exit as e:
        return e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(args)
    except (BrokenPipeError, SystemExit) as e:  # the command line parser turns the first into the second
        if isinstance(e, SystemExit) and not e.code:  # completion says so that it is done
            return 0
        # The reader of our pipe is gone: nobody wants the rest, and nothing is wrong that we could say.
        _close_stdout()
        return CLOSED_PIPE
    except OSError as e:
        if _WINDOWS and e.errno == errno.EINVAL and e.filename is None:  # its other word for a closed pipe
            _close_stdout()
            return CLOSED_PIPE
        if e.errno not in FULL or e.filename is not None:
            return _internal(e)
        _close_stdout()
        return _fail(f"cannot write to standard output: {e.strerror}; free space, or write to a file elsewhere", 5)
    except MemoryError:
        return _fail(
            "out of memory; close other programs, or lower --batch-size or --workers where the command has them", 5
        )
    except Exception as e:
        # The command line parser's errors; their module differs between versions of typer.
        if hasattr(e, "format_message"):
            return _usage(e, args)
        return _internal(e)


def _internal(e: Exception) -> int:
    if debug.get():
        raise e
    return _fail(
        f"internal error: {type(e).__name__}: {' '.join(str(e).split())[:300]} (add --debug for the traceback)", 1
    )


def _close_stdout() -> None:
    """Keep Python from complaining, at exit, of what it could not write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted(args: Sequence[str]) -> int:
    if "--dry-run" in args:
        return _fail("interrupted; nothing was written", INTERRUPTED)
    text = "interrupted; what was finished is kept"
    if not is_speaking() and args and args[0] in RESUMED and "-" not in args:
        tell(f"error: {text}, and the same command goes on from there")
        tell(f"next: {pasted(args)}", wrapped=False)
        return INTERRUPTED
    return _fail(text, INTERRUPTED)


def _usage(e: Any, args: Sequence[str]) -> int:
    """A command line that cannot be parsed: the help where nothing was given, else one line."""
    context: typer.Context | None = getattr(e, "ctx", None)
    if context is not None and type(e).__name__ == "NoArgsIsHelpError":
        print(context.get_help(), file=sys.stderr)
        return 2
    command = next((a for a in args if a in COMMANDS), "")
    numbers = {d.name: d for d in declared(COMMANDS[command]) if d.kind in (int, float)} if command else {}
    return _fail(usage_text(e, command, numbers), e.exit_code)


def _fail(text: str, code: int) -> int:
    tell(f"error: {text}")
    return code


def main() -> None:
    """Entry point of ``lrmil`` and ``python -m lrmil_cli``."""
    # A scheduler's SIGTERM ends a command as Ctrl-C does: with nothing half-written left behind.
    for name in ("SIGTERM", "SIGBREAK"):  # the second is Ctrl-Break, which is all that can be sent on Windows
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    # What leaves through a pipe is read as UTF-8 by the next command; Windows would have chosen another encoding.
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it finds wrong with a file, our own checks say
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # library chatter is not for the user of a command
    sys.exit(run(expanded(sys.argv[1:])))


def expanded(args: Sequence[str], windows: bool = os.name == "nt") -> list[str]:
    """Arguments, with the files that ``*.svs`` and the like stand for: the shells of Windows leave that to programs."""
    if not windows:
        return list(args)
    return [found for arg in args for found in (sorted(glob(arg)) if set(arg) & set("*?") else []) or [arg]]
