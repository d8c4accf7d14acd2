"""Curves of risk groups, the test between them and hazard ratios, patient by patient (targets/README 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.kaplan_meier import hazard_ratios, kaplan_meier, log_rank
from lrmil_cli.evaluation.survival import FEW_EVENTS, Followed
from lrmil_cli.evaluation.target_cases import TargetCases, at_level
from lrmil_cli.evaluation.target_metrics import followed
from lrmil_cli.evaluation.target_predictions import GROUPS
from lrmil_cli.files.manifest_columns import is_missing


def survival_detail(slides: TargetCases, adjust: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Any]:
    """What is computed of patients that are independent of each other, whatever the level of the metrics.

    A patient is the mean risk of its slides, and in the group of most of them. The groups are those of the
    predictions: no slide that is judged has a say in the cut between them.

    Args:
        adjust: column -> slide id -> its cell, of which hazard ratios are to be independent.

    Returns:
        in plain types: ``patients, events, few_events, repeated`` (patients who were tested in several folds and count
        once in each), ``follow_up`` (median, by reverse Kaplan-Meier), ``ticks``, ``groups``, ``log_rank`` (p),
        ``ratios``, ``adjust``.

    Raises:
        InputError: slides of a patient that differ in time, event or a word to adjust for.
        MachineError: lifelines is not installed.
    """
    cases = at_level(slides, "patient")
    f, high = followed(cases.frame), (cases.frame["group"] == GROUPS[1]).to_numpy()
    ticks = _ticks(float(f.times.max()))
    groups = []
    for name, own in (("high", high), ("low", ~high)):
        if own.any():
            curve = kaplan_meier(f.times[own], f.events[own], ticks)
            plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(curve).items()}
            groups.append({"name": name, "n": int(own.sum()), "events": int(f.events[own].sum()), **plain})
    ratios = [_ratio(f, None, of) for of in (high, None)]
    about = None
    if adjust:
        table = _beside(slides, cases.patients, adjust)
        there = table.notna().all(axis=1).to_numpy()
        about = {"columns": list(adjust), "left_out": int((~there).sum())}
        fewer = _take(f, there)
        ratios += [_ratio(fewer, table[there], of) for of in (high[there], None)]
    return {
        "patients": len(set(cases.patients)),
        "events": int(f.events.sum()),
        "few_events": bool(f.events.sum() < FEW_EVENTS),
        "repeated": bool(len(set(cases.patients)) < len(cases.patients)),
        "follow_up": None if f.events.all() else kaplan_meier(f.times, ~f.events).median,
        "ticks": ticks,
        "groups": groups,
        "log_rank": log_rank(f.times, f.events, high),
        "ratios": ratios,
        "adjust": about,
    }


def _ratio(f: Followed, beside: pd.DataFrame | None, high: np.ndarray | None) -> dict[str, Any]:
    """A fit, or why there is none."""
    columns = [] if beside is None else list(beside)
    about = {"of": "risk" if high is None else "group", "adjusted_for": columns, "n": len(f.times)}
    try:
        return {**about, "rows": hazard_ratios(f, high=high, adjust=beside), "reason": ""}
    except InputError as e:
        return {**about, "rows": [], "reason": str(e)}


def _take(f: Followed, index: np.ndarray) -> Followed:
    strata = None if f.strata is None else f.strata[index]
    return Followed(f.times[index], f.events[index], f.risks[index], f.patients[index], strata)


def _beside(slides: TargetCases, patients: np.ndarray, adjust: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """What columns say of patients, a row each: numbers, where all cells that say anything are, else text; missing
    where nobody says it. Of several slides the mean, or the one word."""
    own = slides.frame[["slide_id", "patient_id"]].drop_duplicates()
    out = {}
    for column, cells in adjust.items():
        said = own["slide_id"].map(dict(cells)).fillna("").str.strip()
        said = said.where(~said.map(is_missing))
        numbers = pd.to_numeric(said, errors="coerce")
        if numbers.notna().equals(said.notna()):
            out[column] = numbers.groupby(own["patient_id"]).mean()
            continue
        by = said.groupby(own["patient_id"])
        several = by.nunique() > 1
        if several.any():
            raise InputError(f"--adjust {column}: patient {several.idxmax()!r} has slides that differ in it")
        out[column] = by.first()
    return pd.DataFrame(out).reindex(patients)


def _ticks(last: float) -> list[float]:
    """Times at which numbers at risk are told: about five, round ones."""
    from matplotlib.ticker import MaxNLocator

    return [float(t) for t in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, last) if 0 <= t <= last]
