"""What another seed would have given, from out-of-fold predictions of several (evaluation/README 18)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.metrics import METRIC_FUNCTIONS, mean_sd
from lrmil_cli.evaluation.scores import COMPARED, Cases, at_level
from lrmil_cli.files.header import last_digest
from lrmil_cli.files.tables import read_table


def seed_spread(path: Path, digest: str, classes: Sequence[str], level: str) -> dict[str, Any] | None:
    """Mean and sd over seeds, of metrics and of differences between students of the same seed; None without a table.

    Each seed is judged as if it were the only one: its heads, one a fold, on their test slides.

    Args:
        path: the table of seeds beside a model; digest: that of the model; level: slide or patient.

    Raises:
        InputError: the table is damaged, or of another run.
    """
    if not path.exists():
        return None
    header, rows = read_table(path, "seeds")
    if last_digest(header) != digest or not {f"prob_{c}" for c in classes} <= set(rows):
        raise InputError(f"{path}: not of the run that made the model beside it; run `lrmil distill-student` again")
    found = {
        str(who): [_metrics(own, classes, level) for _, own in of_student.groupby("seed")]
        for who, of_student in rows.groupby("student")
    }
    counts = {len(own) for own in found.values()}
    out: dict[str, Any] = {
        "count": min(counts),
        "models": {who: {m: _spread([own[m] for own in of_seed]) for m in COMPARED} for who, of_seed in found.items()},
        "differences": {},
    }
    if {"distilled", "lr_only"} <= found.keys():
        both = list(zip(found["distilled"], found["lr_only"]))
        out["differences"]["lr_only"] = {
            m: _spread([None if a[m] is None or b[m] is None else a[m] - b[m] for a, b in both]) for m in COMPARED
        }
    return out


def _metrics(rows: pd.DataFrame, classes: Sequence[str], level: str) -> dict[str, Any]:
    try:
        labels = np.array([list(classes).index(str(label)) for label in rows["label"]], np.int64)
    except ValueError as e:
        raise InputError(f"the table of seeds has a label that the model does not know ({e})") from e
    probabilities = rows[[f"prob_{c}" for c in classes]].to_numpy(np.float64)
    cases = at_level(Cases(labels, probabilities, rows["patient_id"].to_numpy(str)), level, classes)
    return {m: METRIC_FUNCTIONS[m](cases.labels, cases.probabilities) for m in COMPARED}


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    mean, sd = mean_sd(values)
    return {"mean": mean, "sd": sd, "of_seeds": list(values)}
