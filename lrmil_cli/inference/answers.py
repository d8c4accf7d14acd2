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
from lrmil_cli.files.manifest_rows import plain_cell
from lrmil_cli.files.tables import checked_header, write_table
from lrmil_cli.slide_places import as_seen_from
from lrmil_cli.targets.task import task_of

NAME = "predictions.csv"
#: Columns before ``prob_<class>``; ``files`` are names as seen from the folder, with ``|`` between them, which is in no
#: name of Windows and in hardly any other.
COLUMNS = ["slide_id", "predicted", "probability", "uncertain", "tiles", "seconds", "model", "slide", "files", "digest"]
_NUMBERS = {"probability": float, "tiles": int, "seconds": float, "risk": float, "median": float}
#: Columns of survival, after them.
_OF_SURVIVAL = ("risk", "median")


def answer_row(record: dict[str, Any], files: Sequence[str | Path], folder: Path) -> dict[str, str]:
    """The row of one slide, by column.

    Args:
        record: the prediction JSON; files: what was written for the slide; folder: where the table will be.
    """
    task = task_of(record)
    said = record["probabilities"] if task.classes else {}
    own = {
        "slide_id": record["slide"]["id"],
        "predicted": f"{record['predicted']:.9g}" if task.kind == "regression" else record["predicted"],
        "probability": f"{said[record['predicted']]:.9g}" if task.classes else "nan",
        "uncertain": str(record.get("uncertain") or ""),
        "tiles": str(record["tiles"]),
        "seconds": f"{round(sum(record['seconds'].values()), 3):.9g}",
        "model": Path(record["model"]["path"]).name,
        "slide": record["slide"]["path"],
        "files": "|".join(as_seen_from(folder, path).get("beside", str(path)) for path in files),
        "digest": last_digest(record),
    }
    if task.kind == "survival":
        own |= {"risk": f"{record['risk']:.9g}", "median": f"{float(record['median'] or 'nan'):.9g}"}
    return {k: _cell(v) for k, v in own.items()} | {f"prob_{c}": f"{p:.9g}" for c, p in said.items()}


def check_answers(folder: Path, overwrite: bool, several: bool = False) -> None:
    """Raises UsageError if ``predictions.csv`` of a folder is no table of ``predict``, or one of another kind (of one
    model, of ``several``): it must not be lost unasked."""
    rows, models = read_answers(folder, overwrite)
    if rows and bool(models) != several and not overwrite:
        what = f"of the models {', '.join(models)}" if models else "of one model"
        raise UsageError(
            f"{folder / NAME} holds answers {what}; choose another --output, or add --overwrite to replace the table"
        )


def read_answers(folder: Path, overwrite: bool = False) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Rows by slide id, and by model where there are several; the names of those models. Nothing where there is no
    table.

    Raises:
        UsageError: it is no table of ``predict``, or damaged, and ``overwrite`` is off.
    """
    path = folder / NAME
    if not path.exists():
        return {}, []
    try:
        header = checked_header(path, "answers")
        with open(path, encoding="utf-8", newline="") as fh:
            fh.readline()
            rows = list(csv.DictReader(io.StringIO(fh.read())))
        models = [str(m) for m in header.get("models", [])]
        return _by_key([{k: v or "" for k, v in row.items() if k} for row in rows], models), models
    except (InputError, OSError, ValueError, KeyError, csv.Error) as e:
        if overwrite:
            return {}, []
        raise UsageError(
            f"{path} exists and is not the table that `lrmil predict` keeps there, or is damaged; choose another "
            "--output, or add --overwrite to replace it"
        ) from e


def models_in(folder: Path) -> list[tuple[str, Path]]:
    """The models whose answers a results folder holds: their names and folders; of one model "" and the folder itself.

    Raises:
        UsageError: as :func:`read_answers`.
    """
    try:
        names = [str(m) for m in checked_header(folder / NAME, "answers").get("models", [])]
    except (InputError, OSError):  # records alone are a results folder too
        names = []
    return [(name, folder / name) for name in names] or [("", folder)]


def note_answers(
    folder: Path, rows: Sequence[Mapping[str, str]], overwrite: bool = False, models: Sequence[str] = ()
) -> bool:
    """Put rows into ``predictions.csv``, in the place of those of the same slides (and models); other rows stay.

    Args:
        models: names of the models, where the table is of several.

    Returns:
        False where the file system has no locks, so that rows of jobs that end in the same moment may be lost.

    Raises:
        UsageError: as :func:`read_answers`. MachineError: the table cannot be written.
    """
    new = _by_key(rows, models)
    if _merged(read_answers(folder, overwrite), new, models) == read_answers(folder, overwrite):
        return True  # a lock would touch the folder
    with locked(folder / NAME) as alone:
        there = read_answers(folder, overwrite)
        if (both := _merged(there, new, models)) != there:
            merged, names = both
            ordered = [merged[key] for key in sorted(merged)]
            made_of = {key: row["digest"] for key, row in merged.items()}
            history = [step("predict", {"table": "answers"}, made_of)]
            several: dict[str, Any] = {"models": names} if names else {}
            write_table(
                folder / NAME, make_header("answers", settings={}, **several, history=history), _columns(ordered)
            )
    return alone


def _by_key(rows: Sequence[Mapping[str, str]], models: Sequence[str]) -> dict[str, dict[str, str]]:
    """Rows by slide, and model where there are several; neither holds a ``/``."""
    return {f"{r['slide_id']}/{r['model']}" if models else r["slide_id"]: dict(r) for r in rows}


def _merged(
    there: tuple[dict[str, dict[str, str]], list[str]], new: dict[str, dict[str, str]], models: Sequence[str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    rows, names = there
    if bool(names) != bool(models):  # of one model before, of several now: the user said --overwrite
        rows, names = {}, []
    merged = {**rows, **{key: _with_files(row, rows.get(key)) for key, row in new.items()}}
    return merged, list(dict.fromkeys([*names, *models]))


def _with_files(row: Mapping[str, str], before: Mapping[str, str] | None) -> dict[str, str]:
    """A row, with the files that earlier runs made of the same prediction."""
    if before is None or before["digest"] != row["digest"]:
        return dict(row)
    return {**row, "files": "|".join(dict.fromkeys([*row["files"].split("|"), *before["files"].split("|")]))}


def _columns(rows: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
    named = {name for row in rows for name in row}
    further = [name for name in _OF_SURVIVAL if name in named] + sorted(n for n in named if n.startswith("prob_"))
    return {
        name: np.array([_value(name, row) for row in rows], _NUMBERS.get(name, object)) for name in COLUMNS + further
    }


def _value(name: str, row: Mapping[str, str]) -> Any:
    text = row.get(name, "")
    return _NUMBERS[name](text or "nan") if name in _NUMBERS else text


def _cell(text: str) -> str:
    """Of a file name that is no text, what can be written."""
    return plain_cell(text.encode("utf-8", "replace").decode("utf-8"))
