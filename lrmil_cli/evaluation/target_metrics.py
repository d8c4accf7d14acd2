"""Metrics of out-of-fold tables of numbers and survival, as training writes them (targets/README 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lrmil_cli.evaluation.metrics import mean_sd
from lrmil_cli.evaluation.regression import REGRESSION_METRICS, regression_metrics
from lrmil_cli.evaluation.survival import Followed, harrell_c, uno_c

if TYPE_CHECKING:
    from lrmil_cli.targets.task import Task

#: How many, and what of them: those who were counted are not averaged over folds.
COUNTS = ("n", "events")


def followed(rows: pd.DataFrame) -> Followed:
    """The slides of a table of survival, their risks compared within folds."""
    folds = None if rows["fold"].isna().any() else rows["fold"].to_numpy()
    numbers = [pd.to_numeric(rows[c]).to_numpy(np.float64) for c in ("time", "event", "risk")]
    return Followed(numbers[0], numbers[1] == 1, numbers[2], rows["patient_id"].to_numpy(str), folds)


def _of_numbers(rows: pd.DataFrame) -> dict[str, float | None]:
    truth, said = (pd.to_numeric(rows[c]).to_numpy(np.float64) for c in ("label", "predicted"))
    return {"n": len(rows), **regression_metrics(truth, said)}


def _of_survival(rows: pd.DataFrame) -> dict[str, float | None]:
    f = followed(rows)
    return {"n": len(rows), "events": int(f.events.sum()), "c_harrell": harrell_c(f), "c_uno": uno_c(f)}


#: Task -> its metrics of a table of predictions, and their names in order.
TABLES: dict[str, tuple[Callable[[pd.DataFrame], dict[str, float | None]], tuple[str, ...]]] = {
    "regression": (_of_numbers, ("n", *REGRESSION_METRICS)),
    "survival": (_of_survival, ("n", "events", "c_harrell", "c_uno")),
}


def target_metrics(task: Task, table: pd.DataFrame) -> dict[str, float | None]:
    """Metrics of all slides of an out-of-fold table; None where undefined.

    Regression: ``n``, mae, rmse, r2, pearson, spearman. Survival: ``n, events``, c_harrell, c_uno; risks are compared
    within folds only.

    Args:
        table: of kind ``predictions`` of the task, numbers as numbers or as text.
    """
    return TABLES[task.kind][0](table)


def target_metrics_table(task: Task, table: pd.DataFrame) -> pd.DataFrame:
    """One row a fold, ``mean`` and ``sd`` over folds, ``pooled`` over all slides; counts have no mean."""
    names = TABLES[task.kind][1]
    folds = {str(k): target_metrics(task, rows) for k, rows in table.groupby("fold", sort=True)}
    both = {m: mean_sd([v[m] for v in folds.values()]) for m in names if m not in COUNTS}
    rows = [{"fold": k, **v} for k, v in folds.items()]
    rows += [{"fold": name, **{m: b[i] for m, b in both.items()}} for i, name in enumerate(("mean", "sd"))]
    rows.append({"fold": "pooled", **target_metrics(task, table)})
    return pd.DataFrame(rows, columns=["fold", *names]).astype(dict.fromkeys(set(names) & set(COUNTS), "Int64"))
