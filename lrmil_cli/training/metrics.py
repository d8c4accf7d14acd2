"""Metrics of slide predictions (method 8.4). What is undefined is None, never 0."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

METRICS = ("accuracy", "auc", "balanced_accuracy", "f1_weighted", "brier", "log_loss")


def auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """ROC AUC: of class 1 for two classes, macro one-vs-rest for more; None where a class is missing.

    Args:
        labels: int [n]; probabilities: [n, C].
    """
    from sklearn.metrics import roc_auc_score

    present = np.unique(labels)
    classes = probabilities.shape[1]
    if len(present) < classes:
        return None
    if classes == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    return float(roc_auc_score(labels, probabilities, multi_class="ovr", average="macro", labels=range(classes)))


def evaluate(labels: Sequence[int] | np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """All metrics of one set of slides.

    Args:
        labels: int [n]; probabilities: [n, C], rows sum to 1.

    Returns:
        ``{name: value or None}`` in the order of :data:`METRICS`. Brier is the mean squared distance to the one-hot
        label summed over classes (for two classes twice the one-column form).
    """
    from sklearn.metrics import balanced_accuracy_score, f1_score

    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if not len(labels):
        return dict.fromkeys(METRICS)
    predicted = probabilities.argmax(1)
    one_hot = np.eye(probabilities.shape[1])[labels]
    picked = probabilities[np.arange(len(labels)), labels]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is only predicted is no news here
        balanced = float(balanced_accuracy_score(labels, predicted))
        f1 = float(f1_score(labels, predicted, average="weighted", zero_division=0))
    return {
        "accuracy": float((predicted == labels).mean()),
        "auc": auc(labels, probabilities),
        "balanced_accuracy": balanced,
        "f1_weighted": f1,
        "brier": float(((probabilities - one_hot) ** 2).sum(1).mean()),
        "log_loss": float(-np.log(np.clip(picked, 1e-15, 1)).mean()),
    }


def mean_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the defined values; sd is None for fewer than two."""
    defined = [v for v in values if v is not None]
    if not defined:
        return None, None
    return float(np.mean(defined)), float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def metrics_table(per_fold: dict[str, dict[str, float | None]], pooled: dict[str, float | None] | None = None):
    """DataFrame: one row a fold, then ``mean`` and ``sd`` over folds, then ``pooled`` over all out-of-fold slides."""
    import pandas as pd

    rows = [{"fold": k, **v} for k, v in per_fold.items()]
    both = {m: mean_sd([v[m] for v in per_fold.values()]) for m in METRICS}
    rows += [{"fold": "mean", **{m: b[0] for m, b in both.items()}}, {"fold": "sd", **{m: b[1] for m, b in both.items()}}]
    if pooled is not None:
        rows.append({"fold": "pooled", **pooled})
    return pd.DataFrame(rows, columns=["fold", *METRICS])


def show(value: float | None) -> str:
    """A metric for the terminal: three decimals, or "undefined"."""
    return "undefined" if value is None else f"{value:.3f}"
