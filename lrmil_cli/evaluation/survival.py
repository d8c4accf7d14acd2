"""How well a predicted risk orders patients by the time of their event, and how true survival curves are.

Formulas and sources: targets/README 6. All of it is ours, since it is resampled thousands of times and risks are
compared within folds; the tests hold it against lifelines and torchsurv. Weights of censoring are those of the cohort
itself in every resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrmil_cli.evaluation.resampled import Resampled
from lrmil_cli.targets.outputs import at_times

#: Fewer events than this among those who are judged, and the report warns.
FEW_EVENTS = 10


@dataclass(frozen=True)
class Followed:
    """Patients (or slides) that were followed.

    Attributes:
        times: float [n]; events: bool [n], False where censored; risks: float [n], higher for sooner.
        patients: str [n]; strata: [n], only risks of one stratum are compared with each other: the folds of an
            out-of-fold table, whose heads' risks have no common unit; None for one.
    """

    times: np.ndarray
    events: np.ndarray
    risks: np.ndarray
    patients: np.ndarray
    strata: np.ndarray | None = None

    def blocks(self) -> list[np.ndarray]:
        """Which of them are compared with each other: their indices, a stratum each."""
        if self.strata is None:
            return [np.arange(len(self.times))]
        return [np.flatnonzero(self.strata == s) for s in np.unique(self.strata)]


def harrell_c(f: Followed) -> float | None:
    """Harrell's C: of pairs whose order is known, the share in which who had the event sooner had the higher risk.

    A pair counts if i had the event and j lived longer, or was censored at the same time; a tie in risk is half a hit.
    """
    return _value(_sooner(f, f.events.astype(float)), len(f.times))


def uno_c(f: Followed, until: float | None = None) -> float | None:
    """Uno's C (2011): as Harrell's, its pairs weighed by ``1 / G(t-)^2``, G the chance to be uncensored.

    Args:
        until: events from here on do not count, since few are left to compare with.
    """
    return _value(_sooner(f, _uno_weights(f, until)), len(f.times))


def curve_at(times: Sequence[float], survival: np.ndarray, horizon: float) -> np.ndarray | None:
    """What curves say of a horizon, float [n]: by a straight line between the times at which they are known, from 1
    at 0; None beyond the last.

    Args:
        survival: [n, T] at ``times``, which rise.
    """
    if not len(times) or horizon > times[-1] * (1 + 1e-9):
        return None
    return at_times(times, survival, np.array([horizon]))[:, 0]


def figures(
    f: Followed, times: Sequence[float] = (), survival: np.ndarray | None = None, horizons: Sequence[float] = ()
) -> dict[str, Resampled]:
    """All figures, each as a function of how often each row was drawn: ``c_harrell, c_uno, ibs, auc_at_<h>...,
    brier_at_<h>...``.

    ``ibs`` is the integral of the Brier score over the horizons (trapezoids) divided by the time between the first and
    the last that curves reach; undefined for a single one.

    Args:
        times, survival: as :func:`curve_at`; None where a model has no curves.
    """
    aucs = {f"auc_at_{h:g}": _auc(f, h) for h in horizons}
    said = {h: None if survival is None else curve_at(times, survival, h) for h in horizons}
    scores = {h: np.full(len(f.times), np.nan) if s is None else _brier(f, s, h) for h, s in said.items()}
    at = sorted(h for h, s in scores.items() if np.isfinite(s).all())
    whole = np.full(len(f.times), np.nan)
    if len(at) > 1:
        rows = np.array([scores[h] for h in at])
        whole = (np.diff(at)[:, None] * (rows[1:] + rows[:-1]) / 2).sum(0) / (at[-1] - at[0])
    return {
        "c_harrell": _sooner(f, f.events.astype(float)),
        "c_uno": _sooner(f, _uno_weights(f)),
        "ibs": _mean(whole),
        **aucs,
        **{f"brier_at_{h:g}": _mean(s) for h, s in scores.items()},
    }


def _value(figure: Resampled, n: int) -> float | None:
    value = float(figure(np.ones((1, n)))[0])
    return value if np.isfinite(value) else None


def uncensored(f: Followed, at: np.ndarray, before: bool = True) -> np.ndarray:
    """G at each time: the Kaplan-Meier chance not to have been censored before it, or up to it.

    Who has the event at a time is taken to leave before who is censored at it.
    """
    steps = np.unique(f.times[~f.events])
    censored = np.array([((f.times == t) & ~f.events).sum() for t in steps], float)
    at_risk = np.array([(f.times > t).sum() for t in steps], float) + censored
    g = np.concatenate([[1.0], np.cumprod(1 - censored / at_risk)])
    return g[np.searchsorted(steps, at, side="left" if before else "right")]


def _uno_weights(f: Followed, until: float | None = None) -> np.ndarray:
    counted = f.events & (f.times < until if until is not None else True)
    return np.where(counted, 1 / np.maximum(uncensored(f, f.times), 1e-12) ** 2, 0.0)


def _sooner(f: Followed, weights: np.ndarray) -> Resampled:
    """Share of hits among pairs (i, j) of one stratum whose order is known, weighed by that of i."""
    pairs = []
    for index in f.blocks():
        t, happened = f.times[index], f.events[index]
        sooner = (t[:, None] < t) | ((t[:, None] == t) & ~happened)
        pairs.append((index, sooner * (weights[index] * happened)[:, None]))
    return _share(f, pairs)


def _auc(f: Followed, horizon: float) -> Resampled:
    case = f.events & (f.times <= horizon)
    weights = np.where(case, 1 / np.maximum(uncensored(f, f.times), 1e-12), 0.0)
    return _share(f, [(i, weights[i][:, None] * (f.times[i] > horizon)) for i in f.blocks()])


def _share(f: Followed, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Resampled:
    """``sum of weights of pairs in which i has the higher risk / sum of all``; NaN without a pair.

    Args:
        pairs: rows of a stratum [m], and weights [m, m] of their pairs (i, j).
    """
    both = []
    for index, weights in pairs:
        r = f.risks[index]
        both.append((index, weights, weights * np.where(r[:, None] > r, 1.0, np.where(r[:, None] == r, 0.5, 0.0))))

    def of(drawn: np.ndarray) -> np.ndarray:
        whole, hit = np.zeros(len(drawn)), np.zeros(len(drawn))
        for index, weights, hits in both:
            own = drawn[:, index]
            whole += ((own @ weights) * own).sum(1)
            hit += ((own @ hits) * own).sum(1)
        return np.divide(hit, whole, out=np.full(len(drawn), np.nan), where=whole > 0)

    return of


def _brier(f: Followed, survival: np.ndarray, horizon: float) -> np.ndarray:
    """What each row adds to the Brier score, float [n]; NaN where nobody is known to be free of the event for longer
    and somebody was censored before."""
    happened, free = f.events & (f.times <= horizon), f.times > horizon
    if not free.any() and (~f.events).any():
        return np.full(len(f.times), np.nan)
    weights = np.where(happened, 1 / np.maximum(uncensored(f, f.times), 1e-12), 0.0)
    weights += free / max(float(uncensored(f, np.array([horizon]), before=False)[0]), 1e-12)
    return weights * (free - np.asarray(survival, float)) ** 2


def _mean(each: np.ndarray) -> Resampled:
    return lambda drawn: (drawn @ each) / drawn.sum(1)
