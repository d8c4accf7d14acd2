"""What a prediction says, in words: of the record of a slide, whatever its task. No library is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrmil_cli.targets.task import PATIENT, bag_of, task_of


def answer_text(record: Mapping[str, Any]) -> str:
    """``tumor``, ``3.42``, or ``high risk``."""
    kind, said = task_of(record).kind, record["predicted"]
    if kind == "regression":
        return f"{float(said):.4g}"
    return f"{said} risk" if kind == "survival" else str(said)


def sureness(record: Mapping[str, Any], digits: int = 2) -> str:
    """What stands beside it: ``probability 0.93``, ``sd over heads 0.21``, the median survival, or the survival at the
    last time that the model knows."""
    kind = task_of(record).kind
    if kind == "regression":
        return f"sd over heads {record['spread']:.2g}" if len(record["folds"]) > 1 else "one head"
    if kind == "survival":
        if record.get("median") is not None:
            return f"median survival {record['median']:.4g}"
        return f"survival {record['survival'][-1]:.{digits}f} at {record['times'][-1]:.4g}"
    return f"probability {record['probabilities'][record['predicted']]:.{digits}f}"


def sort_value(record: Mapping[str, Any]) -> float:
    """By which answers of one model are sorted: the probability, the number, or the risk."""
    kind = task_of(record).kind
    if kind == "classification":
        return float(record["probabilities"][record["predicted"]])
    return float(record["predicted" if kind == "regression" else "risk"])


def what_is_told(header: Mapping[str, Any]) -> str:
    """What a model tells, by its header: its classes, or the number or survival that it learned, and of what."""
    task = task_of(header)
    told = ", ".join(header["classes"]) if task.classes else task.name
    return f"{told}, one answer a patient" if bag_of(header) == PATIENT else told
