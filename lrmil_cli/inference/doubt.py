"""When an answer is not sure: by its calibrated probability, or by heads that differ (inference/README 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrmil_cli.errors import UsageError
from lrmil_cli.evaluation.head_calibration import calibrated
from lrmil_cli.inference.prediction import Prediction
from lrmil_cli.inference.record import SAYS
from lrmil_cli.targets.outputs import risk
from lrmil_cli.targets.task import task_of

#: Heads whose numbers have a larger standard deviation, in those of the number over the training slides, are in doubt.
SPREAD = 0.25


@dataclass(frozen=True)
class Rule:
    """Which answers are sure.

    Attributes:
        confidence: an answer of classes of a lower calibrated probability is in the grey zone.
        max_spread: heads of a number with a larger standard deviation, in its own unit, differ; None elsewhere.
    """

    confidence: float
    max_spread: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.confidence <= 1:
            raise UsageError(f"--confidence {self.confidence:g}: give a probability over 0, and 1 at most")
        if self.max_spread is not None and not (self.max_spread >= 0 and math.isfinite(self.max_spread)):
            raise UsageError(f"--max-spread {self.max_spread:g}: give a standard deviation, 0 or more")


def make_rule(header: dict[str, Any], path: str, confidence: float, max_spread: float | None) -> Rule:
    """The rule for a model, with what it says of its number where ``max_spread`` is not given.

    Raises:
        UsageError: values that cannot be; one head, which cannot differ from itself.
    """
    task = task_of(header)
    if not task.classes and len(header["outputs"]) == 1:
        raise UsageError(
            f"{path} has one head, so nothing says when its answer is in doubt; train it over folds (--folds 5)"
        )
    if task.kind == "regression" and max_spread is None:
        max_spread = SPREAD * float(np.mean([own["sd"] for own in header["outputs"]]))
    return Rule(confidence, max_spread)


def in_doubt(
    header: dict[str, Any], p: Prediction, rule: Rule, temperature: float
) -> tuple[str | None, dict[str, Any]]:
    """Why an answer is not sure, None if it is; and what it says, for the record of a second look.

    Args:
        header: of the model; temperature: that the mean of heads of classes is asked at.
    """
    task = task_of(header)
    if task.classes:
        reason, sure, agree = doubt_of_classes(p.per_fold, rule.confidence, temperature)
        names = {c: round(float(v), 9) for c, v in zip(header["classes"], p.probabilities)}
        return reason, {"probabilities": names, "confidence": round(sure, 6), "agree": agree}
    said = SAYS[task.kind](header, p)
    about: dict[str, Any] = {k: v for k, v in said.items() if k in ("predicted", "risk", "folds", "spread")}
    if task.kind == "regression":
        return doubt_of_number(p.raw[:, 0], rule.max_spread or 0.0), about
    outputs = p.outputs or header["outputs"]
    high = [float(risk(task, own, says)) > own["cut"] for own, says in zip(outputs, p.raw)]
    agree = len(set(high)) == 1
    about["agree"] = agree
    return (None if agree else f"{sum(high)} of {len(high)} fold heads say high risk"), about


def doubt_of_classes(per_fold: np.ndarray, confidence: float, temperature: float) -> tuple[str | None, float, bool]:
    """Why an answer is not sure, None if it is; its calibrated probability; whether the heads agree.

    Args:
        per_fold: probabilities [F, C] of the fold heads.
    """
    mean = per_fold.mean(0)
    sure = float(calibrated(mean, temperature).max())
    agree = len(set(per_fold.argmax(1).tolist())) == 1
    if not agree:
        return "the fold heads disagree", sure, agree
    grey = sure < confidence or confidence == 1  # 1 means always, even where rounding makes a head perfectly sure
    return (f"probability {math.floor(sure * 1e4) / 1e4:g} is below {confidence:g}" if grey else None), sure, agree


def doubt_of_number(folds: np.ndarray, max_spread: float) -> str | None:
    """Why a number is not sure, None if it is.

    Args:
        folds: [F], what the heads say in the number's own unit; with ``max_spread`` 0 none is sure.
    """
    spread = float(folds.std())
    if spread <= max_spread and max_spread:
        return None
    return f"the fold heads differ by a standard deviation of {spread:.3g}, more than {max_spread:.3g}"
