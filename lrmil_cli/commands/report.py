"""What a command says: results on stdout, everything else on stderr, one JSON object a slide with ``--json``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any, TextIO

from lrmil_cli.chain.steps import as_typed
from lrmil_cli.commands import options, screen
from lrmil_cli.commands.progress_line import ProgressLine
from lrmil_cli.errors import MachineError
from lrmil_cli.progress import listening, phase

if TYPE_CHECKING:
    from lrmil_cli.encoders.vit import EncoderInfo
    from lrmil_cli.slides.slide import Slide


#: Where all that is told is kept besides: the log of a chain, and the one that the user asked for.
_logs: list[TextIO] = []
#: Commands that run in each other; the messages of a step stand under its line.
_depth = 0


def tell(text: str, *, show: bool = True, wrapped: bool = True) -> None:
    """A message on stderr, and in the logs that are kept; these have those too that are not shown."""
    text = indent(text, "  " * max(0, _depth - 1))
    if show:
        screen.show(text, wrapped=wrapped)
    for log in list(_logs):
        _note(log, text)


def _note(log: TextIO, text: str) -> None:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        log.write("".join(f"{now}  {line}\n" for line in screen.printable(text).splitlines() if line.strip()))
        log.flush()
    except OSError as e:
        _logs.remove(log)
        tell(f"warning: {log.name}: the log ends here: {e.strerror or e}")


@contextmanager
def speaking(command: str, *, still: bool = False) -> Iterator[None]:
    """A command runs meanwhile: how far it is is told, and what it says as a step of another stands under that.

    Args:
        still: no line moves, because others write to the same terminal.
    """
    global _depth
    _depth += 1
    others = os.environ.get("RANK", "0") != "0"  # of processes that train together the first one speaks
    quiet, verbose = options.quiet.get() or others, options.verbose.get()
    line = ProgressLine(tell, quiet=quiet, verbose=verbose, still=still) if _depth == 1 else None
    try:
        with listening(line) if line else nullcontext(), phase(command, whole=True):
            yield
    finally:
        _depth -= 1
        if line is not None:
            line.close()


def is_speaking() -> bool:
    """Whether a command runs, of which one that has just ended was a step."""
    return _depth > 0


def is_step() -> bool:
    """Whether the command that runs is a step of another."""
    return _depth > 1


@contextmanager
def logged(path: Path, heading: str, option: str = "--output") -> Iterator[None]:
    """Keep all that is told in a file, each line with its time; what is there already stays.

    Raises:
        MachineError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names of files may be no text; here they are spelled out.
        log = open(path, "a", encoding="utf-8", errors="backslashreplace")
    except OSError as e:
        raise MachineError(f"cannot write {path}: {e.strerror or e}; choose another {option}") from e
    with log:
        _logs.append(log)
        try:
            tell(heading, show=False)
            yield
        except BaseException as e:
            tell(f"ended by: {e or type(e).__name__}", show=False)
            raise
        finally:
            if log in _logs:
                _logs.remove(log)


def pasted(args: Sequence[str], width: int | None = None) -> str:
    """A command line of ``lrmil`` to be pasted; on a narrow terminal over several lines, as the shell takes them.

    Args:
        width: of the terminal; that of stderr if None.
    """
    line = f"lrmil {as_typed(args)}"
    width = screen.columns() if width is None else width
    if not screen.is_terminal() or os.name == "nt" or len(line) + len("next: ") <= width:
        return line
    out, now = [], ["lrmil"]
    for word in map(as_typed, ([a] for a in args)):
        if word.startswith("-") and len(now) > 1:
            out.append(" ".join(now))
            now = []
        now.append(word)
    return " \\\n    ".join([*out, " ".join(now)])


class Report:
    """The voice of one command run; quiet and verbose come from the command line."""

    def __init__(self, as_json: bool = False):
        self.as_json = as_json
        self.quiet = options.quiet.get()
        self.verbose = options.verbose.get()
        self.muted = False
        self._noted: set[tuple[str, str]] = set()

    def mute(self) -> None:
        """Say nothing from now on: another process of the same run speaks."""
        self.quiet, self.as_json, self.muted = True, False, True

    def say(self, text: str) -> None:
        """Progress and summaries."""
        if not self.muted:
            tell(text, show=not self.quiet)

    def end(self, made: str, then: Sequence[str] | None = None) -> None:
        """What was made and where ("" where that was said), and the words after ``lrmil`` that one types next."""
        if made:
            self.say(made)
        if then and not is_step() and not self.muted:
            tell(f"next: {pasted(then)}", show=not self.quiet, wrapped=False)

    def detail(self, text: str) -> None:
        """What only ``--verbose`` and the log have."""
        if not self.muted:
            tell(text, show=self.verbose and not self.quiet)

    def warn(self, text: str) -> None:
        """Something the user should know; shown even when quiet."""
        if not self.muted:
            tell(f"warning: {text}")

    def notes(self, slide: Slide) -> None:
        """What the user should know of how a slide is read, as far as it was not said before."""
        for note in slide.notes:
            if (slide.slide_id, note) not in self._noted:
                self._noted.add((slide.slide_id, note))
                self.warn(f"{slide.slide_id}: {note}")

    def encoder(self, info: EncoderInfo) -> None:
        """What encoder it is that the command loaded, with ``--verbose``."""
        self.detail(
            f"encoder {info.name}: {info.image_size} px, embedding {info.embedding}, licence {info.license}"
            + (f"; {info.note}" if info.note else "")
        )

    def result(self, record: dict[str, Any]) -> None:
        """One JSON object on one line of stdout, with ``--json`` only."""
        if self.as_json:
            with screen.line_cleared():
                print(json.dumps(record, allow_nan=False), flush=True)
