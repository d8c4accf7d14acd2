"""How near predicted numbers come to the true ones (targets/README 5)."""

from __future__ import annotations

import numpy as np

from lrmil_cli.evaluation.resampled import Resampled

#: What is judged, in the order of the tables.
REGRESSION_METRICS = ("mae", "rmse", "r2", "pearson", "spearman")


def regression_metrics(truth: np.ndarray, said: np.ndarray) -> dict[str, float | None]:
    """:data:`REGRESSION_METRICS` of numbers [n] in one unit; None where undefined (a constant, fewer than two).

    R2 is ``1 - sum (y - p)^2 / sum (y - mean y)^2``: below 0 where the mean would have done better.
    """
    if not len(truth):
        return dict.fromkeys(REGRESSION_METRICS)
    once = np.ones((1, len(truth)))
    values = {name: float(f(once)[0]) for name, f in figures(truth, said).items()}
    return {name: v if np.isfinite(v) else None for name, v in values.items()}


def figures(truth: np.ndarray, said: np.ndarray) -> dict[str, Resampled]:
    """The metrics, each as a function of how often each row was drawn."""
    y, p = np.asarray(truth, float), np.asarray(said, float)
    error = p - y

    def mean(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return (drawn * values).sum(1) / drawn.sum(1)

    def r2(drawn: np.ndarray) -> np.ndarray:
        spread = mean((y - mean(y, drawn)[:, None]) ** 2, drawn)
        return 1 - _divided(mean(error**2, drawn), spread, float(y.std()))

    return {
        "mae": lambda drawn: mean(np.abs(error), drawn),
        "rmse": lambda drawn: np.sqrt(mean(error**2, drawn)),
        "r2": r2,
        "pearson": lambda drawn: _correlation(y, p, drawn),
        "spearman": lambda drawn: _correlation(_ranks(y, drawn), _ranks(p, drawn), drawn),
    }


def _divided(above: np.ndarray, below: np.ndarray, scale: float) -> np.ndarray:
    """NaN where ``below``, a variance of numbers of such a spread, is 0 but for rounding."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 1e-20 * scale**2)


def _correlation(a: np.ndarray, b: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Pearson's, of numbers [n] or [draws, n]."""
    whole = drawn.sum(1, keepdims=True)
    a, b = (v - (drawn * v).sum(1, keepdims=True) / whole for v in (a, b))
    squares = [(drawn * v**2).sum(1) for v in (a, b)]
    size = np.sqrt(squares[0] * squares[1])
    known = (squares[0] > 1e-20 * np.abs(a).max(initial=0) ** 2) & (squares[1] > 1e-20 * np.abs(b).max(initial=0) ** 2)
    return np.divide((drawn * a * b).sum(1), size, out=np.full(len(drawn), np.nan), where=known & (size > 0))


def _ranks(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Ranks among what was drawn, the mean of those that are tied: [draws, n]."""
    levels, level = np.unique(values, return_inverse=True)
    counts = np.zeros((len(levels), len(drawn)))
    np.add.at(counts, level, drawn.T)
    upto = np.cumsum(counts, 0)
    return (upto - (counts - 1) / 2)[level].T


def bland_altman(truth: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """Bias and 95 % limits of agreement, ``mean +- 1.96 sd`` of ``said - truth`` (Bland and Altman 1986); n > 1."""
    d = np.asarray(said, float) - np.asarray(truth, float)
    bias, half = float(d.mean()), 1.96 * float(d.std(ddof=1))
    return {"bias": bias, "low": bias - half, "high": bias + half}
