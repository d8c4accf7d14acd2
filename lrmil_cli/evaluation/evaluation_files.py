"""An evaluation as data: the content of ``evaluation.json``, the rows of ``metrics.csv`` and ``differences.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.evaluation.bootstrap import Interval
from lrmil_cli.evaluation.calibration import answers, reliability
from lrmil_cli.evaluation.evaluate_models import Evaluation, ModelEvaluation
from lrmil_cli.evaluation.evaluate_targets import TargetEvaluation, TargetModel
from lrmil_cli.evaluation.metrics import confusion
from lrmil_cli.evaluation.predictions import Predictions
from lrmil_cli.evaluation.scores import Score
from lrmil_cli.evaluation.subgroups import Subgroup
from lrmil_cli.evaluation.tiles_read import Reading

METRICS_COLUMNS = "model level metric value low high mean sd folds of_folds n patients undefined_draws reason".split()
DIFFERENCES_COLUMNS = "model reference level metric difference low high n patients undefined_draws".split()


def as_json(e: Evaluation) -> dict[str, Any]:
    """The content of ``evaluation.json`` besides its header."""
    return {
        "level": e.level,
        "classes": list(e.classes),
        "positive": e.positive_class,
        "survival_status": e.is_survival_status,
        "models": [_model_json(m, e) for m in e.models],
        "differences": differences_json(e),
    }


def differences_json(e: Evaluation | TargetEvaluation) -> list[dict[str, Any]]:
    """One a pair of models and metric."""
    return [
        {
            "model": d.model,
            "reference": d.reference,
            "metric": d.metric,
            "n": e.compared,
            "patients": e.compared_patients,
            **interval_json(d.interval),
        }
        for d in e.differences
    ]


def score_json(s: Score) -> dict[str, Any]:
    """A metric, pooled and over folds."""
    folds = {"mean": s.mean, "sd": s.sd, "folds": s.folds, "of_folds": s.of_folds}
    return {**interval_json(s.pooled), "reason": s.reason, **folds}


def interval_json(v: Interval) -> dict[str, Any]:
    """A value with its interval."""
    return {"value": v.value, "low": v.low, "high": v.high, "undefined_draws": v.undefined}


def predictions_json(p: Predictions, n: int) -> dict[str, Any]:
    """What is judged: name, source, kind, and of how many cases ``n``, slides and patients."""
    return {
        "name": p.name,
        "source": p.source,
        "kind": p.kind,
        "made_by": p.made_by,
        "n": n,
        "slides": p.rows["slide_id"].nunique(),
        "patients": p.rows["patient_id"].nunique(),
    }


def _model_json(m: ModelEvaluation, e: Evaluation) -> dict[str, Any]:
    p = m.predictions
    bins = reliability(*answers(m.cases, e.positive))
    return {
        **predictions_json(p, len(m.cases.labels)),
        "counts": {c.name: c.n for c in m.classes},
        "majority_class": m.majority[0],
        "majority_rate": m.majority[1],
        "metrics": {s.metric: score_json(s) for s in m.scores},
        "per_class": [asdict(c) for c in m.classes],
        "confusion": confusion(m.cases.labels, m.cases.probabilities).tolist(),
        "calibration": {
            **{k: v.tolist() for k, v in vars(bins).items()},
            **{who: {k: interval_json(v) for k, v in own.items()} for who, own in m.calibration.items()},
        },
        "prediction_sets": None if m.sets is None else {**vars(m.sets), "reached": interval_json(m.sets.reached)},
        "groups": {name: [group_json(g, e.classes) for g in own] for name, own in m.groups.items()},
        "external": None if m.external is None else m.external.as_json(),
        "leaks": list(p.leaks),
        "remarks": list(p.remarks),
        "reading": None if p.reading is None else reading_json(m, p.reading),
    }


def group_json(g: Subgroup, classes: Sequence[str]) -> dict[str, Any]:
    """A part of the cases, in plain types."""
    return {
        "name": g.name,
        "n": g.n,
        "patients": g.patients,
        "counts": dict(zip(classes, g.counts)),
        "metrics": {k: interval_json(v) for k, v in g.metrics.items()},
        "covered": g.covered,
    }


def reading_json(m: ModelEvaluation, own: Reading) -> dict[str, Any]:
    """Tiles and seconds a slide, abstentions, and the curve of a cascade."""
    labels, said = m.predictions.cases().labels, m.predictions.probabilities.argmax(1)
    sure = ~own.uncertain
    curve = m.curve
    return {
        **tiles_json(own, m.predictions.unlike),
        "accuracy_of_the_sure": float((said == labels)[sure].mean()) if sure.any() else None,
        "curve": None if curve is None else {k: v.tolist() for k, v in vars(curve).items()},
    }


def tiles_json(own: Reading, unlike: np.ndarray | None) -> dict[str, Any]:
    """Tiles and seconds a slide, how many answers abstain, and how many slides are ``unlike`` those of training (bool
    [n]; None where that is not known)."""
    return {
        "lr_tiles": float(own.lr.mean()),
        "mid_tiles": None if own.mid is None else float(own.mid.mean()),
        "hr_tiles": float(own.hr.mean()),
        "seconds": float(own.seconds.mean()),
        "uncertain": int(own.uncertain.sum()),
        "unlike_training": None if unlike is None else int(unlike.sum()),
    }


def metrics_frame(e: Evaluation) -> pd.DataFrame:
    """Rows of ``metrics.csv``, one a model and metric; what is undefined is empty.

    The accuracy of always saying the largest class is ``majority_rate``.
    """
    rows: list[dict[str, Any]] = []
    for m in e.models:
        rows += score_rows(m, len(m.cases.labels), e.level)
        about = {"n": len(m.cases.labels), "patients": m.predictions.rows["patient_id"].nunique()}
        common = {"model": m.name, "level": e.level, **about}
        rows.append({**common, "metric": "majority_rate", "value": m.majority[1], "reason": ""})
    return metrics_table(rows)


def score_rows(m: ModelEvaluation | TargetModel, n: int, level: str) -> list[dict[str, Any]]:
    """A row a metric of one model, whose cases are ``n``."""
    common = {"model": m.name, "level": level, "n": n, "patients": m.predictions.rows["patient_id"].nunique()}
    return [
        {
            **common,
            "metric": s.metric,
            **{"value": s.pooled.value, "low": s.pooled.low, "high": s.pooled.high},
            **{"mean": s.mean, "sd": s.sd, "folds": s.folds, "of_folds": s.of_folds},
            **{"undefined_draws": s.pooled.undefined, "reason": s.reason},
        }
        for s in m.scores
    ]


def metrics_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows with the columns of ``metrics.csv``."""
    counts = ["folds", "of_folds", "undefined_draws"]
    return pd.DataFrame(rows, columns=METRICS_COLUMNS).astype(dict.fromkeys(counts, "Int64"))


def differences_frame(e: Evaluation | TargetEvaluation) -> pd.DataFrame:
    """Rows of ``differences.csv``, one a pair of models and metric: model - reference."""
    rows = [
        {
            "model": d.model,
            "reference": d.reference,
            "level": e.level,
            "metric": d.metric,
            "difference": d.interval.value,
            "low": d.interval.low,
            "high": d.interval.high,
            "n": e.compared,
            "patients": e.compared_patients,
            "undefined_draws": d.interval.undefined,
        }
        for d in e.differences
    ]
    return pd.DataFrame(rows, columns=DIFFERENCES_COLUMNS)
