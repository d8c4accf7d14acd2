"""What a command says: results on stdout, everything else on stderr, one JSON object a slide with ``--json``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lrmil_cli.commands import options
from lrmil_cli.errors import MachineError

if TYPE_CHECKING:
    from lrmil_cli.encoders.vit import EncoderInfo
    from lrmil_cli.slides.slide import Slide


def printable(text: str) -> str:
    """Text without what a terminal would obey.

    Control characters and changes of direction (from file names, labels, headers) are spelled out.
    """
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


#: Where all that is told is kept besides, while a chain runs.
_log: TextIO | None = None


def tell(text: str, *, show: bool = True) -> None:
    """A message on stderr, and in the log where one is kept; the log has those too that are not shown."""
    if show:
        print(printable(text), file=sys.stderr, flush=True)
    if _log is not None:
        _note(_log, text)


def _note(log: TextIO, text: str) -> None:
    global _log
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        log.write("".join(f"{now}  {line}\n" for line in printable(text).splitlines() if line.strip()))
        log.flush()
    except OSError as e:
        _log = None
        tell(f"warning: {log.name}: the log ends here: {e.strerror or e}")


@contextmanager
def logged(path: Path, heading: str) -> Iterator[None]:
    """Keep all that is told in a file, each line with its time; what is there already stays.

    Raises:
        MachineError: it cannot be written.
    """
    global _log
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names of files may be no text; here they are spelled out.
        log = open(path, "a", encoding="utf-8", errors="backslashreplace")
    except OSError as e:
        raise MachineError(f"cannot write {path}: {e.strerror or e}; choose another --output") from e
    with log:
        _log = log
        try:
            tell(heading, show=False)
            yield
        except BaseException as e:
            tell(f"ended by: {e or type(e).__name__}", show=False)
            raise
        finally:
            _log = None


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

    def detail(self, text: str) -> None:
        """What only ``--verbose`` shows."""
        if self.verbose and not self.quiet:
            tell(text)

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
            print(json.dumps(record, allow_nan=False), flush=True)

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar on a terminal; nothing where stderr is a file or a pipe."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda n: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label[:40], total=total)
            yield lambda n: bar.advance(task, n)
