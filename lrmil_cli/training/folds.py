"""Who is train, val and test in which fold (training/README 2): drawn by patient, or as the manifest says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.manifest_rows import SPLITS
from lrmil_cli.targets.strata import MIN_EVENTS, survival_bins, target_bins

if TYPE_CHECKING:
    import pandas as pd

#: Share of the patients outside the test part that are validation: one in eight, so 70/10/20 with five folds.
VAL_PARTS = 8


def make_folds(manifest: Manifest, folds: int, seed: int) -> pd.DataFrame:
    """The fold table: ``slide_id, patient_id, label, fold_1 .. fold_K`` with cells train, val, test or empty.

    What is no class is stratified by its bins (:func:`strata`).

    A column ``split`` in the manifest makes one fold of it; ``fold_1..`` are taken as they are; ``fold`` names the
    fold in which a slide is test. Otherwise ``folds`` parts are drawn by patient, stratified by label.

    With ``manifest.by_site`` no site stands on both sides of a split (training/README 2.3).

    Raises:
        InputError: too few patients of a class, or columns that do not cover all slides; sites that cannot be kept
            apart.
        UsageError: fewer than two folds asked for.
    """
    import pandas as pd

    table = pd.DataFrame(
        {
            "slide_id": [e.slide_id for e in manifest],
            "patient_id": [e.patient_id for e in manifest],
            "label": [e.label for e in manifest],
        }
    )
    labels = strata(manifest, folds)
    patients = table["patient_id"].to_numpy()
    if manifest.by_site is not None:
        columns = _by_site(manifest, labels, folds, seed)
    else:
        columns = _fold_columns(manifest, labels, patients, folds, seed)
    for k, column in enumerate(columns, 1):
        table[f"fold_{k}"] = column
        check_fold(column, labels, k, manifest)
    return table


def strata(manifest: Manifest, folds: int = 2) -> np.ndarray:
    """int [n], by which folds are stratified: the class; of a number its quartile; of survival event and quartile of
    time, or the event alone where a quartile has fewer slides than there are folds."""
    if manifest.task.kind == "regression":
        return target_bins([float(e.value or 0.0) for e in manifest])
    if manifest.task.kind == "survival":
        times, events = [float(e.time or 0.0) for e in manifest], [float(e.event or 0) for e in manifest]
        bins = survival_bins(times, events)
        return bins if np.bincount(bins)[np.unique(bins)].min() >= folds else np.array(events, np.int64)
    return np.array([manifest.classes.index(str(e.label)) for e in manifest], np.int64)


def with_intervals(manifest: Manifest, table: pd.DataFrame) -> Manifest:
    """The manifest with as many intervals of survival as every fold of a table can have: ties leave some with fewer."""
    from lrmil_cli.targets.survival import hazard_borders

    task, names = manifest.task, fold_names(table)
    if task.kind != "survival":
        return manifest
    parts = [table[name].to_numpy() == "train" for name in names]
    times, events = (np.array([getattr(e, of) for e in manifest], float) for of in ("time", "event"))
    for intervals in range(task.intervals, 1, -1):
        if all(len(hazard_borders(times[p], events[p], intervals)) == intervals - 1 for p in parts):
            return replace(manifest, task=replace(task, intervals=intervals))
    raise InputError(
        f"{manifest.path}: the events of a fold are all at one time or nearly so ({task.time}); there are no intervals "
        "of time to learn"
    )


def fold_names(table: pd.DataFrame) -> list[str]:
    """The fold columns of a fold table, in order."""
    return sorted((c for c in table.columns if c.startswith("fold_")), key=lambda c: int(c[5:]))


def members(table: pd.DataFrame, fold: str) -> dict[str, list[str]]:
    """Slide ids of ``train``, ``val`` and ``test`` of one fold, in table order."""
    return {part: table.loc[table[fold] == part, "slide_id"].tolist() for part in SPLITS}


def _fold_columns(
    manifest: Manifest, labels: np.ndarray, patients: np.ndarray, folds: int, seed: int
) -> list[np.ndarray]:
    if any(e.split for e in manifest):
        parts = np.array([e.split or "" for e in manifest])
        if (parts == "").any():
            raise InputError(
                f"{manifest.path}: column split is empty for {(parts == '').sum()} slide(s); fill all or none"
            )
        if not (parts == "val").any():
            parts = _draw_val(parts == "test", labels, patients, seed)
        return [parts]
    numbered = sorted({k for e in manifest for k in e.folds if k != "fold"}, key=_number)
    if numbered:
        columns = [np.array([e.folds.get(k, "").lower() for e in manifest]) for k in numbered]
        for k, column in zip(numbered, columns):
            if not np.isin(column, SPLITS).all():
                raise InputError(f"{manifest.path}: column {k} must say train, val or test for each slide")
        return columns
    if any("fold" in e.folds for e in manifest):
        own = np.array([e.folds.get("fold", "") for e in manifest])
        if (own == "").any():
            raise InputError(
                f"{manifest.path}: column fold is empty for {(own == '').sum()} slide(s); fill all or none"
            )
        tests = [own == name for name in sorted(set(own), key=lambda v: (len(v), v))]
    else:
        tests = _draw_tests(manifest, labels, patients, folds, seed)
    return [_draw_val(test, labels, patients, seed + i) for i, test in enumerate(tests)]


def _number(column: str) -> tuple[int, str]:
    tail = column.rpartition("_")[2]
    return (int(tail), "") if tail.isdigit() else (10**9, tail)


def _draw_tests(
    manifest: Manifest, labels: np.ndarray, patients: np.ndarray, folds: int, seed: int
) -> list[np.ndarray]:
    from sklearn.model_selection import StratifiedGroupKFold

    if folds < 2:
        raise UsageError(f"--folds {folds}: at least 2, or a column split in the manifest for one fixed split")
    for c, name in enumerate(manifest.classes):
        n = len(set(patients[labels == c]))
        if n < max(folds, 3):
            raise InputError(
                f"{manifest.path}: class {name!r} has {n} patient(s), too few for {folds} folds with train, val and "
                f"test; use --folds {n}"
                if n >= 3
                else f"{manifest.path}: class {name!r} has {n} patient(s); at least 3 are needed (train, val and test)"
            )
    if (n := len(set(patients))) < max(folds, 3):
        raise InputError(f"{manifest.path}: {n} patient(s), too few for {folds} folds with train, val and test")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [_mask(len(labels), test) for _, test in splitter.split(labels, labels, patients)]


def _by_site(manifest: Manifest, labels: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Folds of which no site stands on both sides: by as many parts, or each site the test part once."""
    if any(e.split or e.folds for e in manifest):
        raise UsageError(
            f"--by-site {manifest.by_site}: {manifest.path} says its own splits; leave out --by-site, or these columns"
        )
    unknown = [e.slide_id for e in manifest if e.site is None]
    if unknown:
        raise InputError(
            f"{manifest.path}: {len(unknown)} slide(s) have no site ({unknown[0]}, ...), so that sites cannot be kept "
            "apart; fill the column `site`, or leave out --by-site"
        )
    sites = np.array([e.site for e in manifest])
    names = sorted(set(sites))
    if len(names) < 3:
        raise InputError(
            f"{manifest.path}: all slides are of {len(names)} site(s) ({', '.join(names)}); --by-site needs three, to "
            "train, select and test on different ones"
        )
    of_patient: dict[str, str] = {}
    for e, site in zip(manifest, sites):
        if of_patient.setdefault(e.patient_id, site) != site:
            raise InputError(
                f"{manifest.path}: patient {e.patient_id!r} has slides of the sites {of_patient[e.patient_id]!r} and "
                f"{site!r}; --by-site needs patients of one site each"
            )
    if manifest.by_site == "leave-one-out":
        tests = [sites == name for name in names]
    else:
        from sklearn.model_selection import StratifiedGroupKFold

        if not 2 <= folds <= len(names):
            raise UsageError(f"--folds {folds}: with --by-site preserve 2 to {len(names)}, the number of sites")
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        tests = [_mask(len(labels), test) for _, test in splitter.split(labels, labels, sites)]
    return [_draw_val(test, labels, sites, seed + i) for i, test in enumerate(tests)]


def _draw_val(test: np.ndarray, labels: np.ndarray, patients: np.ndarray, seed: int) -> np.ndarray:
    """Of the slides that are not ``test``, one patient in eight becomes val, stratified by label.

    ``patients`` are whatever must not be torn: of folds by site these are sites.

    A class of fewer patients than that gives one of them, so that early stopping looks at every class and the others
    keep their share; a class of one patient gives none, because training needs it (training/README 2.1).
    """
    from sklearn.model_selection import StratifiedGroupKFold

    rest = np.flatnonzero(~test)
    if len(set(patients[rest])) < 2:
        raise InputError("only one patient is left for training and validation; add patients")
    of_class = {c: sorted(set(patients[rest][labels[rest] == c])) for c in sorted(set(labels[rest]))}
    rare = {c: own for c, own in of_class.items() if len(own) < VAL_PARTS}
    kept = {p for own in rare.values() for p in own}
    val: set[str] = set()
    rng = np.random.default_rng(seed)
    for own in rare.values():
        if len(own) > 1 and not val & set(own):  # a patient with slides of two classes may stand for both
            val.add(own[rng.integers(len(own))])
    common = np.array([i for i in rest if patients[i] not in kept], np.int64)
    if (parts := min(VAL_PARTS, len(set(patients[common])))) > 1:
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        _, drawn = next(splitter.split(common, labels[common], patients[common]))
        val |= set(patients[common][drawn])
    out = np.where(test, "test", "train").astype(object)
    out[rest[np.isin(patients[rest], sorted(val))]] = "val"
    return out.astype(str)


def check_fold(
    column: np.ndarray, labels: np.ndarray, k: int, manifest: Manifest, advice: str = "change the split or --folds"
) -> None:
    """A fold can be trained: it has training and validation slides, and training slides of every class, or events.

    Args:
        labels: as of :func:`strata`.

    Raises:
        InputError: it cannot.
    """
    for part in ("train", "val"):
        if not (column == part).any():
            raise InputError(f"{manifest.path}: fold {k} has no {part} slides; {advice}")
    if manifest.task.kind == "survival":
        events = sum(e.event == 1 for e, part in zip(manifest, column) if part == "train")
        if events < MIN_EVENTS:
            raise InputError(
                f"{manifest.path}: fold {k} has {events} event(s) among its training slides ({manifest.events} of "
                f"{len(manifest)} slides have one); at least {MIN_EVENTS} are needed; add slides, or {advice}"
            )
    absent = sorted(set(labels) - set(labels[column == "train"])) if manifest.task.classes else []
    if absent:
        raise InputError(
            f"{manifest.path}: fold {k} has no training slide of class {manifest.classes[absent[0]]!r}; {advice}"
        )


def _mask(n: int, index: np.ndarray) -> np.ndarray:
    out = np.zeros(n, bool)
    out[index] = True
    return out
