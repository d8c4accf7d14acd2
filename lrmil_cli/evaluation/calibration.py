"""Whether probabilities mean what they say: observed shares against them, calibration slope and intercept, ECE.

evaluation/README 5; what mends them is in ``head_calibration``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lrmil_cli.evaluation.bootstrap import Interval, intervals_of
from lrmil_cli.evaluation.scores import Cases

#: The figures of :func:`calibration_figures`, and their titles.
FIGURES = {"slope": "calibration slope", "intercept": "calibration intercept", "ece": "expected calibration error"}


@dataclass(frozen=True)
class Reliability:
    """Bins of cases by probability: mean probability, share that came true, cases."""

    predicted: np.ndarray
    observed: np.ndarray
    n: np.ndarray


def reliability(hit: np.ndarray, probability: np.ndarray) -> Reliability:
    """Observed share against predicted probability, in bins of about equal size (evaluation/README 5).

    Two to ten bins, of 15 cases at least where there are enough.

    Args:
        hit: bool [n], whether it came true; probability: [n].
    """
    bins = int(np.clip(len(hit) // 15, 2, 10))
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, bins + 1)))
    at = np.searchsorted(edges[1:-1], probability, side="left")
    n = np.bincount(at, minlength=max(1, len(edges) - 1))
    there = n > 0

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(at, values, minlength=len(n))[there] / n[there]

    return Reliability(mean(probability), mean(hit.astype(float)), n[there])


def answers(cases: Cases, positive: int | None) -> tuple[np.ndarray, np.ndarray]:
    """What calibration looks at: (came true [n], probability [n]) of class ``positive``; of None, the predicted one."""
    if positive is not None:
        return cases.labels == positive, cases.probabilities[:, positive]
    said = cases.probabilities.argmax(1)
    return said == cases.labels, cases.probabilities[np.arange(len(said)), said]


def calibration_error(hit: np.ndarray, probability: np.ndarray) -> float:
    """The expected calibration error (Naeini et al. 2015): how far the bins of :func:`reliability` lie off, by cases.

    Args:
        hit: bool [n], whether it came true; probability: [n].
    """
    bins = reliability(hit, probability)
    return float(np.abs(bins.predicted - bins.observed) @ bins.n / bins.n.sum())


def recalibration(hit: np.ndarray, probability: np.ndarray) -> tuple[float, float] | None:
    """Slope and intercept of the logistic regression of what came true on the logit of its probability (Cox 1958).

    1 and 0 are perfect. A slope below 1: probabilities are too extreme; an intercept above 0: it comes true more often.

    Args:
        hit: bool [n]; probability: [n].

    Returns:
        None where there is no such fit: one of both never happens, or some probability parts them.
    """
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    x, y = np.log(p / (1 - p)), hit.astype(float)
    yes, no = x[hit], x[~hit]
    if not len(yes) or not len(no) or yes.min() >= no.max() or no.min() >= yes.max():
        return None
    # Newton's method on the standardised logit: scikit-learn's fit is the same and takes ten times as long, which
    # counts over thousands of resamples. The loss is convex; a step that overshoots is halved.
    mean, sd = x.mean(), x.std()
    design = np.stack([(x - mean) / sd, np.ones_like(x)], 1)
    beta, best = np.zeros(2), np.inf
    step = np.zeros(2)
    for _ in range(100):
        z = design @ (beta + step)
        loss = float(np.logaddexp(0, z).sum() - y @ z)
        if loss > best:
            step /= 2
            if np.abs(step).max() < 1e-12:
                break
            continue
        beta, best = beta + step, loss
        q = 1 / (1 + np.exp(-z))
        gradient = design.T @ (y - q)
        if np.abs(gradient).max() < 1e-9 * len(x):
            break
        step = np.linalg.solve(design.T @ (design * (q * (1 - q))[:, None]) + 1e-12 * np.eye(2), gradient)
    slope = beta[0] / sd
    return float(slope), float(beta[1] - slope * mean)


def calibration_figures(cases: Cases, positive: int | None, *, draws: int, seed: int) -> dict[str, Interval]:
    """``slope, intercept, ece`` of some cases with 95 % bootstrap intervals over patients (evaluation/README 5).

    Args:
        positive: as :func:`answers` takes it.
    """
    hit, probability = answers(cases, positive)

    def figures(index: np.ndarray) -> tuple[float, float, float]:
        fit = recalibration(hit[index], probability[index]) or (np.nan, np.nan)
        return (*fit, calibration_error(hit[index], probability[index]))

    found = dict(zip(FIGURES, intervals_of(figures, cases.patients, draws=draws, seed=seed)))
    error = found["ece"]
    if error.low is not None and error.value is not None:  # resampling scatters the bins: draws lie above the cohort
        found["ece"] = replace(error, low=min(error.low, error.value))
    return found
