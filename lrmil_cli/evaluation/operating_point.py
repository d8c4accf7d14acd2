"""An operating point that is fixed before: chosen on a model's own record, judged on others (evaluation/README 16)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.prediction_sets import CalibrationPatients

#: Methods for the interval of a share, and what scipy calls them.
INTERVALS: dict[str, Literal["wilson", "exact"]] = {"wilson": "wilson", "clopper-pearson": "exact"}
#: Thresholds at which a decision curve is drawn.
GRID = np.round(np.arange(0.01, 1.0, 0.01), 2)


@dataclass(frozen=True)
class Threshold:
    """A case is called positive from ``value`` on.

    Attributes:
        rule: ``0.5``, ``youden``, ``sensitivity=0.95``, or another number; patients: of the record it was chosen on, 0
            where it was given; sensitivity, specificity: on that record.
    """

    value: float
    rule: str
    patients: int = 0
    sensitivity: float | None = None
    specificity: float | None = None


@dataclass(frozen=True)
class Share:
    """``hits`` of ``n`` with the ends of its 95 % interval; None where n is 0."""

    hits: int
    n: int
    value: float | None
    low: float | None
    high: float | None


def choose_threshold(rule: str, record: CalibrationPatients | None, positive: int) -> Threshold:
    """The threshold that a rule gives.

    Args:
        rule: a number between 0 and 1, ``youden`` (the largest sum of sensitivity and specificity), or
            ``sensitivity=S`` (the highest threshold that keeps S).
        record: what the model's heads said of patients that they did not see; None where it is not known.

    Raises:
        UsageError: no such rule. InputError: the record is not known, or does not decide it.
    """
    name, _, text = rule.partition("=")
    number: float | None
    try:
        number = float(text if name == "sensitivity" else rule)
    except ValueError:
        number = None if rule == "youden" else float("nan")
    if number is not None and not 0 < number < 1:
        raise UsageError(f"--threshold {rule}: give a number between 0 and 1, youden, or sensitivity=0.95")
    if number is not None and name != "sensitivity":
        return Threshold(number, rule)
    if record is None:
        raise InputError(
            f"--threshold {rule} is chosen on the training record in the model file, which is not there (or of an "
            "earlier version); put the model file beside the predictions, or give a number"
        )
    p, hit = record.probabilities[:, positive], record.labels == positive
    if not hit.any() or hit.all():
        raise InputError(f"--threshold {rule}: the model's record holds patients of one class alone; give a number")
    if name == "sensitivity" and number is not None and (needed := int(np.ceil(1 / (1 - number) - 1e-9))) > hit.sum():
        raise InputError(
            f"--threshold {rule}: {needed} positive patients at least are needed to see it, the model's record has "
            f"{hit.sum()}; give a number, or a lower sensitivity"
        )
    cuts, sensitivity, specificity = _rates(p, hit)
    if name == "sensitivity":
        assert number is not None
        at = int(np.flatnonzero(sensitivity >= number - 1e-12).max())
    else:
        total = sensitivity + specificity
        best = np.flatnonzero(total >= total.max() - 1e-12)
        at = int(best[np.abs(cuts[best] - 0.5).argmin()])
    if specificity[at] == 0 or sensitivity[at] == 0:
        raise InputError(f"--threshold {rule}: no threshold decides it on the model's record; give a number")
    return Threshold(float(cuts[at]), rule, len(p), float(sensitivity[at]), float(specificity[at]))


def _rates(p: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds halfway between neighbouring probabilities, from the lowest on, with the sensitivity and specificity
    of each; below the first everything is positive."""
    values = np.unique(p)
    cuts = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2])
    said = p[None] >= cuts[:, None]
    return cuts, said[:, hit].mean(1), (~said[:, ~hit]).mean(1)


def share(hits: int, n: int, method: str = "wilson") -> Share:
    """A share with its interval, by Wilson (1927) or Clopper and Pearson (1934), from scipy."""
    from scipy.stats import binomtest

    if n == 0:
        return Share(0, 0, None, None, None)
    found = binomtest(int(hits), int(n)).proportion_ci(0.95, method=INTERVALS[method])
    return Share(int(hits), int(n), hits / n, float(found.low), float(found.high))


def shares_at(said: np.ndarray, hit: np.ndarray, method: str) -> dict[str, Share]:
    """Sensitivity, specificity, predictive values and accuracy of calling ``said`` positive.

    Args:
        said, hit: bool [n].
    """
    right = said == hit
    return {
        "sensitivity": share(int((said & hit).sum()), int(hit.sum()), method),
        "specificity": share(int((~said & ~hit).sum()), int((~hit).sum()), method),
        "ppv": share(int((said & hit).sum()), int(said.sum()), method),
        "npv": share(int((~said & ~hit).sum()), int((~said).sum()), method),
        "accuracy": share(int(right.sum()), len(hit), method),
    }


def net_benefit(p: np.ndarray, hit: np.ndarray, thresholds: Sequence[float] | np.ndarray = GRID) -> np.ndarray:
    """Net benefit (Vickers and Elkin 2006) of acting from each threshold on: ``TP / n - FP / n * t / (1 - t)``.

    Args:
        p: probability of the positive class, [n]; hit: bool [n].
    """
    t = np.asarray(thresholds)
    said = p[None] >= t[:, None]
    return (said & hit).mean(1) - (said & ~hit).mean(1) * t / (1 - t)
