"""Text for a terminal of 80 columns: a head, and beside it what belongs to it."""

from __future__ import annotations

from textwrap import wrap

WIDTH = 80


def beside(head: str, texts: list[str]) -> list[str]:
    """Lines of ``head`` with ``texts`` beside it, one below the other, each wrapped under its own first letter; what
    starts with an arrow is wrapped under its first word. Paths and names stay whole."""
    blank = " " * len(head)
    lines: list[str] = []
    for text in texts:
        after = blank + ("   " if text.startswith("-> ") else "  " if len(texts) > 1 else "")
        lines += wrap(
            text,
            WIDTH,
            initial_indent=blank if lines else head,
            subsequent_indent=after,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return lines
