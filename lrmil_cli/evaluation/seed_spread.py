"""What another seed would have given, from out-of-fold predictions of several (evaluation/README 18)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.metrics import METRIC_FUNCTIONS, mean_sd
from lrmil_cli.evaluation.scores import COMPARED, Cases, at_level
from lrmil_cli.evaluation.target_cases import RECEIPT_METRICS, cases_of_table, judged
from lrmil_cli.evaluation.target_cases import at_level as at_target_level
from lrmil_cli.files.header import last_digest
from lrmil_cli.files.tables import read_table
from lrmil_cli.targets.task import task_of


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
        raise _other_run(path)
    return _over_seeds(rows, lambda own: _metrics(own, classes, level))


def target_seed_spread(path: Path, digest: str, level: str) -> dict[str, Any] | None:
    """The same of numbers and of survival.

    Raises:
        InputError: the table is damaged, or of another run.
    """
    if not path.exists():
        return None
    header, rows = read_table(path, "seeds")
    task = task_of(header)
    if last_digest(header) != digest or task.classes:
        raise _other_run(path)

    def judge(own: pd.DataFrame) -> dict[str, Any]:
        cases = at_target_level(cases_of_table(task, header, own.reset_index(drop=True), str(path)), level)
        return {m: v.value for m, v in judged(cases, metrics=RECEIPT_METRICS[task.kind], draws=0).items()}

    return _over_seeds(rows, judge)


def _other_run(path: Path) -> InputError:
    return InputError(f"{path}: not of the run that made the model beside it; run `lrmil distill-student` again")


def _over_seeds(rows: pd.DataFrame, judge: Callable[[pd.DataFrame], dict[str, Any]]) -> dict[str, Any]:
    """Figures of each student by seed, and what they differ by of the same seed."""
    found = {
        str(who): [judge(own) for _, own in of_student.groupby("seed")] for who, of_student in rows.groupby("student")
    }
    counts = {len(own) for own in found.values()}
    names = list(next(iter(found.values()))[0])
    out: dict[str, Any] = {
        "count": min(counts),
        "models": {who: {m: _spread([own[m] for own in of_seed]) for m in names} for who, of_seed in found.items()},
        "differences": {},
    }
    if {"distilled", "lr_only"} <= found.keys():
        both = list(zip(found["distilled"], found["lr_only"]))
        out["differences"]["lr_only"] = {
            m: _spread([None if a[m] is None or b[m] is None else a[m] - b[m] for a, b in both]) for m in names
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
