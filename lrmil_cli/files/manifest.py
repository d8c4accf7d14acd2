"""The user's ``slides.csv``: which slides, their labels, patients, splits. Its columns: files/README 3."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lrmil_cli.errors import InputError
from lrmil_cli.files.names import as_file, fits_file_name
from lrmil_cli.units import Mpp

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Entry:
    """One slide of a manifest. ``mpp`` is that of level 0, where the manifest knows better than the slide."""

    slide_id: str
    path: Path
    label: str | None = None
    patient_id: str = ""
    mpp: Mpp | None = None
    split: str | None = None
    folds: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A checked ``slides.csv``. ``classes`` are the labels in sorted order: the class order of every model."""

    path: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read_manifest(path: str | Path, *, need_labels: bool = False) -> Manifest:
    """Read a manifest: columns ``slide, label`` and optionally ``slide_id, patient_id, split | fold | fold_1.., mpp``.

    Slide paths are relative to the CSV. ``slide_id`` defaults to the file's stem, ``patient_id`` to ``slide_id``.

    Raises:
        InputError: no such file, not UTF-8, a missing column or label, a duplicate slide_id, a bad mpp or split,
            a patient in two splits; with ``need_labels`` also a class with a single slide or only one class.
    """
    path = Path(path)
    entries = tuple(_entry(row, number, path, need_labels) for number, row in _read_rows(path))
    if not entries:
        raise InputError(f"{path}: no slides in it; write one row a slide under the header `slide,label`")
    _check_ids(entries, path)
    _check_patients(entries, path)
    counts = Counter(e.label for e in entries if e.label is not None)
    if need_labels:
        _check_classes(counts, path)
    return Manifest(path, entries, tuple(sorted(counts)))


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would run a cell: ``=`` or ``@`` at the start, or a sign before anything but a number or a
    name."""
    return text[:1] in ("=", "@") or (text[:1] in ("+", "-") and any(c in text for c in "(|!="))


# ---- the text ----------------------------------------------------------------------
def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as e:
        raise InputError(f"{path}: no such file") from e
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror})") from e
    try:
        text = data.decode("utf-8-sig")  # Excel writes a byte order mark
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line} is not UTF-8 text; save the table as 'CSV UTF-8'") from e
    if text.startswith("# lrmil"):
        raise InputError(f"{path}: this is a table made by lrmil, not a manifest with the columns slide,label")
    return text


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells of each row that is not empty."""
    text = _read_text(path)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        names = [n.strip() for n in reader.fieldnames or []]
        if "slide" not in names:
            found = ", ".join(names)[:80]
            raise InputError(
                f"{path}: no column 'slide'; a manifest starts with the line `slide,label` (found: {found})"
            )
        reader.fieldnames = names
        return [
            (i, {k: (v or "").strip() for k, v in row.items() if k})
            for i, row in enumerate(reader, 2)
            if any(isinstance(v, str) and v.strip() for v in row.values())
        ]
    except csv.Error as e:
        raise InputError(f"{path}: not a CSV table ({e})") from e


# ---- one row -----------------------------------------------------------------------
def _entry(row: dict[str, str], number: int, path: Path, need_labels: bool) -> Entry:
    where = f"{path}: row {number}"
    slide = row.get("slide", "")
    if not slide:
        raise InputError(f"{where} has no slide")
    file = (path.parent / slide).absolute() if not Path(slide).is_absolute() else Path(slide)
    slide_id = row.get("slide_id") or file.stem
    if not fits_file_name(slide_id):
        raise InputError(f"{where}, slide_id {slide_id!r} cannot be part of a file name")
    shown = {"slide_id": slide_id, "label": row.get("label", ""), "patient_id": row.get("patient_id", "")}
    for column, text in shown.items():
        _check_text(text, f"{where}, {column} {text[:40]!r}")
    label = row.get("label") or None
    if need_labels and label is None:
        raise InputError(f"{where} ({slide_id}) has no label; training needs one for each slide")
    split = row.get("split", "").lower() or None
    if split is not None and split not in SPLITS:
        raise InputError(f"{where}, split {split!r} is none of {', '.join(SPLITS)}")
    folds = {k: v for k, v in row.items() if (k == "fold" or k.startswith("fold_")) and v}
    mpp = _mpp(row.get("mpp", ""), where)
    return Entry(slide_id, file, label, row.get("patient_id") or slide_id, mpp, split, folds)


def _check_text(text: str, where: str) -> None:
    """A cell that goes into every table made from here."""
    if is_formula(text):
        raise InputError(
            f"{where}: spreadsheets would run this as a formula, and it would stand in every table made from here; "
            "call it otherwise"
        )
    if not text.isprintable():
        raise InputError(f"{where} holds characters that cannot be seen; call it otherwise")


def _mpp(text: str, where: str) -> Mpp | None:
    """um/px as people write it; whether it makes sense is asked when the slide is opened."""
    if not text:
        return None
    try:
        return Mpp(float(text.replace(",", ".")))
    except ValueError as e:
        raise InputError(f"{where}, mpp {text!r} is not a number") from e


# ---- the rows together -------------------------------------------------------------
def _check_ids(entries: tuple[Entry, ...], path: Path) -> None:
    """Results are named after the slide id, so that no two may be one file."""
    counts = Counter(as_file(e.slide_id) for e in entries)
    for e in entries:
        count = counts[as_file(e.slide_id)]
        if count > 1:
            raise InputError(
                f"{path}: slide_id {e.slide_id!r} stands in {count} rows; make them unique (column slide_id)"
            )


def _check_patients(entries: tuple[Entry, ...], path: Path) -> None:
    """A patient's slides must stay together in every split the manifest defines."""
    columns = sorted({k for e in entries for k in e.folds})
    for column in ["split", *columns]:
        seen: dict[str, str | None] = {}
        for e in entries:
            value = e.split if column == "split" else e.folds.get(column)
            if e.patient_id in seen and seen[e.patient_id] != value:
                raise InputError(
                    f"{path}: patient {e.patient_id!r} is in two parts of column {column!r} "
                    f"({seen[e.patient_id]} and {value}); all slides of a patient belong to one part"
                )
            seen[e.patient_id] = value


def _check_classes(counts: Counter[str], path: Path) -> None:
    """Labels that a classifier can be trained on."""
    single = sorted(c for c, n in counts.items() if n == 1)
    if single:
        raise InputError(
            f"{path}: label {single[0]!r} stands in one slide only; a class needs several slides to be learnt"
        )
    if len(counts) < 2:
        raise InputError(
            f"{path}: only one label ({next(iter(counts), '')!r}); a classifier needs two classes at least"
        )
