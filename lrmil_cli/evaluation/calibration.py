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
#: Counts of cases that are worked on at a time: so many stay in the processor's cache.
IN_CACHE = 200_000


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


def calibration_errors(hit: np.ndarray, probability: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The expected calibration error (Naeini et al. 2015) of each draw: how far the bins that :func:`reliability` would
    make of it lie off, by cases.

    Args:
        hit: bool [n], whether it came true; probability: [n]; times: [draws, n], how often each case was drawn.
    """
    order = np.argsort(probability, kind="stable")
    p, drawn = probability[order], times[:, order]
    count = np.cumsum(drawn, 1)
    off = np.cumsum(np.pad(drawn * (p - hit[order]), ((0, 0), (1, 0))), 1)
    cases = count[:, -1:]
    bins = np.clip(cases // 15, 2, 10)
    edges = _quantiles(p, count, np.minimum(np.arange(1, 10) / bins, 1.0))
    ends = np.searchsorted(p, edges, side="right")
    ends[edges == p[(count > 0).argmax(1), None]] = 0  # an edge at the smallest parts nothing
    ends = np.pad(ends, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(p))))
    return np.abs(np.diff(np.take_along_axis(off, ends, 1), axis=1)).sum(1) / cases[:, 0]


def _quantiles(values: np.ndarray, count: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Quantiles [draws, k] at ``shares`` [draws, k], as ``np.quantile`` has them, of sorted values [n] of which a draw
    has ``count`` [draws, n] up to each."""
    at = (count[:, -1:] - 1) * shares
    low = np.floor(at)
    ranks = np.concatenate([low, np.ceil(at)], 1)
    index = np.stack([np.searchsorted(own, rank, side="right") for own, rank in zip(count, ranks)])
    below, above = np.split(values[index], 2, axis=1)
    return below + (above - below) * (at - low)


def recalibrations(hit: np.ndarray, probability: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Slope and intercept [draws, 2] of the logistic regression of what came true on the logit of its probability (Cox
    1958), of each draw.

    1 and 0 are perfect. A slope below 1: probabilities are too extreme; an intercept above 0: it comes true more often.
    NaN where there is no such fit: one of both never happens, or some probability parts them.

    Args:
        hit: bool [n]; probability: [n]; times: [draws, n], how often each case was drawn.
    """
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    logit, y = np.log(p / (1 - p)), hit.astype(float)
    mean, sd = logit.mean(), logit.std() or 1.0
    x = (logit - mean) / sd
    beta = np.full((len(times), 2), np.nan)
    fits = _overlap(x, hit, times)
    everyone = np.ones((1, len(x)))
    start = _logistic(x, y, everyone, np.zeros(2))[0] if _overlap(x, hit, everyone)[0] else np.zeros(2)
    beta[fits] = _logistic(x, y, times[fits], start)
    slope = beta[:, 0] / sd
    return np.stack([slope, beta[:, 1] - slope * mean], 1)


def _overlap(x: np.ndarray, hit: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Whether no threshold on x parts the hits of a draw from its others, and there are both, bool [draws]."""
    yes, no = (times > 0) & hit, (times > 0) & ~hit
    least = [np.where(own, x, np.inf).min(1) for own in (yes, no)]
    most = [np.where(own, x, -np.inf).max(1) for own in (yes, no)]
    return (least[0] < most[1]) & (least[1] < most[0])


def _logistic(x: np.ndarray, y: np.ndarray, times: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Slope and intercept [draws, 2] of y [n] on standardised x [n], each case drawn so often; ``start``: near them.

    Newton's method: scikit-learn's fit is the same and takes a hundred times as long, which counts over thousands of
    resamples. The loss is convex; a step that overshoots is halved.
    """
    beta, step = np.tile(start, (len(times), 1)), np.zeros((len(times), 2))
    best = np.full(len(times), np.inf)
    going = np.arange(len(times))
    for _ in range(100):
        w, new = times[going], beta[going] + step[going]
        z = new[:, :1] * x + new[:, 1:]
        loss = (w * (np.logaddexp(0, z) - y * z)).sum(1)
        better = loss <= best[going]
        step[going[~better]] /= 2
        at, w = going[better], w[better]
        beta[at], best[at] = new[better], loss[better]
        q = 1 / (1 + np.exp(-z[better]))
        short, bend = w * (y - q), w * q * (1 - q)
        gradient = np.stack([short @ x, short.sum(1)], 1)
        a, b, c = bend @ x**2 + 1e-12, bend @ x, bend.sum(1) + 1e-12
        (g, h), det = gradient.T, a * c - b * b
        step[at] = np.stack([c * g - b * h, a * h - b * g], 1) / det[:, None]
        there = np.abs(step[going]).max(1) < 1e-12
        there[better] |= np.abs(gradient).max(1) < 1e-9 * w.sum(1)
        going = going[~there]
        if not going.size:
            break
    return beta


def calibration_figures(cases: Cases, positive: int | None, *, draws: int, seed: int) -> dict[str, Interval]:
    """``slope, intercept, ece`` of some cases with 95 % bootstrap intervals over patients (evaluation/README 5).

    Args:
        positive: as :func:`answers` takes it.
    """
    hit, probability = answers(cases, positive)

    def figures(times: np.ndarray) -> np.ndarray:
        blocks = np.array_split(times, max(1, times.size // IN_CACHE))
        slopes, errors = ([f(hit, probability, own) for own in blocks] for f in (recalibrations, calibration_errors))
        return np.column_stack([np.concatenate(slopes), np.concatenate(errors)])

    found = dict(zip(FIGURES, intervals_of(figures, cases.patients, draws=draws, seed=seed)))
    error = found["ece"]
    if error.low is not None and error.value is not None:  # resampling scatters the bins: draws lie above the cohort
        found["ece"] = replace(error, low=min(error.low, error.value))
    return found
