"""Percentile bootstrap over patients: how far a metric, or a difference of two, depends on who was in the cohort.

Slides of one patient resemble each other, so patients are drawn, each with all slides (a cluster bootstrap); drawing
slides would give intervals that are too narrow. Resamples depend on the seed and the patients only, hence are the same
for every metric and model (evaluation/README 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lrmil_cli.evaluation.metrics import Metric


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval.

    Attributes:
        value: of the cohort itself; None if undefined.
        low, high: ends of the interval; None if there is none (no value, fewer than two patients, no draw that counts).
        undefined: resamples left out because the metric is undefined in them.
    """

    value: float | None
    low: float | None
    high: float | None
    undefined: int


def interval(
    metric: Metric,
    labels: Sequence[int] | np.ndarray,
    probabilities: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """A metric and its percentile bootstrap interval over patients.

    Args:
        metric: function of (labels, probabilities), as in ``metrics.METRIC_FUNCTIONS``; labels: int [n];
        probabilities: [n, C]; patients: [n], whose slide it is; draws: resamples, 0 for none; level: 0.95 for 95 %.
    """
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    return _interval(lambda i: metric(labels[i], probabilities[i]), patients, draws, seed, level)


def paired(
    metric: Metric,
    labels: Sequence[int] | np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """``metric(a) - metric(b)`` of two models on the same slides, both on the same resamples.

    Args:
        a, b: probabilities [n, C] of the two models; the rest as :func:`interval`.
    """
    labels = np.asarray(labels, dtype=np.int64)
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)

    def difference(i: np.ndarray) -> float | None:
        own, other = metric(labels[i], a[i]), metric(labels[i], b[i])
        return None if own is None or other is None else own - other

    return _interval(difference, patients, draws, seed, level)


def _interval(
    statistic: Callable[[np.ndarray], float | None],
    patients: Sequence[str] | np.ndarray,
    draws: int,
    seed: int,
    level: float,
) -> Interval:
    value = statistic(np.arange(len(patients)))
    if value is None:
        return Interval(None, None, None, draws)
    if len(set(np.asarray(patients).tolist())) < 2:  # every resample would be the one patient again
        return Interval(value, None, None, 0)
    drawn = [statistic(i) for i in resamples(patients, draws, seed)]
    defined = [v for v in drawn if v is not None]
    if not defined:
        return Interval(value, None, None, draws)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), draws - len(defined))


def resamples(patients: Sequence[str] | np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Slide indices of each resample: as many patients as there are, drawn with replacement, each with all slides."""
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(patient, kind="stable")
    slides = np.bincount(patient)
    first = np.cumsum(slides) - slides
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        drawn = rng.integers(len(slides), size=len(slides))
        n = slides[drawn]
        # 0, 1, .. within the run of slides of each drawn patient
        within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        yield order[np.repeat(first[drawn], n) + within]
