"""The user's table of slides: which slides, their labels, patients, splits. One reader for every command; its columns
stand in files/README 3.

A manifest is understood aloud: columns are found by name whatever their case, and by the names that other tools give
them; what was understood and what was ignored is said (:meth:`Manifest.understood`); what could mean two things is
refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from lrmil_cli.errors import InputError
from lrmil_cli.files import manifest_checks as checks
from lrmil_cli.files.manifest_checks import count
from lrmil_cli.files.manifest_columns import check_columns, find_columns
from lrmil_cli.files.manifest_rows import SPLITS, Entry, Labels, read_row
from lrmil_cli.files.spreadsheet import read_spreadsheet
from lrmil_cli.targets.task import Task

#: What is said wherever nobody named the patients: folds and intervals take each slide for one.
UNKNOWN_PATIENTS = (
    "patients unknown: slides are taken for patients, so other slides of the same patients may have been in training "
    "(add a column patient_id)"
)


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.

    Attributes:
        classes: the labels in sorted order: the class order of every model; none where labels are no classes.
        patients_from: where patients come from: ``column``, ``tcga`` (ids of TCGA) or ``slides`` (unknown: each slide
        its own).
        unknown_patients: slides whose patient nobody names; label_column: the column the labels were taken from.
        notes: how the file was read, and columns that were found by another name; ignored: columns that were not used.
        dropped: slides left out for want of a label, on request; has_paths: whether it names slide files.
        columns: what each column is for: role -> its name in the table.
        task: what is learned; its label is the text of a slide's number, or of its time, with ``+`` where censored.
        by_site: how folds that are drawn from it treat sites: ``preserve``, ``leave-one-out``, or None: not at all.
        sites_from: where sites come from: ``column``, ``tcga``, or None where no slide has one.
        unlabelled: row and cell of slides without label; form: separator and encoding, or the workbook's sheet.
        of: of a manifest whose entries are patients (:mod:`lrmil_cli.files.patients`), the one of their slides.
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
    task: Task = Task()
    of: Manifest | None = None

    @property
    def slides(self) -> Manifest:
        """The manifest of slides: itself, unless its entries are patients."""
        return self.of or self

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
            parts.append(self.targets_text() or ", ".join(f"{c} {counts[c]}" for c in self.classes))
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

    def targets_text(self) -> str:
        """What the slides have of a task without classes; empty of classes, or where no slide has any."""
        if own := sorted(e.value for e in self.entries if e.value is not None):
            return f"{self.task.label} from {own[0]:g} to {own[-1]:g}"
        if times := [e.time for e in self.entries if e.time is not None]:
            return f"{count(self.events, 'event')}, times from {min(times):g} to {max(times):g}"
        return ""

    @property
    def events(self) -> int:
        """Slides whose event was seen."""
        return sum(e.event == 1 for e in self.entries)

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
    columns, notes, ignored = find_columns(sheet, labels.column, labels.task)
    check_columns(sheet, columns, need_labels, need_slides, labels.column, labels.task)
    kept = {c.casefold() for c in labels.kept}
    target = "time" if labels.task.kind == "survival" else "label"
    entries, missing = [], []
    problems: list[Problem] = []
    sources: Counter[str] = Counter()
    for row in sheet.rows:
        try:
            entry, source = read_row(row, sheet.path, columns, labels, kept)
        except InputError as e:
            problems.append(Problem("rows", False, str(e).removeprefix(f"{sheet.path}: ")))
            continue
        if entry.label is None:
            missing.append((row.number, row.cells.get(columns.get(target, ""), "")))
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
        tuple(sorted(set(known))) if labels.task.classes else (),
        "column" if sources["column"] else "tcga" if sources["tcga"] else "slides",
        sources["slides"],
        columns.get(target, target),
        (*sheet.notes, *notes),
        ignored,
        len(missing) if labels.drop_missing else 0,
        "slide" in columns,
        columns,
        tuple(missing),
        sheet.form,
        "column" if "site" in columns else "tcga" if any(e.site for e in entries) else None,
        task=labels.task,
    )
    if target in columns and missing and not labels.drop_missing:
        problems.append(Problem("labels", True, _unlabelled(missing, labels.task)))
    problems += [Problem("ids", False, text) for text in checks.clashing_ids([e.slide_id for e in entries])]
    patients = [e.patient_id for e in entries]
    parts = {"split": [e.split for e in entries]}
    parts |= {c: [e.folds.get(c) for e in entries] for c in sorted({k for e in entries for k in e.folds})}
    for column, own in parts.items():
        problems += [Problem("patients", False, text) for text in checks.torn_patients(patients, column, own)]
    if target in columns:
        problems += [Problem(about, True, text) for about, text in _targets_wrong(labels, entries, known)]
    return manifest, problems


def _targets_wrong(labels: Labels, entries: Sequence[Entry], known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What training refuses of the labels as a whole: what it is about, and the sentence."""
    task = labels.task
    if task.kind == "survival":
        told = [(e.slide_id, e.patient_id, e.time, e.event) for e in entries if e.time is not None]
        yield from (("labels", text) for text in checks.followed_twice([(p, t, d) for _, p, t, d in told]))
        yield from (("labels", text) for text in checks.no_event([d for *_, d in told]))
    elif task.kind == "regression":
        yield from (("labels", text) for text in checks.one_number([e.value for e in entries if e.value is not None]))
    else:
        if not labels.asked and (text := checks.continuous(known, labels.column or "label")):
            yield "labels", text
            return  # all else that is wrong with them follows from it
        yield from (("labels", text) for text in checks.spelled_twice(known))
        yield from (("classes", text) for text in checks.too_few(known))


def _unlabelled(missing: Sequence[tuple[int, str]], task: Task) -> str:
    rows = ", ".join(f"{n} ({text or 'empty'})" for n, text in missing[:5]) + (", ..." if len(missing) > 5 else "")
    what = "time or event" if task.kind == "survival" else "label"
    named = ", or --class NAME if a class is really called so" if task.classes else ""
    leave = "add --drop-missing to leave them out"
    how = f"fill them, {leave}{named}" if named else f"fill them, or {leave}"
    return f"{count(len(missing), 'slide')} without {what}, row {rows}; {how}"
