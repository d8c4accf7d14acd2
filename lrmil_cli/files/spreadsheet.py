"""A table as people save it: commas, semicolons or tabs, UTF-8 or UTF-16, or an Excel workbook.

Everything comes out as text, row by row; what it means is for :mod:`lrmil_cli.files.manifest`. What had to be found out
about the file is said in ``notes``, and what cannot be read without guessing is refused with the row.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lrmil_cli.errors import InputError, MachineError, no_such_file

SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx")
#: In the order in which they are preferred where the header line fits several.
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True)
class Row:
    """One row: its number as a spreadsheet counts (the header is row 1), and its cells by column, stripped."""

    number: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Spreadsheet:
    """A table as text.

    Attributes:
        columns: as written, in order; rows: without those that are empty.
        notes: how the file was read, where that is not plain comma-separated UTF-8; form: how, in any case.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    form: str = ""


def read_spreadsheet(path: str | Path) -> Spreadsheet:
    """Read a table.

    Raises:
        InputError: no such file, no text, a table of lrmil's own, two columns of one name, a row with more
            cells than columns.
        MachineError: an Excel workbook without the package that reads them.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as e:
        raise InputError(no_such_file(path)) from e
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}); check its permissions and the disk") from e
    if data.startswith(b"PK\x03\x04"):
        lines, notes = _workbook(path, data)
        form = ", ".join(notes)
    else:
        lines, notes, form = _delimited(path, data)
    if not lines:
        raise InputError(f"{path}: the table is empty; write one row a slide under the header `slide,label`")
    return _rows(path, lines, notes, form)


def _delimited(path: Path, data: bytes) -> tuple[list[tuple[int, list[str]]], list[str], str]:
    text, encoding = _decode(path, data)
    if text.startswith("# lrmil"):
        raise InputError(f"{path}: this is a table made by lrmil, not a manifest with the columns slide,label")
    notes = [] if encoding == "UTF-8" else [encoding]
    skipped = 0
    if text[:4].lower() == "sep=":  # Excel's own way to name the separator
        first, _, text = text.partition("\n")
        separator, skipped = first.rstrip("\r")[4:5] or ",", 1
    else:
        separator = _separator(next((line for line in text.splitlines() if line.strip()), ""))
    if separator != ",":
        notes.append(f"separated by {SEPARATORS.get(separator, repr(separator))}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            lines.append((reader.line_num + skipped, [c.strip() for c in cells]))
    except csv.Error as e:
        raise InputError(f"{path}: line {reader.line_num + skipped}: not a table of text ({e})") from e
    form = f"{encoding} text, separated by {SEPARATORS.get(separator, repr(separator))}"
    return [(n, cells) for n, cells in lines if any(cells)], notes, form


def _decode(path: Path, data: bytes) -> tuple[str, str]:
    """Text, and the encoding as people call it.

    UTF-16 without a mark is seen by its zero bytes. Code pages are not guessed: a wrong letter is another slide.
    """
    for mark, encoding in MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding).lstrip("\ufeff"), "UTF-8" if encoding == "utf-8-sig" else "UTF-16"
            except UnicodeDecodeError as e:
                raise InputError(
                    f"{path}: not {encoding.upper()[:6]} text as its first bytes say; save it again as 'CSV UTF-8'"
                ) from e
    if b"\0" in data[:200]:
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
        try:
            return data.decode(encoding), "UTF-16"
        except UnicodeDecodeError as e:
            raise InputError(f"{path}: this is no table of text; save it as 'CSV UTF-8'") from e
    try:
        return data.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line} is not UTF-8 text; save the table as 'CSV UTF-8'") from e


def _separator(header: str) -> str:
    """What separates the names of the header line: what occurs most there outside quotes, or a comma."""
    bare = "".join(part for n, part in enumerate(header.split('"')) if n % 2 == 0)
    counts = {s: bare.count(s) for s in SEPARATORS}
    return max(SEPARATORS, key=lambda s: counts[s])  # the first of equals


def _workbook(path: Path, data: bytes) -> tuple[list[tuple[int, list[str]]], list[str]]:
    try:
        from openpyxl import load_workbook
    except ImportError as e:
        raise MachineError(
            f"{path}: an Excel workbook; `pip install 'lrmil-cli[excel]'` reads it, or save the table as 'CSV UTF-8'"
        ) from e
    try:
        book = load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    except Exception as e:  # whatever a damaged archive raises in there
        raise InputError(f"{path}: not a workbook that can be read ({type(e).__name__}); save it as 'CSV UTF-8'") from e
    sheet = book.worksheets[0]
    lines = [(n, [_cell(v) for v in row]) for n, row in enumerate(sheet.iter_rows(values_only=True), 1)]
    width = max((len(cells) for _, cells in lines[:1]), default=0)
    while width and not lines[0][1][width - 1]:  # columns that were formatted and never filled
        width -= 1
    lines = [(n, cells[:width] + [c for c in cells[width:] if c]) for n, cells in lines]
    notes = [f"Excel workbook, sheet {sheet.title!r}"]
    if len(book.worksheets) > 1:
        notes.append(f"{len(book.worksheets) - 1} further sheet(s) not read")
    return [(n, cells) for n, cells in lines if any(cells)], notes


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():  # Excel has no whole numbers
        value = int(value)
    return str(value).strip()


def _rows(path: Path, lines: list[tuple[int, list[str]]], notes: list[str], form: str) -> Spreadsheet:
    columns = lines[0][1]
    while columns and not columns[-1]:
        columns = columns[:-1]
    named = Counter(c.lower() for c in columns if c)
    twice = next((c for c in columns if c and named[c.lower()] > 1), None)
    if twice is not None:
        raise InputError(
            f"{path}: {named[twice.lower()]} columns are called {twice!r}; which one counts? "
            "Rename or remove the others"
        )
    rows = []
    for number, cells in lines[1:]:
        surplus = [c for c in cells[len(columns) :] if c]
        if surplus:
            raise InputError(
                f"{path}: row {number} has more cells than the header has columns (left over: {surplus[0][:40]!r}); "
                "a cell that holds the separator must stand in double quotes"
            )
        rows.append(Row(number, {c: v for c, v in zip(columns, [*cells, *[""] * len(columns)]) if c}))
    return Spreadsheet(path, tuple(c for c in columns if c), tuple(rows), tuple(notes), form)
