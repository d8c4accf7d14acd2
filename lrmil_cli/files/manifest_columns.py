"""Which column of a table of slides is for what: by names in any case, by those of other tools, by what stands in it.

See files/README 3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from lrmil_cli.errors import InputError
from lrmil_cli.files.spreadsheet import Spreadsheet
from lrmil_cli.targets.task import Task
from lrmil_cli.units import Mpp

#: What a column is for -> the names it may have, compared without case, spaces, hyphens and underscores. The first is
#: ours.
COLUMNS: dict[str, tuple[str, ...]] = {
    "slide": ("slide", "slide_path", "path", "file", "filename", "file_name", "filepath", "image", "wsi", "wsi_path"),
    "slide_id": ("slide_id", "slide_name", "wsi_id", "image_id"),
    "patient_id": (
        "patient_id",
        "patient",
        "case_id",
        "case",
        "p_id",
        "pid",
        "subject_id",
        "subject",
        "case_submitter_id",
    ),
    "site": ("site", "tissue_source_site", "centre", "center"),
    "label": ("label",),
    "split": ("split", "set", "dataset", "partition", "subset"),
    "fold": ("fold",),
    "mpp": ("mpp", "slide_mpp", "mpp_x", "um_per_px"),
    "mask": ("mask", "tissue_mask", "mask_path"),
    "roi": ("roi", "roi_path"),
    "min_tissue": ("min_tissue",),
    "organ": ("organ",),
    "stain": ("stain", "staining"),
}
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

#: Cells that say that nothing is known, compared without case.
MISSING = frozenset(
    ("", "na", "n/a", "#n/a", "<na>", "nan", "none", "null", "nil", "-", "--", ".", "?", "unknown", "missing")
    + ("not available", "[not available]", "[not applicable]", "[unknown]", "[not evaluated]", "[discrepancy]")
)


def is_missing(text: str) -> bool:
    """Whether a cell says that nothing is known (:data:`MISSING`)."""
    return text.strip().casefold() in MISSING


def bare(name: str) -> str:
    """A name without what people write differently: case, spaces, hyphens, underscores."""
    return re.sub(r"[\s_\-]+", "", name).casefold()


def parse_number(text: str) -> float:
    """A number with a point or a comma for decimals.

    Raises:
        ValueError: it is none, or not finite.
    """
    value = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def find_columns(
    sheet: Spreadsheet, label: str | None, task: Task = Task()
) -> tuple[dict[str, str], list[str], tuple[str, ...]]:
    """What each column is for: role -> its name in the table, where that is not ours a note, and columns without a
    role.

    Raises:
        InputError: two columns of other names that could both be meant, or the label column that was named is not
            there.
    """
    by_bare = {bare(c): c for c in sheet.columns}
    found: dict[str, str] = {}
    notes = []
    followed = {"time": (task.time,), "event": (task.event,)} if task.kind == "survival" else {}
    for role, names in (COLUMNS | followed).items():
        if role == "label" and label is not None:
            names = (label,)
        elif role == "label" and task.kind == "survival":  # time and event stand in its place
            continue
        there = [by_bare[bare(n)] for n in names if bare(n) in by_bare]
        if role == "split":  # a column `dataset` or `set` may say something else
            there = [c for c in there if bare(c) == "split" or _says_splits(sheet, c)]
        if not there:
            continue
        if len(there) > 1 and bare(there[0]) != bare(names[0]) and _differ(sheet, there):
            raise InputError(
                f"{sheet.path}: the columns {' and '.join(map(repr, there))} could both be `{names[0]}`, and they "
                f"differ; call the one that counts {names[0]}"
            )
        found[role] = there[0]
        if bare(there[0]) != bare(COLUMNS.get(role, names)[0]):
            notes.append(f"{there[0]} as {role}")
    for column in sheet.columns:
        if number := re.fullmatch(r"fold_?(\d+)", column.strip().casefold()):
            found[f"fold_{int(number[1])}"] = column
    used = set(found.values())
    return found, notes, tuple(c for c in sheet.columns if c not in used)


def _says_splits(sheet: Spreadsheet, column: str) -> bool:
    words = {r.cells[column].casefold() for r in sheet.rows} - MISSING
    return bool(words) and words <= SPLIT_WORDS.keys()


def _differ(sheet: Spreadsheet, columns: Sequence[str]) -> bool:
    return any(len({r.cells[c] for c in columns}) > 1 for r in sheet.rows)


def check_columns(
    sheet: Spreadsheet,
    columns: dict[str, str],
    need_labels: bool,
    need_slides: bool,
    label: str | None,
    task: Task = Task(),
) -> None:
    """The columns that are needed are there.

    Raises:
        InputError: one is not; the message says what is there.
    """
    found = f"found: {', '.join(sheet.columns)[:200]}"
    if "slide" not in columns and (need_slides or "slide_id" not in columns):
        ids = " (ids alone do where only features are read)" if "slide_id" in columns else ""
        raise InputError(
            f"{sheet.path}: no column `slide` with the paths of the slides{ids}; a manifest starts with the line "
            f"`slide,label` ({found})"
        )
    if task.kind == "survival":
        for role, name in (("time", task.time), ("event", task.event)):
            if role not in columns and need_labels:
                raise InputError(f"{sheet.path}: no column `{name}` ({found}); name it with --{role}")
    elif "label" not in columns and (need_labels or label is not None):
        raise InputError(
            f"{sheet.path}: no column `{label or 'label'}` ({found}); name the column of the labels with --label"
        )


def number_cell(
    text: str, column: str, number: int, path: Path, advice: str = "write a plain number, or leave it empty"
) -> float | None:
    """A number that a row gives; None for an empty cell. ``advice``: what to do where it is none.

    Raises:
        InputError: no number, or not a finite one.
    """
    try:
        return parse_number(text) if text else None
    except ValueError as e:
        raise InputError(f"{path}: row {number}, {column} {text!r} is not a number; {advice}") from e


def mpp_cell(text: str, number: int, path: Path) -> Mpp | None:
    """Micrometres per pixel that a row gives; None for an empty cell.

    Raises:
        InputError: not a number.
    """
    try:
        return Mpp(parse_number(text)) if text else None
    except ValueError as e:
        raise InputError(f"{path}: row {number}, mpp {text!r} is not a number; write um per pixel, such as 0.25") from e


def path_cell(text: str, column: str, suffixes: tuple[str, ...], number: int, path: Path) -> Path | None:
    """A file that a row names, relative to the table; None for an empty cell.

    Raises:
        InputError: it ends in none of ``suffixes``.
    """
    if text and not text.lower().endswith(suffixes):
        endings = ", ".join(suffixes)
        raise InputError(
            f"{path}: row {number}, {column} {text!r} is no file that ends in {endings}; name one, or leave it empty"
        )
    return (path.parent / text).absolute() if text else None


def share_cell(text: str, number: int, path: Path) -> float | None:
    """A share that a row gives; None for an empty cell.

    Raises:
        InputError: not a number from 0 to 1.
    """
    try:
        share = parse_number(text) if text else None
    except ValueError:
        share = -1.0
    if share is not None and not 0 <= share <= 1:
        raise InputError(
            f"{path}: row {number}, min_tissue {text!r} is not a number from 0 to 1; write a share, such as 0.1"
        )
    return share
