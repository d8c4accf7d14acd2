"""What models of numbers and of survival say, read from tables and prediction JSONs (evaluation/README 19)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.errors import InputError
from lrmil_cli.targets.task import Task

#: Task -> the columns that say the truth.
TRUTH = {"classification": ("label",), "regression": ("label",), "survival": ("time", "event")}
GROUPS = ("low", "high")
#: Chances to be free of the event at the n-th of the times that a model knows.
CURVE = "survival_{}"


def curves(said: pd.DataFrame) -> np.ndarray:
    """The survival curves, float [n, T], at the times of the predictions."""
    return said[[c for c in said if str(c).startswith(CURVE.format(""))]].to_numpy(np.float64)


def said_of_table(
    task: Task, header: dict[str, Any], rows: pd.DataFrame, where: str
) -> tuple[pd.DataFrame, tuple[float, ...]]:
    """What a model says in an out-of-fold table, and the times that its curves are known at.

    Regression: ``predicted``. Survival: ``risk, group, survival_0, ...``.

    Raises:
        InputError: the table does not say it.
    """
    if task.kind == "regression":
        return rows[["predicted"]].reset_index(drop=True), ()
    times = tuple(float(t) for t in header.get("times") or ())
    columns = [f"survival_{t:.6g}" for t in times]
    missing = next((c for c in columns if c not in rows), None)
    if missing is not None:
        raise InputError(f"{where}: column {missing!r} is missing; run the command that made it again")
    known = rows[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    said = _survival(rows["risk"].to_numpy(np.float64), rows["group"].tolist(), known, where)
    return said, times


def said_of_records(
    task: Task, records: Sequence[dict[str, Any]], folder: str
) -> tuple[pd.DataFrame, tuple[float, ...]]:
    """The same of the prediction JSONs of one model.

    Raises:
        InputError: they know curves at different times.
    """
    if task.kind == "regression":
        return pd.DataFrame({"predicted": [float(r["predicted"]) for r in records]}), ()
    times = tuple(float(t) for t in records[0]["times"])
    if any(tuple(float(t) for t in r["times"]) != times for r in records):
        raise InputError(f"{folder}: its curves are known at different times; keep one folder a model")
    known = np.array([r["survival"] for r in records], np.float64).reshape(len(records), -1)
    return _survival(np.array([float(r["risk"]) for r in records]), [r["group"] for r in records], known, folder), times


def check_record(task: Task, record: dict[str, Any]) -> None:
    """A prediction JSON of a number or of survival says what it should.

    Raises:
        KeyError, TypeError, ValueError: it does not.
    """
    if task.kind == "regression":
        numbers = [float(record["predicted"])]
    else:
        numbers = [float(record["risk"]), *map(float, record["times"]), *map(float, record["survival"])]
        if record["group"] not in GROUPS or len(record["times"]) != len(record["survival"]):
            raise ValueError("group or curve")
    if not np.isfinite(numbers).all():
        raise ValueError("not finite")


def _survival(risks: np.ndarray, groups: Sequence[str], known: np.ndarray, where: str) -> pd.DataFrame:
    strange = next((g for g in groups if g not in GROUPS), None)
    if strange is not None:
        raise InputError(f"{where}: group {strange!r} is neither high nor low; run the command that made it again")
    if not (np.isfinite(known).all() and (known >= 0).all() and (known <= 1).all()):
        raise InputError(f"{where}: a survival curve is not between 0 and 1; run the command that made it again")
    own = {CURVE.format(i): column for i, column in enumerate(known.T)}
    return pd.DataFrame({"risk": risks, "group": list(groups), **own})
