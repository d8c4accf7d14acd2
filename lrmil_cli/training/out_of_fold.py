"""Out-of-fold predictions of trained heads: the table, its metrics, what a model file keeps of it, curves.

Teacher and students share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.evaluation.metrics import evaluate, metrics_table, show
from lrmil_cli.evaluation.prediction_sets import by_patient
from lrmil_cli.evaluation.target_metrics import target_metrics, target_metrics_table
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.patients import bag_entry
from lrmil_cli.targets import outputs as read
from lrmil_cli.targets.task import Task
from lrmil_cli.training.crossval import FoldResult, Judged


def predictions_table(manifest: Manifest, results: Sequence[Judged]) -> pd.DataFrame:
    """Out-of-fold predictions: ``slide_id, patient_id, <truth>, fold``, ``site`` where the manifest knows any, and what
    is said.

    Of classes ``label`` and ``predicted, prob_<class>..., raw_<class>...``: ``prob_`` are calibrated, each head by its
    own validation slides, ``raw_`` are as the head has them. Of regression ``label`` and ``predicted``. Of survival
    ``time, event`` and ``risk, group`` (high or low by the cut that the training slides of the fold set), ``median``
    where a curve reaches one half, and ``survival_<t>`` at :func:`times_of` the heads. Where bags are of patients, a
    row is a patient (``slide_id`` too), and ``slides`` are the ids of its slides, with ``|`` between them.
    """
    columns, says = SAYS[manifest.task.kind]
    entries = {e.slide_id: e for e in manifest}
    times = times_of(results)
    slides: dict[str, list[str]] = {}
    for e in manifest.slides:
        slides.setdefault(e.patient_id, []).append(e.slide_id)
    parts = []
    for r in results:
        own = [entries[s] for s in r.parts["test"]]
        about = {"slide_id": [e.slide_id for e in own], "patient_id": [e.patient_id for e in own]}
        truth = {name: [getattr(e, of) for e in own] for name, of in columns.items()}
        more = {"site": [e.site or "" for e in own]} if manifest.sites_from else {}
        if manifest.of is not None:
            more["slides"] = ["|".join(slides[e.patient_id]) for e in own]
        parts.append(pd.DataFrame(about | truth | {"fold": r.fold} | more | says(manifest, r, times)))
    return pd.concat([p for p in parts if len(p)] or parts[:1], ignore_index=True)


def times_of(results: Sequence[Judged]) -> np.ndarray:
    """Times [T] of which all heads of some folds can tell survival; none of another task."""
    known = [o for r in results for o in r.outputs]
    return read.known_times(known) if known and "borders" in known[0] else np.zeros(0)


def _says_class(manifest: Manifest, r: Judged, times: np.ndarray) -> dict[str, Any]:
    p, raw = r.probabilities, r.raw["test"]
    said: dict[str, Any] = {"predicted": [manifest.classes[int(v.argmax())] for v in p]}
    return said | {
        f"{kind}_{c}": v[:, n] for kind, v in (("prob", p), ("raw", raw)) for n, c in enumerate(manifest.classes)
    }


def _says_number(manifest: Manifest, r: Judged, times: np.ndarray) -> dict[str, Any]:
    return {"predicted": r.raw["test"][:, 0]}


def _says_survival(manifest: Manifest, r: Judged, times: np.ndarray) -> dict[str, Any]:
    answer = read.survival_answer(manifest.task, r.outputs, r.heads("test"), times)
    curves = {f"survival_{t:.6g}": answer.survival[:, n] for n, t in enumerate(times)}
    return {"risk": answer.risk, "group": answer.group, "median": answer.median, **curves}


#: Task -> columns of the truth with the field of an entry that they hold, and what is said of the test slides.
SAYS: dict[str, tuple[dict[str, str], Callable[[Manifest, Judged, np.ndarray], dict[str, Any]]]] = {
    "classification": ({"label": "label"}, _says_class),
    "regression": ({"label": "value"}, _says_number),
    "survival": ({"time": "time", "event": "event"}, _says_survival),
}


def target_of(task: Task) -> dict[str, Any]:
    """The entry ``target`` of headers and settings; none of classes, whose files stay as they were."""
    return {} if task.classes else {"target": task.as_json()}


def table_header(manifest: Manifest, results: Sequence[Judged]) -> dict[str, Any]:
    """Entries of the header of a predictions table that say what it is of; none of slides and classes."""
    times = {"times": times_of(results).tolist()} if manifest.task.kind == "survival" else {}
    return {**target_of(manifest.task), **bag_entry(manifest), **times}


def score(manifest: Manifest, results: Sequence[Judged]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Metrics table (folds, mean, sd, pooled) and the pooled metrics of all out-of-fold slides."""
    if not manifest.task.classes:
        table = predictions_table(manifest, results)
        return target_metrics_table(manifest.task, table), target_metrics(manifest.task, table)
    truth = {e.slide_id: manifest.classes.index(str(e.label)) for e in manifest}
    per_fold = {str(r.fold): evaluate([truth[s] for s in r.parts["test"]], r.probabilities) for r in results}
    labels = [truth[s] for r in results for s in r.parts["test"]]
    pooled = evaluate(labels, np.concatenate([r.probabilities for r in results]))
    return metrics_table(per_fold, pooled), pooled


def calibration(results: Sequence[FoldResult]) -> dict[str, Any] | None:
    """``calibration`` of a header: how each head is calibrated, by which slides (evaluation/README 6); None where it
    gives no probabilities."""
    heads = [r.calibration for r in results if r.calibration is not None]
    if not heads:
        return None
    return {"of": "validation", "slides": sum(h.slides for h in heads), "heads": [h.as_json() for h in heads]}


def conformal(manifest: Manifest, results: Sequence[Judged]) -> dict[str, Any] | None:
    """``calibration_patients`` of a header: what each head says, calibrated, of patients that it did not see; None
    where labels are no classes.

    Those of the test slides of the folds; of one split those of its validation slides, since its test slides judge.
    """
    if not manifest.task.classes:
        return None
    part, of = ("val", "validation") if len(results) == 1 else ("test", "test")
    entries = {e.slide_id: e for e in manifest}
    slides = [(n, entries[s]) for n, r in enumerate(results) for s in r.parts[part]]
    return by_patient(
        of,
        [n for n, _ in slides],
        [e.patient_id for _, e in slides],
        [manifest.classes.index(str(e.label)) for _, e in slides],
        np.concatenate([r.said(part) for r in results]),
    ).as_json()


def curves_table(results: Sequence[FoldResult]) -> pd.DataFrame:
    """One row a fold and epoch: every loss term of training, and what validation is judged by."""
    return pd.DataFrame([{"fold": r.fold, **row} for r in results for row in r.fit.curves])


#: Task -> the metrics of a line for the terminal: what to call them, and their columns.
SHOWN: dict[str, tuple[tuple[str, str], ...]] = {
    "classification": (("accuracy", "accuracy"), ("AUC", "auc")),
    "regression": (("R2", "r2"), ("MAE", "mae")),
    "survival": (("C-index", "c_harrell"), ("Uno's", "c_uno")),
}


def summary(name: str, table: pd.DataFrame, folds: int, task: Task = Task()) -> str:
    """One line for the terminal."""
    by = table.set_index("fold")
    if folds == 1:
        return f"{name}: test " + ", ".join(f"{m} {show(_value(by, 'pooled', c))}" for m, c in SHOWN[task.kind])
    parts = [f"{m} {show(_value(by, 'mean', c))} (sd {show(_value(by, 'sd', c))})" for m, c in SHOWN[task.kind]]
    return f"{name}, {folds} folds: " + ", ".join(parts)


def scores_text(metrics: dict[str, Any], task: Task = Task()) -> str:
    """Pooled metrics in one line."""
    return ", ".join(f"{m} {show(metrics[c])}" for m, c in SHOWN[task.kind])


def _value(table: pd.DataFrame, row: str, column: str) -> float | None:
    value = float(pd.to_numeric(table[column])[row])
    return None if np.isnan(value) else value
