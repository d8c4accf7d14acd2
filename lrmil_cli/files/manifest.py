"""The user's table of slides: which slides, their labels, patients, splits. One reader for every command; its columns
stand in files/README 3.

A manifest is understood aloud: columns are found by name whatever their case, and by the names that other tools give
them; what was understood and what was ignored is said (:meth:`Manifest.understood`); what could mean two things is
refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from lrmil_cli.errors import InputError
from lrmil_cli.files.manifest_checks import clashing_ids, count, spelled_twice, too_few, torn_patients
from lrmil_cli.files.manifest_columns import (
    SPLIT_WORDS,
    check_columns,
    find_columns,
    is_missing,
    mpp_cell,
    path_cell,
    share_cell,
)
from lrmil_cli.files.names import fits_file_name
from lrmil_cli.files.spreadsheet import Row, read_spreadsheet
from lrmil_cli.slide_names import MASK_SUFFIXES, slide_id_of
from lrmil_cli.units import Mpp

SPLITS = ("train", "val", "test")

#: ``TCGA-XX-XXXX-...``: the first three fields are the patient, the second of them is the site.
TCGA = re.compile(r"(TCGA-([A-Za-z0-9]{2})-[A-Za-z0-9]{4})(?![A-Za-z0-9])", re.IGNORECASE)


#: How files end that the column ``roi`` names.
REGIONS = (".geojson", ".json", ".gz", ".zip")

#: What is said wherever nobody named the patients: folds and intervals take each slide for one.
UNKNOWN_PATIENTS = (
    "patients unknown: slides are taken for patients, so other slides of the same patients may have been in training "
    "(add a column patient_id)"
)


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


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.

    Attributes:
        classes: the labels in sorted order: the class order of every model.
        patients_from: where patients come from: ``column``, ``tcga`` (ids of TCGA) or ``slides`` (unknown: each slide
        its own).
        unknown_patients: slides whose patient nobody names; label_column: the column the labels were taken from.
        notes: how the file was read, and columns that were found by another name; ignored: columns that were not used.
        dropped: slides left out for want of a label, on request; has_paths: whether it names slide files.
        columns: what each column is for: role -> its name in the table.
        by_site: how folds that are drawn from it treat sites: ``preserve``, ``leave-one-out``, or None: not at all.
        sites_from: where sites come from: ``column``, ``tcga``, or None where no slide has one.
        unlabelled: row and cell of slides without label; form: separator and encoding, or the workbook's sheet.
    """

    path: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    patients_from: str = "column"
    unknown_patients: int = 0
    label_column: str = "label"
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    dropped: int = 0
    has_paths: bool = True
    columns: Mapping[str, str] = field(default_factory=dict)
    unlabelled: tuple[tuple[int, str], ...] = ()
    form: str = ""
    sites_from: str | None = None
    by_site: str | None = None

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def without(self, left_out: Collection[str]) -> Manifest:
        """The manifest without the slides of these ids.

        Raises:
            InputError: fewer than two classes are left.
        """
        entries = tuple(e for e in self.entries if e.slide_id not in left_out)
        classes = tuple(c for c in self.classes if any(e.label == c for e in entries))
        if len(classes) < min(2, len(self.classes)):
            lost = count(len(left_out), "slide")
            raise InputError(
                f"{self.path}: without {lost} that cannot be used no two classes are left; correct the labels"
            )
        return replace(self, entries=entries, classes=classes)

    def understood(self) -> str:
        """One line: slides, patients, classes, folds, what was taken for what, what was ignored."""
        counts = Counter(e.label for e in self.entries if e.label is not None)
        parts = [count(len(self.entries), "slide"), self._patients()]
        if counts:
            parts.append(", ".join(f"{c} {counts[c]}" for c in self.classes))
        if unlabelled := sum(e.label is None for e in self.entries) if counts else 0:
            parts.append(f"{unlabelled} without label")
        if self.dropped:
            parts.append(f"{self.dropped} left out without label")
        parts += [self._sites(), self._split(), self._own_settings()]
        text = ", ".join(p for p in parts if p)
        for what, names in (("read as", self.notes), ("ignored", self.ignored)):
            text += f"; {what}: {', '.join(names)}" if names else ""
        return text

    def patients_warning(self) -> str:
        """What a report must say where patients are not known."""
        if self.patients_from == "slides":
            return UNKNOWN_PATIENTS
        return f"the patients of {count(self.unknown_patients, 'slide')} are unknown; each is taken for one of its own"

    def _patients(self) -> str:
        known = {e.patient_id for e in self.entries}
        if self.patients_from == "slides":
            return "patients unknown (each slide is taken for one)"
        text = count(len(known), "patient") + (" by their TCGA ids" if self.patients_from == "tcga" else "")
        return text + (
            f", {count(self.unknown_patients, 'slide')} of unknown patients" if self.unknown_patients else ""
        )

    def _sites(self) -> str:
        known = {e.site for e in self.entries if e.site is not None}
        if not known:
            return ""
        lost = sum(e.site is None for e in self.entries)
        text = count(len(known), "site") + (" by their TCGA ids" if self.sites_from == "tcga" else "")
        return text + (f", {count(lost, 'slide')} of unknown sites" if lost else "")

    def _own_settings(self) -> str:
        counts = {s: sum(getattr(e, s) is not None for e in self.entries) for s in ("mask", "roi", "min_tissue")}
        return ", ".join(f"{name} of {count(n, 'slide')}" for name, n in counts.items() if n)

    def _split(self) -> str:
        if any(e.split for e in self.entries):
            counts = Counter(e.split for e in self.entries)
            return "split " + ", ".join(f"{s} {counts[s]}" for s in SPLITS if counts[s])
        columns = {k for e in self.entries for k in e.folds}
        numbered = len(columns - {"fold"})
        if numbered:
            return count(numbered, "fold") + " as given"
        return (
            f"{count(len({e.folds['fold'] for e in self.entries if 'fold' in e.folds}), 'fold')} as given"
            if columns
            else ""
        )


@dataclass(frozen=True)
class Labels:
    """How labels are taken from a table.

    Attributes:
        column: named by the user (``--label``), None for ``label``; renamed: old -> new names of classes
        (``--class-map``).
        kept: classes that look like a missing value and are none (``--class``); drop_missing: leave out slides without
            label.
    """

    column: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    kept: Sequence[str] = ()
    drop_missing: bool = False


class Problem(NamedTuple):
    """Something that a manifest is refused for: what it is ``about`` (``rows``, ``ids``, ``patients``, ``labels`` or
    ``classes``), whether by ``training`` commands alone, and the sentence, what to do after its last semicolon."""

    about: str
    training: bool
    text: str


def read_manifest(
    path: str | Path, *, need_labels: bool = False, need_slides: bool = True, labels: Labels = Labels()
) -> Manifest:
    """Read a manifest.

    Columns (any case; ``COLUMNS`` has the names of other tools): ``slide`` (path, relative to the table), ``label``;
    optional ``slide_id`` (default: the file's name without the suffix of a slide format), ``patient_id``, ``split`` or
    ``fold`` or ``fold_1``..., ``mpp``, ``mask`` and ``roi`` (paths, relative to the table), ``min_tissue``. A patient
    that nobody names is taken from TCGA ids; else each slide is its own patient, and the manifest says so.

    Args:
        need_labels: for training: every slide has a label, and there are two classes of several slides at least.
        need_slides: slide files will be read, so a column of ids alone is not enough.

    Raises:
        InputError: no table that can be read without guessing, a missing column or label, labels that differ by their
            spelling alone, a duplicate slide_id, a bad mpp or split, a patient in two splits, ...
    """
    manifest, problems = survey_manifest(path, need_labels=need_labels, need_slides=need_slides, labels=labels)
    for problem in problems:
        if need_labels or not problem.training:
            raise InputError(f"{manifest.path}: {problem.text}")
    return manifest


def survey_manifest(
    path: str | Path, *, need_labels: bool = False, need_slides: bool = True, labels: Labels = Labels()
) -> tuple[Manifest, list[Problem]]:
    """As :func:`read_manifest`, with all that the manifest would be refused for in place of an error for the first.

    Rows that cannot be understood are left out of the manifest, and are among the problems.

    Raises:
        InputError: no table that can be read without guessing, without slides, or without a column that is needed.
    """
    sheet = read_spreadsheet(path)
    columns, notes, ignored = find_columns(sheet, labels.column)
    check_columns(sheet, columns, need_labels, need_slides, labels.column)
    kept = {c.casefold() for c in labels.kept}
    entries, missing = [], []
    problems: list[Problem] = []
    sources: Counter[str] = Counter()
    for row in sheet.rows:
        try:
            entry, source = _entry(row, sheet.path, columns, labels.renamed, kept)
        except InputError as e:
            problems.append(Problem("rows", False, str(e).removeprefix(f"{sheet.path}: ")))
            continue
        if entry.label is None:
            missing.append((row.number, row.cells.get(columns.get("label", ""), "")))
            if labels.drop_missing:
                continue
        sources[source] += 1
        entries.append(entry)
    if not entries and not problems:
        raise InputError(f"{sheet.path}: no slides in it; write one row a slide under the header `slide,label`")
    known = [e.label for e in entries if e.label is not None]
    manifest = Manifest(
        sheet.path,
        tuple(entries),
        tuple(sorted(set(known))),
        "column" if sources["column"] else "tcga" if sources["tcga"] else "slides",
        sources["slides"],
        columns.get("label", "label"),
        (*sheet.notes, *notes),
        ignored,
        len(missing) if labels.drop_missing else 0,
        "slide" in columns,
        columns,
        tuple(missing),
        sheet.form,
        "column" if "site" in columns else "tcga" if any(e.site for e in entries) else None,
    )
    if "label" in columns and missing and not labels.drop_missing:
        problems.append(Problem("labels", True, _unlabelled(missing)))
    problems += [Problem("ids", False, text) for text in clashing_ids([e.slide_id for e in entries])]
    patients = [e.patient_id for e in entries]
    parts = {"split": [e.split for e in entries]}
    parts |= {c: [e.folds.get(c) for e in entries] for c in sorted({k for e in entries for k in e.folds})}
    for column, own in parts.items():
        problems += [Problem("patients", False, text) for text in torn_patients(patients, column, own)]
    if "label" in columns:
        problems += [Problem("labels", True, text) for text in spelled_twice(known)]
        problems += [Problem("classes", True, text) for text in too_few(known)]
    return manifest, problems


def _unlabelled(missing: Sequence[tuple[int, str]]) -> str:
    rows = ", ".join(f"{n} ({text or 'empty'})" for n, text in missing[:5]) + (", ..." if len(missing) > 5 else "")
    return (
        f"{count(len(missing), 'slide')} without label, row {rows}; fill them, add --drop-missing to leave them out, "
        "or --class NAME if a class is really called so"
    )


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


def _entry(
    row: Row, path: Path, columns: dict[str, str], renamed: Mapping[str, str], kept: set[str]
) -> tuple[Entry, str]:
    """The slide of a row, and where its patient comes from."""

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
    text = row.cells.get(columns.get("label", ""), "")
    text = renamed.get(text, text)
    label = None if is_missing(text) and text.casefold() not in kept else text
    patient, source = cell("patient_id"), "column"
    if not patient:
        tcga = tcga_patient(slide_id)
        patient, source = (tcga, "tcga") if tcga else (slide_id, "slides")
    site = cell("site") or (None if "site" in columns else tcga_site(slide_id))
    own = {"slide_id": slide_id, "label": label or "", "patient_id": patient, "site": site or ""}
    for column, value in (own | {name: cell(name) for name in ("organ", "stain")}).items():
        if is_formula(value):
            raise InputError(
                f"{path}: row {row.number}, {column} {value[:40]!r}: spreadsheets would run this as a formula, and it "
                "would stand in every table made from here; call it otherwise"
            )
        if not value.isprintable():
            raise InputError(
                f"{path}: row {row.number}, {column} {value[:40]!r} holds characters that cannot be seen; call it "
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
    ), source
