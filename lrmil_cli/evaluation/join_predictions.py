"""Predictions of several models on one footing: labels and patients of the manifest, leaks, the slides all predicted.

evaluation/README 8.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.predictions import SITE, Predictions
from lrmil_cli.evaluation.target_predictions import TRUTH
from lrmil_cli.evaluation.wording import count_text
from lrmil_cli.files.manifest import UNKNOWN_PATIENTS, Manifest
from lrmil_cli.files.manifest_columns import bare, is_missing
from lrmil_cli.files.manifest_rows import Entry
from lrmil_cli.files.patients import patients_of
from lrmil_cli.targets.task import PATIENT, Task

#: Of more different numbers, a column is no grouping.
MOST_GROUPS = 15


def join(models: Sequence[Predictions], manifest: Manifest | None, by: Sequence[str] = ()) -> list[Predictions]:
    """The predictions with the manifest's labels, patients and sites, classes in one order, slides without label left
    out.

    Patients are the manifest's where it has any, else those of the table. Without a manifest, tables keep their own
    labels.

    Args:
        by: further columns of the manifest that cases are to be grouped by; ``site`` is that of the table otherwise.

    Raises:
        UsageError: two models of one name, or a manifest is needed and missing.
        InputError: tasks, bags or classes that do not agree, a label that differs or that no model knows, no slide in
            common.
    """
    names = [m.name for m in models]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UsageError(
            f"two models are called {twice!r}; name them, as in a={models[0].source} b={models[-1].source}"
        )
    task_of_all(models)
    models, manifest = _of_patients(models, manifest)
    classes = tuple(sorted(models[0].classes))
    for m in models:
        if set(m.classes) != set(classes):
            raise InputError(
                f"{m.source}: knows the classes {', '.join(sorted(m.classes))}, but {models[0].source} knows "
                f"{', '.join(classes)}; compare models of the same classes"
            )
    out = [_grouped(_labelled(_reordered(m, classes), manifest), manifest, by) for m in models]
    known: dict[str, tuple[object, ...]] = {}
    for m in out:
        for slide, *truth in m.rows[["slide_id", "patient_id", *TRUTH[m.task.kind]]].itertuples(index=False):
            if known.setdefault(slide, tuple(truth)) != tuple(truth):
                raise InputError(
                    f"{m.source}: slide {slide!r} has another label or patient than in the other predictions; "
                    "give the true ones with --slides"
                )
    return [_with_leaks(m, manifest) for m in out]


def _of_patients(models: Sequence[Predictions], manifest: Manifest | None) -> tuple[list[Predictions], Manifest | None]:
    """The models, and the manifest, where answers are for patients: what was seen of a patient is told of the patient.

    Raises:
        InputError: some answer for slides and some for patients, or slides of a patient have different labels.
    """
    first = models[0]
    for m in models:
        if m.bag != first.bag:
            raise InputError(
                f"{m.source}: answers for {m.bag}s, but {first.source} for {first.bag}s; compare models of one kind"
            )
    if first.bag != PATIENT or manifest is None:
        return list(models), manifest
    patient = {e.slide_id: e.patient_id for e in manifest.slides}

    def by_patient(slides: frozenset[str]) -> frozenset[str]:
        return frozenset(patient.get(s, s) for s in slides)

    told = [replace(m, seen=by_patient(m.seen), pixels=by_patient(m.pixels)) for m in models]
    return told, manifest if manifest.of is not None else patients_of(manifest)


def task_of_all(models: Sequence[Predictions]) -> Task:
    """The task that all of them are of.

    Raises:
        InputError: they are of several.
    """
    first = models[0]
    for m in models:
        if m.task.kind != first.task.kind:
            raise InputError(
                f"{m.source}: predictions of {m.task.name}, but {first.source} of {first.task.name}; compare models of "
                "one task"
            )
    return first.task


def _reordered(m: Predictions, classes: tuple[str, ...]) -> Predictions:
    order = [m.classes.index(c) for c in classes]
    return replace(
        m,
        classes=classes,
        probabilities=m.probabilities[:, order],
        reading=m.reading.in_order(order) if m.reading else None,
        raw=None if m.raw is None else m.raw[:, order],
        sets=None if m.sets is None else m.sets[:, order],
        heads=None if m.heads is None else m.heads[:, :, order],
    )


def _labelled(m: Predictions, manifest: Manifest | None) -> Predictions:
    columns = list(TRUTH[m.task.kind])
    if manifest is None:
        if m.rows[columns].isna().any(axis=None):
            raise UsageError(f"{m.source}: the files of `lrmil predict` hold no labels; add --slides slides.csv")
        return _with_known_labels(m, m.source)
    entries = {e.slide_id: e for e in manifest if e.label is not None}
    there = m.rows["slide_id"].isin(entries).to_numpy()
    if not there.any():
        raise InputError(
            f"{m.source}: none of its {len(there)} slides has a label in {manifest.path} "
            f"(there: {next(iter(entries), 'none')}, here: {m.rows['slide_id'].iloc[0]}); is it the right manifest?"
        )
    missing = len(set(entries) - set(m.rows["slide_id"]))
    remarks = [*m.remarks]
    if not there.all():
        remarks.append(f"{count_text(int((~there).sum()), 'slide')} left out: no label in {manifest.path.name}")
    if missing:
        remarks.append(f"{count_text(missing, 'slide')} of {manifest.path.name} not predicted")
    m = replace(m.take(np.flatnonzero(there)), remarks=tuple(remarks))
    rows = m.rows.copy()
    listed = [entries[s] for s in rows["slide_id"]]
    truth = [_truth(m.task, e) for e in listed]
    for own, e, true in zip(rows[columns].itertuples(index=False), listed, truth):
        if not any(pd.isna(v) for v in own) and not _same(own, true):
            raise InputError(
                f"{m.source}: slide {e.slide_id!r} is {_said(own)} there, but {_said(true)} in {manifest.path}; "
                "correct one of them, or train again"
            )
    for n, column in enumerate(columns):
        rows[column] = [true[n] for true in truth]
    # A manifest that knows no patients says nothing: there every slide is its own.
    if rows["patient_id"].isna().any() or manifest.patients_from != "slides":
        rows["patient_id"] = [e.patient_id for e in listed]
    return _with_known_labels(replace(m, rows=rows), str(manifest.path))


def _truth(task: Task, e: Entry) -> tuple[object, ...]:
    """What the manifest says in the columns of ``TRUTH``."""
    if task.kind == "regression":
        return (e.value,)
    return (e.time, e.event) if task.kind == "survival" else (e.label,)


def _same(own: Sequence[Any], true: Sequence[Any]) -> bool:
    """Text is the same, numbers to what tables keep of them."""
    return all(a == b if isinstance(a, str) else math.isclose(a, b, rel_tol=1e-6) for a, b in zip(own, true))


def _said(values: Sequence[Any]) -> str:
    """A label as messages show it: in quotes, a number, or a time with ``+`` where it is censored."""
    first, *event = values
    return repr(first) if isinstance(first, str) else f"{first:g}" + ("+" if event and not event[0] else "")


def _grouped(m: Predictions, manifest: Manifest | None, by: Sequence[str]) -> Predictions:
    """With the columns that cases are to be grouped by.

    Raises:
        UsageError: the manifest has no such column, or nobody knows a site.
    """
    rows, columns = m.rows.copy(), {}
    taken = next((name for name in by if not m.task.classes and name in TRUTH[m.task.kind]), None)
    if taken is not None:
        raise UsageError(f"--by {taken}: that is what is predicted; make a column of groups of it under another name")
    if manifest is not None:
        known = {bare(c): c for e in manifest for c in e.cells}
        entries = {e.slide_id: e for e in manifest}
        if manifest.sites_from is not None:
            columns[SITE] = {i: e.site or "" for i, e in entries.items()}
        for name in by:
            if name != SITE and bare(name) not in known:
                raise UsageError(
                    f"--by {name}: {manifest.path.name} has no such column (there: {', '.join(known.values())})"
                )
            if name != SITE:
                own = {i: e.cells.get(known[bare(name)], "") for i, e in entries.items()}
                columns[name] = {i: "" if is_missing(text) else text.strip() for i, text in own.items()}
    for name, values in columns.items():
        rows[name] = [values[s] for s in rows["slide_id"]]
    absent = next((name for name in by if name not in rows), None)
    if absent is not None:
        where = (
            "no slide has one (add the column `site`)"
            if absent == SITE
            else "the table of slides says it; add --slides"
        )
        raise UsageError(f"--by {absent}: {where}")
    for name in by:
        values = rows[name][rows[name] != ""]
        if values.nunique() > MOST_GROUPS and pd.to_numeric(values, errors="coerce").notna().all():
            raise UsageError(
                f"--by {name}: {values.nunique()} different numbers; make a column of groups of them, such as under 60"
            )
    return replace(m, rows=rows)


def _with_known_labels(m: Predictions, where: str) -> Predictions:
    if not m.task.classes:
        return m
    unknown = m.rows[~m.rows["label"].isin(m.classes)]
    if len(unknown):
        raise InputError(
            f"{where}: slide {unknown['slide_id'].iloc[0]!r} is of class {unknown['label'].iloc[0]!r}, which "
            f"{m.source} does not know (it knows {', '.join(m.classes)})"
        )
    return m


def _with_leaks(m: Predictions, manifest: Manifest | None) -> Predictions:
    """Say which judged slides the model may know from training."""
    ids, patients = m.rows["slide_id"], m.rows["patient_id"]
    leaks, remarks = [], list(m.remarks)
    if m.kind == "predict":
        known = ids.isin(m.seen)
        patient_of = {} if manifest is None else {e.slide_id: e.patient_id for e in manifest}
        kin = ~known & patients.isin({patient_of[s] for s in m.seen if s in patient_of})
        pixels = ids.isin(m.pixels) & ~known
        if known.any():
            leaks.append(
                f"the model was trained or selected on {known.sum()} of these {len(ids)} slides (the first: "
                f"{ids[known].iloc[0]}), so its figures are too good; judge it by its out-of-fold predictions or on "
                "other slides"
            )
        if kin.any():
            leaks.append(
                f"the model was trained on other slides of the same patients for {count_text(int(kin.sum()), 'slide')} "
                f"(the first: {ids[kin].iloc[0]}), so its figures may be too good"
            )
        if pixels.any():
            seen = count_text(int(pixels.sum()), "slide")
            remarks.append(f"its LR encoder was distilled on the pixels (not the labels) of {seen}")
    else:
        tested, parts = defaultdict(set), defaultdict(set)
        for slide, fold in zip(ids, m.rows["fold"]):
            tested[slide].add(fold)
        for slide, patient in zip(ids, patients):
            parts[patient].add(frozenset(tested[slide]))
        torn = sorted(str(p) for p, own in parts.items() if len(own) > 1)
        if torn:
            leaks.append(
                f"slides of {len(torn)} patient(s) were tested in different folds (the first: {torn[0]}): heads were "
                "judged on patients they were trained on, so the figures may be too good"
            )
    if m.bag != PATIENT and (ids == patients).all():
        remarks.append(UNKNOWN_PATIENTS)
    return replace(m, leaks=tuple(leaks), remarks=tuple(remarks))


def common(models: Sequence[Predictions]) -> list[Predictions]:
    """All models on the slides that all of them predicted, in one order.

    A slide that was tested in several folds is matched fold by fold; a model that predicted it once answers for each.
    """
    repeated = [bool(m.rows["slide_id"].duplicated().any()) for m in models]
    rows = [
        {(slide, fold if again else None): i for i, (slide, fold) in enumerate(zip(m.rows["slide_id"], m.rows["fold"]))}
        for m, again in zip(models, repeated)
    ]
    asked = [r for r, again in zip(rows, repeated) if again] or rows
    found = [[r.get(key if again else (key[0], None)) for r, again in zip(rows, repeated)] for key in sorted(asked[0])]
    index = np.array([row for row in found if None not in row], dtype=np.int64).reshape(-1, len(models))
    return [m.take(index[:, n]) for n, m in enumerate(models)]
