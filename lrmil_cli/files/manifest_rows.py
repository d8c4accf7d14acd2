"""A row of the table of slides, and what it says of a slide (files/README 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lrmil_cli.errors import InputError
from lrmil_cli.files.manifest_columns import SPLIT_WORDS, is_missing, mpp_cell, number_cell, path_cell, share_cell
from lrmil_cli.files.names import fits_file_name
from lrmil_cli.files.spreadsheet import Row
from lrmil_cli.slide_names import MASK_SUFFIXES, slide_id_of
from lrmil_cli.targets.task import Task
from lrmil_cli.units import Mpp

SPLITS = ("train", "val", "test")

#: ``TCGA-XX-XXXX-...``: the first three fields are the patient, the second of them is the site.
TCGA = re.compile(r"(TCGA-([A-Za-z0-9]{2})-[A-Za-z0-9]{4})(?![A-Za-z0-9])", re.IGNORECASE)


#: How files end that the column ``roi`` names.
REGIONS = (".geojson", ".json", ".gz", ".zip")


@dataclass(frozen=True)
class Entry:
    """One slide of a manifest.

    Attributes:
        path: of the slide; of no meaning where the manifest gives only ids (:attr:`Manifest.has_paths`).
        mask: picture of the tissue; roi: GeoJSON of the regions to use; min_tissue: share of a tile. None where the
            command's own count.
        site, organ, stain: where it comes from, of what, how stained; None where nobody says it.
        cells: the whole row, by the names of its columns.
        row: as a spreadsheet counts; the header is row 1.
        value: of regression, in its own unit; time, event: of survival, 1 where it happened, 0 where censored.
    """

    slide_id: str
    path: Path
    label: str | None = None
    patient_id: str = ""
    mpp: Mpp | None = None
    split: str | None = None
    folds: dict[str, str] = field(default_factory=dict)
    mask: Path | None = None
    roi: Path | None = None
    min_tissue: float | None = None
    site: str | None = None
    organ: str | None = None
    stain: str | None = None
    cells: Mapping[str, str] = field(default_factory=dict, compare=False)
    row: int = 0
    value: float | None = None
    time: float | None = None
    event: int | None = None


@dataclass(frozen=True)
class Labels:
    """How labels are taken from a table.

    Attributes:
        column: named by the user (``--label``), None for ``label``; renamed: old -> new names of classes
        (``--class-map``).
        kept: classes that look like a missing value and are none (``--class``); drop_missing: leave out slides without
            label.
        task: what they are; asked: whether the user said so, and numbers are classes if that is meant.
    """

    column: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    kept: Sequence[str] = ()
    drop_missing: bool = False
    task: Task = Task()
    asked: bool = False


def tcga_site(slide_id: str) -> str | None:
    """The tissue source site in an id of TCGA, ``TCGA-XX-...``; None for other ids."""
    found = TCGA.match(slide_id)
    return found[2].upper() if found else None


def tcga_patient(slide_id: str) -> str | None:
    """The patient in an id of TCGA, ``TCGA-XX-XXXX``; None for other ids."""
    found = TCGA.match(slide_id)
    return found[1].upper() if found else None


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would run a cell: ``=`` or ``@`` at the start, or a sign before anything but a number or a
    name.
    """
    return text[:1] in ("=", "@") or (text[:1] in ("+", "-") and any(c in text for c in "(|!="))


def plain_cell(text: str) -> str:
    """A cell for people, whose spreadsheet must not run a file name as a formula."""
    return f"'{text}" if is_formula(text) else text


def read_row(row: Row, path: Path, columns: dict[str, str], labels: Labels, kept: set[str]) -> tuple[Entry, str]:
    """The slide of a row, and where its patient comes from: ``column``, ``tcga`` or ``slides``.

    Args:
        columns: role -> its name in the table; kept: classes that look like a missing value, without case.

    Raises:
        InputError: the row cannot be understood.
    """

    def cell(role: str) -> str:
        text = row.cells.get(columns.get(role, ""), "")
        return "" if is_missing(text) else text

    slide, slide_id = cell("slide"), cell("slide_id")
    if not slide and "slide" in columns:
        raise InputError(f"{path}: row {row.number} has no slide; fill it, or take the row out")
    if not slide and not slide_id:
        raise InputError(f"{path}: row {row.number} has no slide_id; fill it, or take the row out")
    if slide_id and not fits_file_name(slide_id):
        raise InputError(
            f"{path}: row {row.number}, slide_id {slide_id!r} cannot be part of a file name; call it otherwise"
        )
    slide_id = slide_id_of(slide_id or slide)  # a column of ids often holds file names
    label, value, time, event = _target(row, path, columns, labels, kept)
    patient, source = cell("patient_id"), "column"
    if not patient:
        tcga = tcga_patient(slide_id)
        patient, source = (tcga, "tcga") if tcga else (slide_id, "slides")
    site = cell("site") or (None if "site" in columns else tcga_site(slide_id))
    own = {"slide_id": slide_id, "label": label or "", "patient_id": patient, "site": site or ""}
    for column, said in (own | {name: cell(name) for name in ("organ", "stain")}).items():
        if is_formula(said):
            raise InputError(
                f"{path}: row {row.number}, {column} {said[:40]!r}: spreadsheets would run this as a formula, and it "
                "would stand in every table made from here; call it otherwise"
            )
        if not said.isprintable():
            raise InputError(
                f"{path}: row {row.number}, {column} {said[:40]!r} holds characters that cannot be seen; call it "
                "otherwise"
            )
    split = cell("split").casefold() or None
    if split is not None and split not in SPLIT_WORDS:
        raise InputError(
            f"{path}: row {row.number}, split {split!r} is none of {', '.join(SPLITS)}; write one of these"
        )
    folds = {role: cell(role) for role in columns if re.fullmatch(r"fold(_\d+)?", role) and cell(role)}
    return Entry(
        slide_id,
        (path.parent / (slide or slide_id)).absolute(),
        label,
        patient,
        mpp_cell(cell("mpp"), row.number, path),
        None if split is None else SPLIT_WORDS[split],
        folds,
        path_cell(cell("mask"), "mask", MASK_SUFFIXES, row.number, path),
        path_cell(cell("roi"), "roi", REGIONS, row.number, path),
        share_cell(cell("min_tissue"), row.number, path),
        site,
        cell("organ") or None,
        cell("stain") or None,
        row.cells,
        row.number,
        value,
        time,
        event,
    ), source


def _target(
    row: Row, path: Path, columns: Mapping[str, str], labels: Labels, kept: set[str]
) -> tuple[str | None, float | None, float | None, int | None]:
    """Label as text, number, time and event of a row; None where it says nothing, or the task has none.

    Raises:
        InputError: no number, a negative time, or an event that is neither 0 nor 1.
    """

    def cell(role: str) -> str:
        text = row.cells.get(columns.get(role, ""), "")
        return "" if is_missing(text) else text

    if labels.task.kind == "regression":
        value = number_cell(cell("label"), labels.task.label, row.number, path)
        return None if value is None else f"{value:.9g}", value, None, None
    if labels.task.kind == "survival":
        time = number_cell(cell("time"), labels.task.time, row.number, path)
        advice = "write 1 (it happened) or 0 (censored)"
        happened = number_cell(cell("event"), labels.task.event, row.number, path, advice)
        if time is not None and time < 0:
            raise InputError(
                f"{path}: row {row.number}, {labels.task.time} {time:g} is negative; times count from the start of "
                "watching"
            )
        if happened not in (None, 0.0, 1.0):
            raise InputError(
                f"{path}: row {row.number}, {labels.task.event} {happened:g} is neither 1 (it happened) nor 0 "
                "(censored); write one of these"
            )
        if time is None or happened is None:
            return None, None, None, None
        return f"{time:.9g}{'' if happened else '+'}", None, time, int(happened)
    text = row.cells.get(columns.get("label", ""), "")
    text = labels.renamed.get(text, text)
    return None if is_missing(text) and text.casefold() not in kept else text, None, None, None
