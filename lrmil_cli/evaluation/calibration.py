"""Whether probabilities mean what they say: observed shares against them, and the temperature that mends them.

evaluation/README 5, evaluation/README 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lrmil_cli.evaluation.scores import Cases

#: Temperatures that are sought; beyond them the few slides say more than they know.
LOWEST, HIGHEST = 0.2, 20.0


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


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature T that makes ``softmax(log p / T)`` fit the labels best (Guo et al. 2017).

    Targets are smoothed as Platt (1999) has them, ``(n_y + 1) / (n_y + C)`` for the true class of n_y slides and
    ``1 / (n_y + C)`` for each other, so that a few slides that are all right do not make the model infinitely sure.

    Args:
        labels: int [n]; probabilities: [n, C], of heads that were not trained on these slides.

    Returns:
        T between :data:`LOWEST` and :data:`HIGHEST`; 1 without slides.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)[labels]
    targets = np.repeat(1 / (counts + classes), classes).reshape(-1, classes)
    targets[np.arange(len(labels)), labels] += counts / (counts + classes)

    def loss(log_temperature: float) -> float:
        p = np.maximum(calibrated(probabilities, np.exp(log_temperature)), 1e-12)
        return -float((targets * np.log(p)).sum(1).mean())

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def calibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """``softmax(log p / T)`` of probabilities [..., C]; the order of the classes stays."""
    scaled = np.log(np.maximum(probabilities, 1e-12)) / temperature
    scaled = np.exp(scaled - scaled.max(-1, keepdims=True))
    return scaled / scaled.sum(-1, keepdims=True)
