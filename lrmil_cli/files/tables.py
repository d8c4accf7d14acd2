"""Tables that pass between commands: CSV with one ``# lrmil {...}`` comment line, ``.csv.gz``, or ``.parquet``.

``pandas.read_csv(f, comment="#")``, R and awk read the rows. The header carries the number of rows and a checksum, so
that a truncated or changed table is refused instead of read as another one. Who edits a table on purpose takes ``rows``
and ``content`` out of its first line.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_cli.errors import InputError, MachineError, UsageError, no_such_file
from lrmil_cli.files.atomic import write_bytes
from lrmil_cli.files.header import MADE_BY, check_header, check_seal, digest, last_digest, parse_header, sealed
from lrmil_cli.slide_places import as_read, as_written, moved_header

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PREFIX = "# lrmil "
SUFFIXES = (".csv", ".csv.gz", ".parquet")

#: kind -> {column: dtype kind}; "i" integer, "f" number, "s" text. Tables may hold more columns than these.
SCHEMAS: dict[str, dict[str, str]] = {
    "tiles": {"x": "i", "y": "i", "width": "i", "height": "i", "col": "i", "row": "i", "tissue": "f"},
    "pairs": dict.fromkeys(("lr_index", "hr_index", "lr_x", "lr_y", "hr_x", "hr_y", "cell_row", "cell_col"), "i"),
    "attention": {"x": "i", "y": "i", "width": "i", "height": "i", "attention": "f", "percentile": "f"},
    "predictions": {"slide_id": "s", "patient_id": "s", "label": "s", "fold": "i", "predicted": "s"},
    "answers": {"slide_id": "s", "predicted": "s", "tiles": "i", "seconds": "f"},
    "seeds": {"student": "s", "seed": "i", "slide_id": "s", "patient_id": "s", "label": "s", "fold": "i"},
    "metrics": {"fold": "s"},
    "curves": {"fold": "i", "epoch": "i"},
    "agreement": {
        "student": "s",
        "slide_id": "s",
        "fold": "i",
        "regions": "i",
        "rank_correlation": "f",
        "k": "i",
        "overlap": "f",
        "chance": "f",
    },
    "folds": {"slide_id": "s", "patient_id": "s", "label": "s"},
    "evaluation": {"model": "s", "level": "s", "metric": "s"},
    "differences": {"model": "s", "reference": "s", "level": "s", "metric": "s"},
}
#: Of ``predictions`` and ``seeds`` whose header has a ``target``, in place of ``label`` and ``predicted``.
TARGET_SCHEMAS: dict[str, dict[str, str]] = {
    "regression": {"label": "f", "predicted": "f"},
    "survival": {"time": "f", "event": "i", "risk": "f", "group": "s"},
}


def table_suffix(path: str | Path) -> str | None:
    """The table suffix of a name, or None if it has none of ours."""
    name = str(path).lower()
    return next((s for s in SUFFIXES if name.endswith(s)), None)


def dumps_csv(header: dict[str, Any], rows: pd.DataFrame | Mapping[str, np.ndarray]) -> str:
    """The whole table as CSV text, header line first."""
    if isinstance(rows, Mapping):
        number, body = len(next(iter(rows.values()))), _columns_csv(rows)
    else:
        number, body = len(rows), rows.to_csv(index=False, lineterminator="\n", float_format="%.9g")
    line = PREFIX + json.dumps(sealed({**header, "rows": number}, body.encode()), allow_nan=False, ensure_ascii=True)
    return line + "\n" + body


def _columns_csv(columns: Mapping[str, np.ndarray]) -> str:
    """Columns as pandas would write them, without importing it: it takes as long as a small slide."""

    def texts_of(column: np.ndarray) -> list[str]:
        if column.dtype.kind == "f":
            return ["" if v != v else f"{v:.9g}" for v in column.tolist()]
        return [_quoted(str(v)) for v in column.tolist()]

    texts = map(texts_of, columns.values())
    return "\n".join([",".join(map(_quoted, columns)), *map(",".join, zip(*texts)), ""])


def _quoted(name: str) -> str:
    """A name in CSV: classes and slides may hold commas and quotes."""
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\r\n') else name


def as_frame(rows: pd.DataFrame | Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The rows as a DataFrame."""
    import pandas as pd

    return pd.DataFrame(dict(rows)) if isinstance(rows, Mapping) else rows


def write_table(path: str | Path, header: dict[str, Any], rows: pd.DataFrame | Mapping[str, np.ndarray]) -> None:
    """Write a table, atomically; ``-`` writes CSV to standard output.

    Args:
        rows: a DataFrame, or columns [N] of numbers or text.

    Raises:
        UsageError: the name has none of the suffixes .csv, .csv.gz, .parquet.
        MachineError: the file cannot be written, or pyarrow is missing for .parquet.
    """
    header = as_written(header, None if str(path) == "-" else Path(path).parent)
    if str(path) == "-":
        sys.stdout.flush()
        # As bytes: the encoding of a Windows console lacks most letters that classes may be called by.
        sys.stdout.buffer.write(dumps_csv(header, rows).encode("utf-8"))
        sys.stdout.flush()
        return
    suffix = table_suffix(path)
    if suffix is None:
        raise UsageError(f"{path}: a table's name ends in {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        data = _to_parquet(header, as_frame(rows))
    else:
        data = dumps_csv(header, rows).encode("utf-8")
        if suffix == ".csv.gz":
            data = gzip.compress(data, 6, mtime=0)  # no time stamp: the same table gives the same bytes
    write_bytes(path, data)


def read_table(path: str | Path, kind: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read a table of ``kind``; ``-`` reads CSV from standard input.

    Returns:
        header, rows (columns of the kind's schema checked and cast).

    Raises:
        InputError: no such file, another kind, a newer version, damaged or truncated content.
    """
    import pandas as pd

    where, folder = ("standard input", None) if str(path) == "-" else (str(path), Path(path).parent)
    if table_suffix(path) == ".parquet":
        header, rows = _from_parquet(path, kind, where)
        body = ""
    else:
        text = _read_text(path, where)
        first, _, body = text.partition("\n")
        header = _header_of_line(first, kind, where)
        try:
            texts = {c: str for c, k in SCHEMAS[kind].items() if k == "s"}
            rows = pd.read_csv(io.StringIO(body), dtype=texts, keep_default_na=False, na_values=[""])
        except (ValueError, pd.errors.ParserError) as e:
            raise InputError(f"{where}: the rows are damaged ({_one_line(e)}); run `{MADE_BY[kind]}` again") from e
    rows = _check_rows(rows, header, kind, where)
    if "content" not in header:
        # Edited by hand: another table than the command made, and what is made of it is of it alone.
        own = digest({"rows": rows.to_csv(index=False, lineterminator="\n")}, {"before": last_digest(header)})
        edited = {"command": "edited by hand", "digest": own}
        return as_read({**header, "history": [*header["history"], edited]}, folder), rows
    return as_read(_sealed(header, body, where), folder), rows


def checked_header(path: str | Path, kind: str) -> dict[str, Any]:
    """The header of :func:`read_table`, without making numbers of the rows: what decides whether something is up to
    date.

    Raises:
        InputError: as :func:`read_table`, but rows that a checksum says are as they were written are not looked at.
    """
    if table_suffix(path) != ".parquet":
        first, _, body = _read_text(path, str(path)).partition("\n")
        header = _header_of_line(first, kind, str(path))
        if "content" in header:
            return as_read(_sealed(header, body, str(path)), Path(path).parent)
    return read_table(path, kind)[0]


def _sealed(header: dict[str, Any], body: str, where: str) -> dict[str, Any]:
    try:
        # Windows and git may have changed the ends of lines, which is no other table.
        return check_seal(header, where, body.replace("\r\n", "\n").encode())
    except InputError as e:
        raise InputError(f'{e}; if you edited the rows on purpose, take "content" out of its first line') from e


def read_table_header(path: str | Path, kind: str) -> dict[str, Any]:
    """The header of a table, without its rows.

    Raises:
        InputError: as :func:`read_table`.
    """
    if table_suffix(path) == ".parquet":
        return read_table(path, kind)[0]
    try:
        opener = gzip.open if str(path).lower().endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8") as fh:
            first = fh.readline()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise InputError(f"{path}: cannot be read ({_one_line(e)}); copy or make it again") from e
    return as_read(_header_of_line(first.rstrip("\n"), kind, str(path)), Path(path).parent)


def follow_slide(path: str | Path, kind: str, slide: str | Path) -> bool:
    """Write a table anew whose slide is not where the table says, but at ``slide``. All else stays.

    Returns:
        whether that was so.

    Raises:
        InputError, MachineError: the table cannot be read, or not be written.
    """
    if os.path.isfile(read_table_header(path, kind)["slide"]["path"]) or not os.path.isfile(slide):
        return False
    header, rows = read_table(path, kind)
    write_table(path, moved_header(header, slide), rows)
    return True


def _read_text(path: str | Path, where: str) -> str:
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8")
    except FileNotFoundError as e:
        raise InputError(no_such_file(where)) from e
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise InputError(f"{where}: cannot be read as a table ({_one_line(e)}); copy or make it again") from e


def _header_of_line(line: str, kind: str, where: str) -> dict[str, Any]:
    if not line.startswith(PREFIX):
        what = "nothing came in" if not line else "it has no `# lrmil` header line"
        raise InputError(f"{where}: not a {kind} table, {what}; `{MADE_BY[kind]}` makes one")
    return parse_header(line[len(PREFIX) :], kind, where)


def _check_rows(rows: pd.DataFrame, header: dict[str, Any], kind: str, where: str) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    schema = _schema_of(header, kind, where)
    missing = [c for c in schema if c not in rows.columns]
    if missing:
        raise InputError(f"{where}: column {missing[0]!r} is missing; run `{MADE_BY[kind]}` again")
    if "rows" in header and header["rows"] != len(rows):
        raise InputError(f"{where}: truncated, {len(rows)} rows of {header['rows']}; run `{MADE_BY[kind]}` again")
    for column, dtype in schema.items():
        if dtype == "s":
            rows[column] = rows[column].astype(str)
            continue
        numbers = pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers) | (np.abs(numbers) > 2**53))
        if dtype == "i" and not bad.size:
            bad = np.flatnonzero(numbers != np.round(numbers))
        if bad.size:
            raise InputError(f"{where}: row {bad[0] + 1}, column {column!r} is not a valid number")
        rows[column] = numbers.astype(np.int64) if dtype == "i" else numbers
    return rows


def _schema_of(header: dict[str, Any], kind: str, where: str) -> dict[str, str]:
    if kind not in ("predictions", "seeds") or not header.get("target"):
        return SCHEMAS[kind]
    own = TARGET_SCHEMAS.get(header["target"].get("kind"))
    if own is None:
        raise InputError(f"{where}: of a task that this version does not know; update lrmil")
    return {c: t for c, t in SCHEMAS[kind].items() if c not in ("label", "predicted")} | own


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise MachineError("Parquet tables need pyarrow: pip install 'lrmil-cli[parquet]', or use .csv.gz") from e
    return pyarrow


def _to_parquet(header: dict[str, Any], rows: pd.DataFrame) -> bytes:
    pa = _pyarrow()
    table = pa.Table.from_pandas(rows, preserve_index=False)
    meta = json.dumps(sealed({**header, "rows": len(rows)}), allow_nan=False).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"lrmil": meta})
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink, write_page_checksum=True)  # of the rows; `content` covers the header
    return sink.getvalue()


def _from_parquet(path: str | Path, kind: str, where: str) -> tuple[dict[str, Any], pd.DataFrame]:
    pa = _pyarrow()
    try:
        table = pa.parquet.read_table(path, page_checksum_verification=True)
    except FileNotFoundError as e:
        raise InputError(no_such_file(where)) from e
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"{where}: cannot be read as Parquet ({_one_line(e)}); copy or make it again") from e
    meta = (table.schema.metadata or {}).get(b"lrmil")
    header = check_header(None, kind, where) if meta is None else parse_header(meta, kind, where)
    try:
        # Without the metadata for pandas, which no checksum covers and the rows do not need.
        return header, table.replace_schema_metadata(None).to_pandas()
    except (ValueError, TypeError, KeyError, pa.ArrowException) as e:
        raise InputError(f"{where}: the rows are damaged ({_one_line(e)}); run `{MADE_BY[kind]}` again") from e


def _one_line(e: BaseException) -> str:
    return " ".join(str(e).split())[:160] or type(e).__name__


def find_table(folder: str | Path, slide_id: str, kind: str) -> Path:
    """The table ``<slide_id>.<kind>.csv`` (or .csv.gz, .parquet) in a folder.

    Raises:
        InputError: it is not there.
    """
    for suffix in SUFFIXES:
        path = Path(folder) / f"{slide_id}.{kind}{suffix}"
        if path.is_file():
            return path
    command = {"tiles": "lrmil tile", "pairs": "lrmil match"}[kind]
    raise InputError(f"{folder}: no {kind} table of slide {slide_id} ({slide_id}.{kind}.csv); make it with `{command}`")


def list_tables(folder: str | Path, kind: str) -> dict[str, Path]:
    """All tables ``<slide_id>.<kind>.<suffix>`` in a folder, by slide id, sorted."""
    out: dict[str, Path] = {}
    for path in sorted(Path(folder).iterdir()):
        for suffix in SUFFIXES:
            ending = f".{kind}{suffix}"
            if path.name.endswith(ending) and not path.name.startswith(".") and path.is_file():
                out.setdefault(path.name[: -len(ending)], path)
    return out
