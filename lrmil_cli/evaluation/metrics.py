"""Metrics of slide predictions (evaluation/README 1). What is undefined is None, never 0.

Plain numpy; the tests hold them against scikit-learn. Those of many resamples at once stand in ``resampled.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

#: A function of (labels int [n], probabilities [n, C]).
Metric = Callable[[np.ndarray, np.ndarray], "float | None"]


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Share of slides whose most probable class is the label."""
    return float((probabilities.argmax(1) == labels).mean()) if len(labels) else None


def auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """ROC AUC: of class 1 for two classes, macro one-vs-rest for more; None where a class is missing.

    Args:
        labels: int [n]; probabilities: [n, C].

    Raises:
        ValueError: a probability is not finite.
    """
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite")
    classes = probabilities.shape[1]
    own = [one_auc(labels == c, probabilities[:, c]) for c in ([1] if classes == 2 else range(classes))]
    defined = [v for v in own if v is not None]
    return float(np.mean(defined)) if len(defined) == len(own) else None


def one_auc(hit: np.ndarray, scores: np.ndarray) -> float | None:
    """Chance that a hit scores above a non-hit, a tie counting half (Mann-Whitney U / n1 n0); None without both kinds.

    Args:
        hit: bool [n]; scores: [n].
    """
    hits, others = scores[hit], np.sort(scores[~hit])
    pairs = len(hits) * len(others)
    if not pairs:
        return None
    below = np.searchsorted(others, hits, "left").sum() + np.searchsorted(others, hits, "right").sum()
    return float(below / 2 / pairs)


def balanced_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean over the classes that are there of the share of their slides that are predicted right."""
    counts = confusion(labels, probabilities)
    own = counts.sum(1)
    there = own > 0
    return float((counts.diagonal()[there] / own[there]).mean()) if there.any() else None


def f1_weighted(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """F1 of each class, weighted by its slides; a class never predicted right has F1 0."""
    if not len(labels):
        return None
    counts = confusion(labels, probabilities)
    own, said = counts.sum(1), counts.sum(0)
    f1 = 2 * counts.diagonal() / np.maximum(own + said, 1)
    return float((f1 * own).sum() / own.sum())


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean squared distance to the one-hot label, summed over classes (for two classes twice the one-column form)."""
    if not len(labels):
        return None
    picked = probabilities[np.arange(len(labels)), labels]
    return float(((probabilities**2).sum(1) - 2 * picked + 1).mean())


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean of -ln of the label's probability, which counts as 1e-15 at least."""
    if not len(labels):
        return None
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-15, 1)).mean())


#: By the name that options and tables know.
METRIC_FUNCTIONS: dict[str, Metric] = {
    "accuracy": accuracy,
    "auc": auc,
    "balanced_accuracy": balanced_accuracy,
    "f1_weighted": f1_weighted,
    "brier": brier,
    "log_loss": log_loss,
}
METRICS = tuple(METRIC_FUNCTIONS)
#: What pages call them.
TITLES = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "f1_weighted": "weighted F1",
    "brier": "Brier score",
    "log_loss": "log loss",
}
LOWER_IS_BETTER = ("brier", "log_loss")
#: The same of numbers and of survival.
TARGET_TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "c_harrell": "Harrell's C",
    "c_uno": "Uno's C",
    "ibs": "integrated Brier score",
}
TARGET_LOWER = ("mae", "rmse", "ibs")


def metric_title(metric: str) -> str:
    """What pages call a metric of any task; ``auc_at_12`` is the AUC at 12."""
    base, at, when = metric.partition("_at_")
    return (TITLES | TARGET_TITLES)[base] + (f" at {when}" if at else "")


def decimals(metric: str) -> str:
    """How a metric is written: three decimals; four digits of those in the unit of what is predicted."""
    return ".4g" if metric in ("mae", "rmse") else ".3f"


def lower_is_better(metric: str) -> bool:
    """Whether a metric of any task is an error."""
    return metric.partition("_at_")[0] in (*LOWER_IS_BETTER, *TARGET_LOWER)


def evaluate(labels: Sequence[int] | np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """All metrics of one set of slides: ``{name: value or None}`` in the order of :data:`METRICS`.

    Args:
        labels: int [n]; probabilities: [n, C], rows sum to 1.
    """
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    return {name: metric(labels, probabilities) for name, metric in METRIC_FUNCTIONS.items()}


def confusion(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Slides by label (row) and most probable class (column), int [C, C]."""
    classes = probabilities.shape[1]
    cells = np.bincount(labels * classes + probabilities.argmax(1), minlength=classes**2)
    return cells.reshape(classes, classes)


def mean_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the defined values; sd is None for fewer than two."""
    defined = [v for v in values if v is not None]
    if not defined:
        return None, None
    return float(np.mean(defined)), float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def metrics_table(
    per_fold: dict[str, dict[str, float | None]], pooled: dict[str, float | None] | None = None
) -> pd.DataFrame:
    """DataFrame: one row a fold, then ``mean`` and ``sd`` over folds, then ``pooled`` over all out-of-fold slides."""
    import pandas as pd

    rows = [{"fold": k, **v} for k, v in per_fold.items()]
    both = {m: mean_sd([v[m] for v in per_fold.values()]) for m in METRICS}
    rows += [
        {"fold": "mean", **{m: b[0] for m, b in both.items()}},
        {"fold": "sd", **{m: b[1] for m, b in both.items()}},
    ]
    if pooled is not None:
        rows.append({"fold": "pooled", **pooled})
    return pd.DataFrame(rows, columns=["fold", *METRICS])


def show(value: float | None, form: str = ".3f") -> str:
    """A metric for the terminal: three decimals, or "undefined"."""
    return "undefined" if value is None else f"{value:{form}}"
