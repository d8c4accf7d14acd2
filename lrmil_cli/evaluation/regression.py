"""How near predicted numbers come to the true ones (targets/README 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrmil_cli.evaluation.bootstrap import Interval, intervals_of

#: What is judged, in the order of the tables.
REGRESSION_METRICS = ("mae", "rmse", "r2", "pearson", "spearman")


def regression_metrics(truth: np.ndarray, said: np.ndarray) -> dict[str, float | None]:
    """:data:`REGRESSION_METRICS` of numbers [n] in one unit; None where undefined (a constant, fewer than two).

    R2 is ``1 - sum (y - p)^2 / sum (y - mean y)^2``: below 0 where the mean would have done better.
    """
    from scipy.stats import rankdata

    y, p = np.asarray(truth, float), np.asarray(said, float)
    if not len(y):
        return dict.fromkeys(REGRESSION_METRICS)
    error = p - y
    spread = float(((y - y.mean()) ** 2).sum())
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": 1 - float((error**2).sum()) / spread if spread > 0 else None,
        "pearson": _correlation(y, p),
        "spearman": _correlation(rankdata(y), rankdata(p)),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size > 0 else None


def regression_intervals(
    truth: np.ndarray,
    said: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    minus: np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """The metrics with percentile bootstrap intervals over patients.

    Args:
        minus: what a second model said of the same slides: differences from its metrics (paired).
    """
    y = np.asarray(truth, float)
    models = [np.asarray(p, float) for p in (said, minus) if p is not None]

    def statistics(rows: np.ndarray) -> list[float]:
        own = [[np.nan if v is None else v for v in regression_metrics(y[rows], p[rows]).values()] for p in models]
        return list(np.subtract.reduce(np.array(own), axis=0))

    found = intervals_of(statistics, patients, draws=draws, seed=seed, level=level)
    return dict(zip(REGRESSION_METRICS, found))


def bland_altman(truth: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """Bias and 95 % limits of agreement, ``mean +- 1.96 sd`` of ``said - truth`` (Bland and Altman 1986); n > 1."""
    d = np.asarray(said, float) - np.asarray(truth, float)
    bias, half = float(d.mean()), 1.96 * float(d.std(ddof=1))
    return {"bias": bias, "low": bias - half, "high": bias + half}
