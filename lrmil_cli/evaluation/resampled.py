"""The metrics of many resamples at once (evaluation/README 1 and 2).

A resample is how often each patient was drawn. Whatever sums over cases is then a product of matrices, and an AUC needs
its cases sorted once. The definitions stand in ``metrics.py``; the tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Times [draws, patients] -> the metric of each draw, NaN where it is undefined.
Resampled = Callable[[np.ndarray], np.ndarray]


def resampled(metric: str, labels: np.ndarray, probabilities: np.ndarray, patient: np.ndarray) -> Resampled:
    """A metric as a function of how often each patient was drawn.

    Args:
        metric: one of ``metrics.METRICS``; labels: int [n]; probabilities: [n, C]; patient: int [n], 0 to patients - 1.
    """
    if metric == "auc":
        return _auc(labels, probabilities, patient)
    if metric in ("balanced_accuracy", "f1_weighted"):
        return _of_confusion(metric, labels, probabilities, patient)
    picked = probabilities[np.arange(len(labels)), labels]
    each = {
        "accuracy": lambda: (probabilities.argmax(1) == labels).astype(float),
        "brier": lambda: (probabilities**2).sum(1) - 2 * picked + 1,
        "log_loss": lambda: -np.log(np.clip(picked, 1e-15, 1)),
    }[metric]()
    sums = np.stack([np.bincount(patient, each), np.bincount(patient)], 1)

    def mean(times: np.ndarray) -> np.ndarray:
        total, cases = (times @ sums).T
        return total / cases

    return mean


def _of_confusion(metric: str, labels: np.ndarray, probabilities: np.ndarray, patient: np.ndarray) -> Resampled:
    classes = probabilities.shape[1]
    cell = labels * classes + probabilities.argmax(1)
    cells = np.bincount(patient * classes**2 + cell, minlength=(patient.max() + 1) * classes**2)
    cells = cells.reshape(-1, classes**2).astype(float)

    def of(times: np.ndarray) -> np.ndarray:
        counts = (times @ cells).reshape(-1, classes, classes)
        own, said, right = counts.sum(2), counts.sum(1), counts.diagonal(axis1=1, axis2=2)
        if metric == "balanced_accuracy":
            return (right / np.maximum(own, 1)).sum(1) / (own > 0).sum(1)
        return (2 * right / np.maximum(own + said, 1) * own).sum(1) / own.sum(1)

    return of


def _auc(labels: np.ndarray, probabilities: np.ndarray, patient: np.ndarray) -> Resampled:
    classes = probabilities.shape[1]
    each = [_one_auc(labels == c, probabilities[:, c], patient) for c in ([1] if classes == 2 else range(classes))]
    return lambda times: np.mean([one(times) for one in each], axis=0)


def _one_auc(hit: np.ndarray, scores: np.ndarray, patient: np.ndarray) -> Resampled:
    """Mann-Whitney U by counts: each hit counts the drawn non-hits below it, and half of those at its score."""
    rank = np.argsort(scores[~hit], kind="stable")
    others, of_other, of_hit = scores[~hit][rank], patient[~hit][rank], patient[hit]
    left, right = (np.searchsorted(others, scores[hit], side) for side in ("left", "right"))

    def auc(times: np.ndarray) -> np.ndarray:
        out = np.full(len(times), np.nan)
        for n, drawn in enumerate(times):  # a draw fits the processor's cache, which many at a time do not
            hits, below = drawn[of_hit], np.zeros(len(others) + 1)
            np.cumsum(drawn[of_other], out=below[1:])
            if pairs := hits.sum() * below[-1]:
                out[n] = hits @ (below[left] + below[right]) / 2 / pairs
        return out

    return auc
