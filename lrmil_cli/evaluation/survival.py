"""How well a predicted risk orders patients by the time of their event, and how true survival curves are.

Formulas and sources: targets/README 6. Concordance is ours, since it is resampled thousands of times and kept
within folds; what has inverse weights of censoring is computed by torchsurv, curves and hazard ratios by lifelines.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.evaluation.bootstrap import Interval, intervals_of

if TYPE_CHECKING:
    import pandas as pd

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


def need(library: str) -> None:
    """Say what is missing before it is used.

    Raises:
        MachineError: the library of survival analysis is not installed.
    """
    from importlib.util import find_spec

    if find_spec(library) is None:
        raise MachineError(f"{library} is not installed; pip install 'lrmil-cli[survival]'")


def concordance_tables(f: Followed) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs count, and how they came out: float [n, n] each, row i had the event first.

    A pair counts if i had the event and j lived longer, or was censored at the same time; a tie in risk is half a hit.
    """
    sooner = (f.times[:, None] < f.times) | ((f.times[:, None] == f.times) & ~f.events)
    counts = f.events[:, None] & sooner
    if f.strata is not None:
        counts &= f.strata[:, None] == f.strata
    hits = np.where(f.risks[:, None] > f.risks, 1.0, np.where(f.risks[:, None] == f.risks, 0.5, 0.0))
    return counts.astype(float), counts * hits


def harrell_c(f: Followed) -> float | None:
    """Harrell's C: of pairs whose order is known, the share in which who had the event sooner had the higher risk."""
    counts, hits = concordance_tables(f)
    return float(hits.sum() / counts.sum()) if counts.any() else None


def uno_c(f: Followed, until: float | None = None) -> float | None:
    """Uno's C: as Harrell's, its pairs weighed by :func:`uno_weights`."""
    counts, hits = concordance_tables(f)
    weights = uno_weights(f.times, f.events, until)
    whole = float((weights @ counts).sum())
    return float((weights @ hits).sum()) / whole if whole > 0 else None


def uno_weights(times: np.ndarray, events: np.ndarray, until: float | None = None) -> np.ndarray:
    """Row weights of Uno's C, float [n]: ``1 / G(t-)^2`` of those with an event before ``until``, else 0.

    G is the Kaplan-Meier estimate of staying uncensored. Uno et al. 2011.
    """
    free = _uncensored(times, events)
    counted = events & (free > 0) & (times < until if until is not None else True)
    return np.where(counted, 1 / np.maximum(free, 1e-12) ** 2, 0.0)


def _uncensored(times: np.ndarray, events: np.ndarray) -> np.ndarray:
    """G(t-) at each time: the Kaplan-Meier chance not to have been censored before it; who has the event at a time is
    taken to leave before who is censored at it."""
    g = np.ones(len(times))
    alive = 1.0
    for t in np.unique(times):
        g[times == t] = alive
        censored = int(((times == t) & ~events).sum())
        at_risk = int((times > t).sum()) + censored
        if censored:
            alive *= 1 - censored / at_risk
    return g


def c_intervals(
    f: Followed,
    *,
    minus: np.ndarray | None = None,
    until: float | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """``harrell`` and ``uno`` C with bootstrap intervals over patients.

    Uno's weights are those of the cohort itself in every resample.

    Args:
        minus: risks of a second model for the same rows: differences from its C (paired).
        until: events later than this do not count in Uno's C, since few are left to compare with.
    """
    tables = [concordance_tables(g) for g in ([f] if minus is None else [f, _with_risks(f, minus)])]
    weights = uno_weights(f.times, f.events, until)[:, None]

    def statistics(rows: np.ndarray) -> list[float]:
        times = np.bincount(rows, minlength=len(f.times)).astype(float)
        own = []
        for counts, hits in tables:
            for w in (1.0, weights):
                whole = times @ (w * counts) @ times
                own.append(times @ (w * hits) @ times / whole if whole > 0 else np.nan)
        return own[:2] if minus is None else [own[0] - own[2], own[1] - own[3]]

    return dict(zip(("harrell", "uno"), intervals_of(statistics, f.patients, draws=draws, seed=seed, level=level)))


def _with_risks(f: Followed, risks: np.ndarray) -> Followed:
    return Followed(f.times, f.events, np.asarray(risks, float), f.patients, f.strata)


def auc_at(f: Followed, horizons: Sequence[float]) -> list[float | None]:
    """Cumulative/dynamic AUC at each horizon, weighted by the inverse chance of staying uncensored (Uno et al. 2007).

    Of those with the event until then against those without it for longer; None where one kind is missing.

    Raises:
        MachineError: torchsurv is not installed.
    """
    need("torchsurv")
    import torch
    from torchsurv.metrics.auc import Auc
    from torchsurv.stats.ipcw import get_ipcw

    at = np.asarray(horizons, float)
    known = np.array([(f.events & (f.times <= h)).any() and (f.times > h).any() for h in at], bool)
    found: list[float | None] = [None] * len(at)
    if known.any():
        event, time = torch.from_numpy(f.events.astype(bool)), torch.from_numpy(f.times.astype(np.float64))
        some = torch.from_numpy(at[known])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = Auc()(
                torch.from_numpy(f.risks.astype(np.float64)),
                event,
                time,
                new_time=some,
                weight=get_ipcw(event, time).double(),
                weight_new_time=get_ipcw(event, time, some).double(),
            )
        for i, v in zip(np.flatnonzero(known), values.flatten().tolist()):
            found[i] = float(v) if np.isfinite(v) else None
    return found


def brier_at(f: Followed, survival: np.ndarray, horizons: Sequence[float]) -> tuple[list[float], float | None]:
    """Brier score at each horizon and its integral over them, of survival curves (Graf et al. 1999).

    Args:
        survival: [n, H], what a model says of being free of the event at each horizon.

    Returns:
        scores [H]; their integral divided by the time between first and last horizon, None for a single one.

    Raises:
        MachineError: torchsurv is not installed.
    """
    need("torchsurv")
    import torch
    from torchsurv.metrics.brier_score import BrierScore
    from torchsurv.stats.ipcw import get_ipcw

    event, time = torch.from_numpy(f.events.astype(bool)), torch.from_numpy(f.times.astype(np.float64))
    at = torch.as_tensor(list(horizons), dtype=torch.float64)
    judge = BrierScore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = judge(
            torch.from_numpy(np.asarray(survival, np.float64)),
            event,
            time,
            new_time=at,
            weight=get_ipcw(event, time).double(),
            weight_new_time=get_ipcw(event, time, at).double(),
        )
        whole = float(judge.integral()) if len(at) > 1 else None
    return [float(v) for v in scores.flatten()], whole


@dataclass(frozen=True)
class Curve:
    """A Kaplan-Meier curve: steps of ``times`` and ``survival`` with the ends of its 95 % interval; numbers at risk at
    the ticks asked for; median, None if not reached."""

    times: np.ndarray
    survival: np.ndarray
    low: np.ndarray
    high: np.ndarray
    at_risk: list[int]
    median: float | None


def kaplan_meier(times: np.ndarray, events: np.ndarray, ticks: Sequence[float] = ()) -> Curve:
    """Kaplan-Meier estimate with log-log intervals (Greenwood), by lifelines.

    Raises:
        MachineError: lifelines is not installed.
    """
    need("lifelines")
    from lifelines import KaplanMeierFitter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = KaplanMeierFitter().fit(np.asarray(times, float), np.asarray(events, bool))
    interval = fitted.confidence_interval_survival_function_.to_numpy()
    median = float(fitted.median_survival_time_)
    return Curve(
        fitted.survival_function_.index.to_numpy(float),
        fitted.survival_function_.to_numpy().ravel(),
        interval[:, 0],
        interval[:, 1],
        [int((np.asarray(times) >= t).sum()) for t in ticks],
        median if np.isfinite(median) else None,
    )


def log_rank(times: np.ndarray, events: np.ndarray, groups: np.ndarray) -> float | None:
    """p of the log-rank test between groups, by lifelines; None for a single group.

    Raises:
        MachineError: lifelines is not installed.
    """
    need("lifelines")
    from lifelines.statistics import multivariate_logrank_test

    if len(np.unique(groups)) < 2:
        return None
    return float(multivariate_logrank_test(np.asarray(times, float), groups, np.asarray(events, bool)).p_value)


def hazard_ratios(f: Followed, adjust: pd.DataFrame | None = None) -> list[dict[str, Any]]:
    """Cox regression on the risk (per standard deviation), alone or beside other columns, by lifelines.

    Strata are kept: each has a baseline of its own. Columns of text become 0/1 columns against their first value.

    Returns:
        a row a variable: ``name, hazard_ratio, low, high, p``; the first is ``risk``.

    Raises:
        InputError: it cannot be fitted (a column that says nothing, or tells all). MachineError: no lifelines.
    """
    need("lifelines")
    import pandas as pd
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError

    sd = float(f.risks.std())
    if not sd > 0:
        raise InputError("the risk is the same for everybody; there is no hazard ratio")
    table = pd.DataFrame({"risk": (f.risks - f.risks.mean()) / sd})
    if adjust is not None:
        own = pd.get_dummies(adjust.reset_index(drop=True), drop_first=True, dtype=float)
        table = pd.concat([table, own.astype(float)], axis=1)
    names = list(table.columns)
    table["time of it"], table["event of it"] = f.times, f.events.astype(int)
    strata = None
    if f.strata is not None and len(np.unique(f.strata)) > 1:
        table["stratum of it"], strata = f.strata, ["stratum of it"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = CoxPHFitter().fit(table, "time of it", "event of it", strata=strata).summary
    except (ConvergenceError, np.linalg.LinAlgError, ValueError) as e:
        raise InputError(f"no hazard ratio of {', '.join(names)}: {str(e).splitlines()[0]}") from e
    return [
        {
            "name": name,
            "hazard_ratio": float(fitted.loc[name, "exp(coef)"]),
            "low": float(fitted.loc[name, "exp(coef) lower 95%"]),
            "high": float(fitted.loc[name, "exp(coef) upper 95%"]),
            "p": float(fitted.loc[name, "p"]),
        }
        for name in names
    ]


def risk_groups(risks: np.ndarray, cuts: Sequence[float]) -> np.ndarray:
    """int [n]: the group of each risk by cut points that come from training or validation slides, 0 the lowest."""
    return np.searchsorted(np.asarray(cuts, float), np.asarray(risks, float), side="right").astype(np.int64)
