"""An evaluation of numbers or of survival as data: the content of ``evaluation.json``, the rows of ``metrics.csv``."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lrmil_cli.evaluation.evaluate_targets import TargetEvaluation, TargetGroup, TargetModel
from lrmil_cli.evaluation.evaluation_files import (
    differences_json,
    interval_json,
    metrics_table,
    predictions_json,
    score_json,
    score_rows,
    tiles_json,
)


def as_json(e: TargetEvaluation) -> dict[str, Any]:
    """The content of ``evaluation.json`` besides its header."""
    return {
        "level": e.level,
        "target": e.task.as_json(),
        "models": [_model_json(m) for m in e.models],
        "differences": differences_json(e),
    }


def _model_json(m: TargetModel) -> dict[str, Any]:
    p = m.predictions
    return {
        **predictions_json(p, len(m.cases.frame)),
        "metrics": {s.metric: score_json(s) for s in m.scores},
        "groups": {name: [group_json(g) for g in own] for name, own in m.groups.items()},
        m.predictions.task.kind: m.detail,
        "leaks": list(p.leaks),
        "remarks": list(p.remarks),
        "reading": None if p.reading is None else tiles_json(p.reading, p.unlike),
    }


def group_json(g: TargetGroup) -> dict[str, Any]:
    """A part of the cases, in plain types."""
    return {**vars(g), "metrics": {k: interval_json(v) for k, v in g.metrics.items()}}


def metrics_frame(e: TargetEvaluation) -> pd.DataFrame:
    """Rows of ``metrics.csv``, one a model and metric; what is undefined is empty."""
    return metrics_table([row for m in e.models for row in score_rows(m, len(m.cases.frame), e.level)])
