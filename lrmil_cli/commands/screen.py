"""What is seen on stderr: lines of text, and on a terminal one line below them that moves."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.live import Live

_lock = threading.RLock()
_live: Live | None = None


def printable(text: str) -> str:
    """Text without what a terminal would obey.

    Control characters and changes of direction (from file names, labels, headers) are spelled out.
    """
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_terminal() -> bool:
    """Whether stderr is a terminal on which a line can be drawn again."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def columns() -> int:
    """Width of the terminal that stderr is; 80 where it is none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80


@contextmanager
def line_cleared() -> Iterator[None]:
    """Take the moving line away and keep it away meanwhile: for whatever writes to the terminal, stdout too."""
    global _live
    with _lock:
        if _live is not None:
            _live.stop()
            _live = None
        yield


def show(text: str, *, wrapped: bool = True) -> None:
    """Print lines on stderr; on a terminal those that are too long are ``wrapped``."""
    text = printable(text)
    with line_cleared():
        print(wrap(text, columns()) if wrapped and is_terminal() else text, file=sys.stderr, flush=True)


def draw(text: str) -> None:
    """Let the moving line be this, cut at the edge of the terminal."""
    global _live
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    line = Text(printable(text), no_wrap=True, overflow="ellipsis")
    with _lock:
        if _live is None:
            console = Console(stderr=True, force_terminal=True, highlight=False)
            # What is printed meanwhile clears the line first; nobody's stdout is redirected.
            _live = Live(
                line,
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            _live.start()
        _live.update(line, refresh=True)


def wrap(text: str, width: int) -> str:
    """Lines no longer than ``width``: broken between words, and paths at their slashes; what has neither is cut.

    Command lines after ``$`` stay whole.
    """
    return "\n".join(broken for line in text.split("\n") for broken in _wrap(line, width))


def _wrap(line: str, width: int) -> list[str]:
    if len(line) <= width or line.lstrip().startswith("$ "):  # a command line is left as it can be pasted
        return [line]
    margin = " " * min(len(line) - len(line.lstrip()), width // 2)
    out, now = [], ""
    for word in re.findall(r"\s*\S+", line):
        for part in [word] if len(now + word) <= width else re.findall(r"\s*[^\s/\\]*[/\\]*", word)[:-1]:
            if len(now + part) > width and now.strip():
                out.append(now)
                now = margin + "  " + part.lstrip()
            else:
                now += part
            while len(now) > width:
                out.append(now[:width])
                now = margin + "  " + now[width:]
    return [*out, now]
