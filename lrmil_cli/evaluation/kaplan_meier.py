"""Kaplan-Meier curves of risk groups, the log-rank test, hazard ratios: by lifelines (targets/README 6)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.evaluation.survival import Followed

if TYPE_CHECKING:
    import pandas as pd


def need_lifelines() -> None:
    """Say what is missing before it is used.

    Raises:
        MachineError: the library of survival analysis is not installed.
    """
    from importlib.util import find_spec

    if find_spec("lifelines") is None:
        raise MachineError("curves and hazard ratios need lifelines: pip install 'lrmil-cli[survival]'")


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
    need_lifelines()
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
    need_lifelines()
    from lifelines.statistics import multivariate_logrank_test

    if len(np.unique(groups)) < 2:
        return None
    return float(multivariate_logrank_test(np.asarray(times, float), groups, np.asarray(events, bool)).p_value)


def hazard_ratios(
    f: Followed, *, high: np.ndarray | None = None, adjust: pd.DataFrame | None = None
) -> list[dict[str, Any]]:
    """Cox regression on the risk, per standard deviation, or on the group, alone or beside other columns, by lifelines.

    Strata are kept: each has a baseline of its own, and the risk is standardised in each. Columns of text become 0/1
    columns against their first value.

    Args:
        high: bool [n], who is in the group of high risk: the ratio of the groups in place of that of the risk.

    Returns:
        a row a variable: ``name, hazard_ratio, low, high, p``; the first is ``risk`` or ``group``.

    Raises:
        InputError: it cannot be fitted (a column that says nothing, or tells all). MachineError: no lifelines.
    """
    need_lifelines()
    import pandas as pd
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError

    own = np.zeros(len(f.times))
    for index in f.blocks():
        r = f.risks[index] if high is None else high[index].astype(float)
        own[index] = r if high is not None else (r - r.mean()) / (r.std() if r.std() > 0 else 1.0)
    if not own.std() > 0:
        raise InputError(
            "the risk is the same for everybody; there is no hazard ratio"
            if high is None
            else "all are in one group; there is no hazard ratio"
        )
    table = pd.DataFrame({"risk" if high is None else "group": own})
    if adjust is not None:
        beside = pd.get_dummies(adjust.reset_index(drop=True), drop_first=True, dtype=float, prefix_sep=" ")
        table = pd.concat([table, beside.astype(float)], axis=1)
    names = list(table.columns)
    # Fitted by position, so that no name of a column clashes with another.
    table.columns = pd.Index([f"x{i}" for i in range(len(names))])
    table["time"], table["event"] = f.times, f.events.astype(int)
    strata = None
    if len(f.blocks()) > 1:
        table["stratum"], strata = f.strata, ["stratum"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = CoxPHFitter().fit(table, "time", "event", strata=strata).summary
    except (ConvergenceError, np.linalg.LinAlgError, ValueError) as e:
        raise InputError(f"no hazard ratio of {', '.join(names)}: {str(e).splitlines()[0]}") from e
    found = fitted[["exp(coef)", "exp(coef) lower 95%", "exp(coef) upper 95%", "p"]].to_numpy(float)
    if not np.isfinite(found).all():
        raise InputError(f"no hazard ratio of {', '.join(names)}: a column tells all events from all others")
    return [dict(zip(("name", "hazard_ratio", "low", "high", "p"), (n, *v))) for n, v in zip(names, found.tolist())]
