"""What is judged of numbers and of survival, and how: the one place where these tasks part (targets/README 5, 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation import regression, survival
from lrmil_cli.evaluation.bootstrap import Interval, figure_intervals
from lrmil_cli.evaluation.metrics import mean_sd
from lrmil_cli.evaluation.predictions import Predictions
from lrmil_cli.evaluation.regression import REGRESSION_METRICS
from lrmil_cli.evaluation.resampled import Resampled
from lrmil_cli.evaluation.scores import Score
from lrmil_cli.evaluation.target_metrics import followed
from lrmil_cli.evaluation.target_predictions import GROUPS, TRUTH, curves, said_of_table
from lrmil_cli.targets.task import Task


@dataclass(frozen=True)
class TargetCases:
    """What is judged: one row a slide (or a patient).

    Attributes:
        frame: ``slide_id, patient_id, fold``, the columns of ``TRUTH``, and what the model says.
        times: at which its curves are known; horizons: at which AUC and Brier score are asked for.
    """

    task: Task
    frame: pd.DataFrame
    times: tuple[float, ...] = ()
    horizons: tuple[float, ...] = ()

    @property
    def patients(self) -> np.ndarray:
        return self.frame["patient_id"].to_numpy(str)

    def take(self, index: np.ndarray) -> TargetCases:
        return replace(self, frame=self.frame.iloc[index].reset_index(drop=True))


def cases_of(p: Predictions, horizons: Sequence[float] | None = None) -> TargetCases:
    """The slides of joined predictions.

    Args:
        horizons: None for the times of the predictions.
    """
    assert p.said is not None, "predictions of a number or of survival"
    rows = p.rows[["slide_id", "patient_id", "fold"]].reset_index(drop=True)
    truth = p.rows[list(TRUTH[p.task.kind])].reset_index(drop=True).astype(float)
    at = p.times if horizons is None else tuple(sorted(set(horizons)))
    return TargetCases(p.task, pd.concat([rows, truth, p.said], axis=1), p.times, at)


def cases_of_table(task: Task, header: dict[str, Any], rows: pd.DataFrame, where: str) -> TargetCases:
    """The slides of an out-of-fold table.

    Raises:
        InputError: the table does not say what its task needs.
    """
    said, times = said_of_table(task, header, rows, where)
    about = rows[["slide_id", "patient_id", "fold", *TRUTH[task.kind]]]
    return TargetCases(task, pd.concat([about, said], axis=1), times, times)


def at_level(cases: TargetCases, level: str) -> TargetCases:
    """The cases themselves at slide level; at patient level one a patient, with the mean of what is said of its slides,
    and the group of most of them (of as many, high).

    Risks of two folds have no common unit: of survival, a patient who was tested in several is one a fold.

    Raises:
        InputError: a patient whose slides differ in what is to be predicted.
    """
    if level == "slide":
        return cases
    frame = cases.frame.assign(fold=cases.frame["fold"].fillna(0))
    truth = list(TRUTH[cases.task.kind])
    by = frame.groupby("patient_id")[truth].nunique().max(axis=1)
    if (by > 1).any():
        way_out = "use --level slide, or correct" if cases.task.kind == "regression" else "correct"
        raise InputError(
            f"patient {by.idxmax()!r} has slides that differ in {' or '.join(truth)}; {way_out} the table of slides"
        )
    keys = ["patient_id", "fold"] if cases.task.kind == "survival" else ["patient_id"]
    if "group" in frame:
        frame["group"] = (frame["group"] == GROUPS[1]).astype(float)
    mean = frame.drop(columns="slide_id").groupby(keys, as_index=False).mean()
    if "group" in mean:
        mean["group"] = np.where(mean["group"] >= 0.5, GROUPS[1], GROUPS[0])
    if cases.frame["fold"].isna().any():
        mean["fold"] = None
    return replace(cases, frame=mean)


@dataclass(frozen=True)
class Kind:
    """How cases of a task are judged.

    Attributes:
        metrics: what may be asked for; figures at a horizon are asked for all at once (``auc``).
        compared: what two models are compared by unless the user chooses, and what the headline is about.
        grouped: what parts of a cohort are judged by; figures: each as a function of how often each row was drawn.
    """

    metrics: tuple[str, ...]
    compared: tuple[str, ...]
    grouped: tuple[str, ...]
    figures: Callable[[TargetCases], dict[str, Resampled]]


def _numbers(c: TargetCases) -> dict[str, Resampled]:
    return regression.figures(c.frame["label"].to_numpy(float), c.frame["predicted"].to_numpy(float))


def _survival(c: TargetCases) -> dict[str, Resampled]:
    return survival.figures(followed(c.frame), c.times, curves(c.frame), c.horizons)


KINDS = {
    "regression": Kind(REGRESSION_METRICS, ("mae", "rmse", "r2", "spearman"), ("mae", "r2", "spearman"), _numbers),
    "survival": Kind(
        ("c_harrell", "c_uno", "ibs", "auc", "brier"),
        ("c_harrell", "c_uno", "ibs", "auc", "brier"),
        ("c_harrell", "c_uno"),
        _survival,
    ),
}


#: What a receipt is about; figures at a horizon are for ``lrmil evaluate``.
RECEIPT_METRICS = {"regression": REGRESSION_METRICS, "survival": ("c_harrell", "c_uno", "ibs")}


def judged(
    c: TargetCases,
    *,
    other: TargetCases | None = None,
    metrics: Sequence[str] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Figures of cases with intervals over patients, or what they are higher than those of another model (paired).

    Args:
        metrics: of the task's own; None for all.
    """
    kind = KINDS[c.task.kind]
    wanted = kind.metrics if metrics is None else metrics
    own, minus = (
        None if m is None else {n: f for n, f in kind.figures(m).items() if n.partition("_at_")[0] in wanted}
        for m in (c, other)
    )
    assert own is not None
    return figure_intervals(own, c.patients, minus=minus, draws=draws, seed=seed)


def scores_of(slides: TargetCases, level: str, *, metrics: Sequence[str] | None, draws: int, seed: int) -> list[Score]:
    """Figures of one model: pooled with intervals, mean and sd over the folds of an out-of-fold table.

    Raises:
        InputError: as :func:`at_level`.
    """
    pooled = judged(at_level(slides, level), metrics=metrics, draws=draws, seed=seed)
    folds = slides.frame["fold"]
    parts = []
    if not folds.isna().any():
        parts = [at_level(slides.take(np.flatnonzero(folds == k)), level) for k in sorted(folds.unique())]
    each = [judged(p, metrics=metrics, draws=0, seed=seed) for p in parts]
    out = []
    for name, whole in pooled.items():
        values = [own[name].value for own in each]
        defined = sum(v is not None for v in values)
        reason = why_undefined(slides, name) if whole.value is None else ""
        out.append(Score(name, whole, *mean_sd(values), defined, len(each), reason))
    return out


def why_undefined(c: TargetCases, metric: str) -> str:
    """Why a figure of these cases is none."""
    if c.task.kind == "regression":
        return "the numbers, or what is said of them, are all the same"
    base, _, when = metric.partition("_at_")
    if base in ("c_harrell", "c_uno"):
        return "no two whose order is known"
    if base == "auc":
        return "nobody with the event until then, or nobody free of it for longer"
    if base == "ibs":
        return "fewer than two horizons that the curves reach"
    if not c.times or float(when) > c.times[-1] * (1 + 1e-9):
        return f"the curves end at {c.times[-1]:g}" if c.times else "the model knows no curves"
    return "nobody is known to be free of the event for longer"
