"""Reports as a list of blocks, written as one self-contained HTML page or as Markdown.

The page loads nothing: style is inline, pictures are data URIs, there is no script but the one that a page brings; its
content security policy says so. Knows nothing of what is reported.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import quote


@dataclass(frozen=True)
class Heading:
    """A heading; level 2 is a section of the page, 3 a part of it (the title is level 1)."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table of text cells; ``note`` stands below it."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG with its description for those who cannot see it; ``name`` is its file name beside a Markdown page.

    On a narrow screen it is scrolled, so that its letters can be read; with ``shrink`` it is made as narrow.
    """

    png: bytes
    alt: str
    name: str
    shrink: bool = False


Block = Heading | Text | Table | Picture

STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1f24; --paper: #ffffff; --line: #c9ced6; --soft: #f3f5f8; --faint: #57606a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --paper: #15181d; --line: #3d444d; --soft: #20252c; --faint: #9aa4b0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3, h4, h5, h6 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .6rem 0; max-width: 48rem; }
.wide { overflow-x: auto; margin: .8rem 0 .4rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { background: var(--soft); border-bottom: 2px solid var(--line); }
tbody th { font-weight: 600; min-width: 7rem; }
.number { text-align: right; white-space: nowrap; }
.note { color: var(--faint); font-size: .88rem; margin-top: 0; }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; }
@media (max-width: 40rem) {
  body { padding: 1rem .8rem 3rem; } h1 { font-size: 1.35rem; } h2 { margin-top: 1.6rem; }
  th, td { padding: .3rem .45rem; } table { font-size: .82rem; }
  main > .wide tbody th { position: sticky; left: 0; background: var(--paper); min-width: 5.5rem; }
  main > figure { overflow-x: auto; } main > figure:not(.shrink) > img { max-width: none; width: 52rem; }
}
@media print {
  :root { color-scheme: light; --ink: #000000; --paper: #ffffff; --line: #999999; --soft: #eeeeee; --faint: #333333; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  .wide { overflow: visible; }
  table { font-size: 9pt; overflow-wrap: anywhere; }
  .number { white-space: normal; }
  h1, h2, h3, h4 { break-after: avoid; }
  tr, figure { break-inside: avoid; }
  thead { display: table-header-group; }
}
"""

#: A cell that is set as a number: a figure with what may follow it (interval, sd, unit), or a word that stands for one.
NUMBER = re.compile(r"[-+−]?[\d.][\d.,%eE+\-−–±()\[\] to]*(, \d+ of \d+ folds)?|undefined|none|-|–|")


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The report as one HTML page that needs no other file."""
    return document(title, "\n".join(block_html(b) for b in blocks))


def document(title: str, body: str, *, style: str = "", script: str = "", about: str = "") -> str:
    """A page around ``body``, HTML whose text is escaped already.

    Args:
        style, script: put into the page; the content security policy allows this one script, by its digest.
        about: kept in the page for those who read it by program (:func:`read_about`).
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    code = ""
    if script:
        own = base64.b64encode(sha256(script.encode()).digest()).decode("ascii")
        policy, code = f"{policy}; script-src 'sha256-{own}'", f"\n<script>{script}</script>"
    kept = f'<meta name="lrmil" content="{escaped(about)}">\n' if about else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="lrmil">\n<meta name="robots" content="noindex">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"{kept}<title>{escaped(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escaped(title)}</h1>\n{body}\n</main>{code}\n</body>\n</html>\n"
    )


def read_about(page: str) -> str | None:
    """What :func:`document` kept in a page; None where there is nothing."""
    found = re.search(r'<meta name="lrmil" content="([^"]*)">', page)
    return html.unescape(found[1]) if found else None


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The report as GitHub Markdown; pictures are named, and must be written beside it."""
    return "\n\n".join([f"# {_md(title)}", *(_markdown(b) for b in blocks)]) + "\n"


def block_html(block: Block) -> str:
    """One block as HTML."""
    if isinstance(block, Heading):
        level = min(max(block.level, 1), 6)
        return f"<h{level}>{escaped(block.text)}</h{level}>"
    if isinstance(block, Text):
        return f"<p>{escaped(block.text)}</p>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode("ascii")
        how = ' class="shrink"' if block.shrink else ""
        return f'<figure{how}><img src="data:image/png;base64,{data}" alt="{escaped(block.alt)}"></figure>'
    classes = [' class="number"' if n else "" for n in _number_columns(block)]
    head = "".join(f'<th scope="col"{c}>{escaped(h)}</th>' for c, h in zip(classes, block.headers))
    rows = "".join(
        f'<tr><th scope="row">{escaped(r[0])}</th>'
        + "".join(f"<td{c}>{escaped(v)}</td>" for c, v in zip(classes[1:], r[1:]))
        + "</tr>\n"
        for r in block.rows
    )
    note = f'\n<p class="note">{escaped(block.note)}</p>' if block.note else ""
    # Scrolls sideways by itself, by keyboard too, so that a wide table does not move the page.
    return (
        '<div class="wide" tabindex="0" role="group" aria-label="table">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>{note}"
    )


def escaped(text: str) -> str:
    """Text in which HTML means nothing, also between quotes."""
    return html.escape(_sayable(text), quote=True)


def _sayable(text: str) -> str:
    """Text that UTF-8 can write: a file name that is no text has bytes in it that cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _number_columns(table: Table) -> list[bool]:
    """Which columns are set right: those with numbers only; never the first, which names the row."""
    return [n > 0 and all(NUMBER.fullmatch(r[n]) for r in table.rows) for n in range(len(table.headers))]


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * min(max(block.level, 1), 6)} {_md(block.text)}"
    if isinstance(block, Text):
        return _paragraph(block.text)
    if isinstance(block, Picture):
        return f"![{_md(block.alt)}]({quote(block.name)})"
    rule = ["---:" if n else "---" for n in _number_columns(block)]
    cells = [[_md(h) for h in block.headers], rule, *([_md(v) for v in r] for r in block.rows)]
    note = f"\n\n{_paragraph(block.note)}" if block.note else ""
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + note


def _md(text: str) -> str:
    """Text on one line in which Markdown and HTML mean nothing."""
    text = html.escape(" ".join(_sayable(text).split()), quote=False)
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    # An underscore inside a word is no emphasis and stays readable as it is.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def _paragraph(text: str) -> str:
    """The same where a line begins: no list, no heading."""
    return re.sub(r"^(\d*)([.)#+-])(?=[\s#-])", r"\1\\\2", _md(text))
