"""How sure a model may be of itself: temperature scaling (Guo et al. 2017) on held-out predictions.

evaluation/README 6.
"""

from __future__ import annotations

import numpy as np

#: Temperatures that are sought; beyond them the few slides say more than they know.
LOWEST, HIGHEST = 0.2, 20.0


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature T that makes ``softmax(log p / T)`` fit the labels best.

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
