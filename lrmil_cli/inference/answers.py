"""``predictions.csv`` of a results folder: a row a slide, of all runs that predicted into it; without pandas."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.header import last_digest, make_header, step
from lrmil_cli.files.locks import locked
from lrmil_cli.files.manifest import plain_cell
from lrmil_cli.files.tables import checked_header, write_table
from lrmil_cli.slide_places import as_seen_from

NAME = "predictions.csv"
#: Columns before ``prob_<class>``; ``files`` are names as seen from the folder, with ``|`` between them, which is in no
#: name of Windows and in hardly any other.
COLUMNS = ["slide_id", "predicted", "probability", "uncertain", "tiles", "seconds", "model", "slide", "files", "digest"]
_NUMBERS = {"probability": float, "tiles": int, "seconds": float}


def answer_row(record: dict[str, Any], files: Sequence[str | Path], folder: Path) -> dict[str, str]:
    """The row of one slide, by column.

    Args:
        record: the prediction JSON; files: what was written for the slide; folder: where the table will be.
    """
    said = record["probabilities"]
    own = {
        "slide_id": record["slide"]["id"],
        "predicted": record["predicted"],
        "probability": f"{said[record['predicted']]:.9g}",
        "uncertain": str(record.get("uncertain") or ""),
        "tiles": str(record["tiles"]),
        "seconds": f"{round(sum(record['seconds'].values()), 3):.9g}",
        "model": Path(record["model"]["path"]).name,
        "slide": record["slide"]["path"],
        "files": "|".join(as_seen_from(folder, path).get("beside", str(path)) for path in files),
        "digest": last_digest(record),
    }
    return {k: _cell(v) for k, v in own.items()} | {f"prob_{c}": f"{p:.9g}" for c, p in said.items()}


def check_answers(folder: Path, overwrite: bool) -> None:
    """Raises UsageError if ``predictions.csv`` of a folder is no table of ``predict``: it must not be lost unasked."""
    read_answers(folder, overwrite)


def read_answers(folder: Path, overwrite: bool = False) -> dict[str, dict[str, str]]:
    """Rows by slide id; none where there is no table.

    Raises:
        UsageError: it is no table of ``predict``, or damaged, and ``overwrite`` is off.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        checked_header(path, "answers")
        with open(path, encoding="utf-8", newline="") as fh:
            fh.readline()
            rows = list(csv.DictReader(io.StringIO(fh.read())))
        return {row["slide_id"]: {k: v or "" for k, v in row.items() if k} for row in rows}
    except (InputError, OSError, ValueError, KeyError, csv.Error) as e:
        if overwrite:
            return {}
        raise UsageError(
            f"{path} exists and is not the table that `lrmil predict` keeps there, or is damaged; choose another "
            "--output, or add --overwrite to replace it"
        ) from e


def note_answers(folder: Path, rows: Sequence[Mapping[str, str]], overwrite: bool = False) -> bool:
    """Put rows into ``predictions.csv``, in the place of those of the same slides; rows of other slides stay.

    Returns:
        False where the file system has no locks, so that rows of jobs that end in the same moment may be lost.

    Raises:
        UsageError: as :func:`read_answers`. MachineError: the table cannot be written.
    """
    if _merged(there := read_answers(folder, overwrite), rows) == there:  # a lock would touch the folder
        return True
    with locked(folder / NAME) as alone:
        there = read_answers(folder, overwrite)
        if (merged := _merged(there, rows)) != there:
            ordered = [merged[slide_id] for slide_id in sorted(merged)]
            made_of = {row["slide_id"]: row["digest"] for row in ordered}
            history = [step("predict", {"table": "answers"}, made_of)]
            write_table(folder / NAME, make_header("answers", settings={}, history=history), _columns(ordered))
    return alone


def _merged(there: dict[str, dict[str, str]], rows: Sequence[Mapping[str, str]]) -> dict[str, dict[str, str]]:
    return there | {row["slide_id"]: _with_files(row, there.get(row["slide_id"])) for row in rows}


def _with_files(row: Mapping[str, str], before: Mapping[str, str] | None) -> dict[str, str]:
    """A row, with the files that earlier runs made of the same prediction."""
    if before is None or before["digest"] != row["digest"]:
        return dict(row)
    return {**row, "files": "|".join(dict.fromkeys([*row["files"].split("|"), *before["files"].split("|")]))}


def _columns(rows: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
    classes = sorted({name for row in rows for name in row if name.startswith("prob_")})
    return {
        name: np.array([_NUMBERS.get(name, str)(row.get(name, "")) for row in rows], dtype=_NUMBERS.get(name, object))
        for name in (*COLUMNS, *classes)
    }


def _cell(text: str) -> str:
    """Of a file name that is no text, what can be written."""
    return plain_cell(text.encode("utf-8", "replace").decode("utf-8"))
