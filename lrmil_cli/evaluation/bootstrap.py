"""Percentile bootstrap over patients: how far a metric, or a difference of two, depends on who was in the cohort.

Slides of one patient resemble each other, so patients are drawn, each with all slides (a cluster bootstrap); drawing
slides would give intervals that are too narrow. Resamples depend on the seed and the patients only, hence are the same
for every metric and model (evaluation/README 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lrmil_cli.evaluation.metrics import METRIC_FUNCTIONS
from lrmil_cli.evaluation.resampled import Resampled, resampled
from lrmil_cli.progress import phase

#: Counts of patients that are held at a time (16 MB), and resamples at most, so that one sees how far it is.
CHUNK, AT_A_TIME = 2_000_000, 200


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


def intervals(
    metrics: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    probabilities: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    minus: np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Metrics and their percentile bootstrap intervals over patients, all on the same resamples.

    Args:
        metrics: of ``metrics.METRICS``; labels: int [n]; probabilities: [n, C]; patients: [n], whose slide it is.
        minus: probabilities [n, C] of a second model on the same slides: differences from its metrics (paired).
        draws: resamples, 0 for none; level: 0.95 for 95 %.
    """
    labels, whose = np.asarray(labels, dtype=np.int64), np.asarray(patients)
    models = [np.asarray(p, dtype=np.float64) for p in (probabilities, minus) if p is not None]
    values: dict[str, float | None] = {}
    for m in metrics:
        own = [v for p in models if (v := METRIC_FUNCTIONS[m](labels, p)) is not None]
        values[m] = float(np.subtract.reduce(own)) if len(own) == len(models) else None
    names, patient = np.unique(whose, return_inverse=True)
    if len(names) < 2:  # every resample would be the one patient again
        return {m: Interval(v, None, None, draws if v is None else 0) for m, v in values.items()}
    defined = [m for m, v in values.items() if v is not None]
    parts: dict[str, list[np.ndarray]] = {m: [] for m in defined}
    functions = {m: [resampled(m, labels, p, patient) for p in models] for m in defined}
    for times in resamples(len(names), draws, seed):
        for m in defined:
            parts[m].append(np.subtract.reduce([f(times) for f in functions[m]]))
    return {m: _interval(v, np.concatenate(parts.get(m) or [np.empty(0)]), draws, level) for m, v in values.items()}


def intervals_of(
    statistics: Callable[[np.ndarray], np.ndarray],
    patients: Sequence[str] | np.ndarray,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """As :func:`intervals`, of anything that is computed from how often each slide was drawn, on the same resamples.

    Args:
        statistics: times [some draws, n] -> values [some draws, k], NaN where undefined.
        patients: [n], whose slide it is.
    """
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    own = [float(v) if np.isfinite(v) else None for v in statistics(np.ones((1, len(patient))))[0]]
    if len(names) < 2:
        return [Interval(v, None, None, draws if v is None else 0) for v in own]
    drawn = [statistics(some[:, patient]) for some in (resamples(len(names), draws, seed) if draws else ())]
    columns = np.concatenate([np.empty((0, len(own))), *drawn]).T
    return [
        Interval(None, None, None, draws) if v is None else _interval(v, c, draws, level) for v, c in zip(own, columns)
    ]


def figure_intervals(
    own: dict[str, Resampled],
    patients: np.ndarray,
    *,
    minus: dict[str, Resampled] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Figures, each a function of how often each row was drawn, with percentile bootstrap intervals over patients.

    Args:
        minus: those of a second model for the same rows: differences from it (paired).
    """

    def statistics(drawn: np.ndarray) -> np.ndarray:
        of = [np.stack([f(drawn) for f in model.values()], 1) for model in (own, minus) if model is not None]
        return np.subtract.reduce(of)

    return dict(zip(own, intervals_of(statistics, patients, draws=draws, seed=seed)))


def _interval(value: float | None, drawn: np.ndarray, draws: int, level: float) -> Interval:
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return Interval(value, None, None, draws)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), draws - len(known))


def resamples(patients: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each patient was drawn, float64 [some draws, patients]: as many as there are, with replacement."""
    rng = np.random.default_rng(seed)
    some = max(1, min(AT_A_TIME, CHUNK // patients))
    with phase("bootstrap", draws, "draws") as told:
        for start in range(0, draws, some):
            drawn = (rng.integers(patients, size=patients) for _ in range(min(some, draws - start)))
            yield np.array([np.bincount(d, minlength=patients) for d in drawn], dtype=np.float64)
            told.advance(min(some, draws - start))
