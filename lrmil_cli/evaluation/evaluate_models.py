"""An evaluation of one or several models, computed from their predictions; nothing is written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lrmil_cli.evaluation.bootstrap import Interval
from lrmil_cli.evaluation.calibration import calibration_figures
from lrmil_cli.evaluation.external import External
from lrmil_cli.evaluation.join_predictions import common
from lrmil_cli.evaluation.metrics import METRICS
from lrmil_cli.evaluation.prediction_sets import SetFigures, set_figures
from lrmil_cli.evaluation.predictions import SITE, Predictions
from lrmil_cli.evaluation.scores import (
    COMPARED,
    Cases,
    ClassScore,
    Score,
    at_level,
    differences,
    majority,
    metric_table,
    per_class,
)
from lrmil_cli.evaluation.subgroups import Subgroup, subgroups
from lrmil_cli.evaluation.tiles_read import Curve, cascade_curve
from lrmil_cli.progress import phase

#: Up to so many models, each is compared with each; of more, each with the first.
ALL_PAIRS = 4
#: Class names of a survival-status task, as they stand in TCGA, cBioPortal and the like.
STATUS = frozenset(
    ("alive", "dead", "living", "deceased", "died", "survived")
    + ("event", "no event", "censored", "0:living", "1:deceased")
)


@dataclass(frozen=True)
class ModelEvaluation:
    """One model: its predictions, the cases at the level asked for, and what came of them.

    Attributes:
        calibration: figures of the probabilities as they are (``given``) and before calibration (``raw``).
        sets: what its prediction sets reach, slide by slide; None where it has none.
        groups: column -> the cases by what it says; external: what ``--profile external`` adds, None without it.
    """

    predictions: Predictions
    cases: Cases
    scores: list[Score]
    classes: list[ClassScore]
    majority: tuple[str, float]
    calibration: dict[str, dict[str, Interval]]
    sets: SetFigures | None
    groups: dict[str, list[Subgroup]]
    external: External | None = None

    @property
    def name(self) -> str:
        return self.predictions.name

    @property
    def curve(self) -> Curve | None:
        """Accuracy against HR tiles, over slides, of a cascade."""
        own = self.predictions
        return cascade_curve(own.cases().labels, own.reading) if own.reading else None


@dataclass(frozen=True)
class Difference:
    """``metric(model) - metric(reference)`` on the cases that all models predicted."""

    model: str
    reference: str
    metric: str
    interval: Interval


@dataclass(frozen=True)
class Evaluation:
    """All of it.

    Attributes:
        positive: index of the class that ROC and calibration of two classes are about; None where there are more.
        draws, seed: of the bootstrap.
        compared, compared_patients: how many cases, of how many patients, all models predicted.
    """

    level: str
    classes: tuple[str, ...]
    positive: int | None
    draws: int
    seed: int
    models: list[ModelEvaluation]
    differences: list[Difference]
    compared: int
    compared_patients: int

    @property
    def positive_class(self) -> str | None:
        """Name of the class :attr:`positive`."""
        return None if self.positive is None else self.classes[self.positive]

    @property
    def is_survival_status(self) -> bool:
        """Whether the classes say alive or dead."""
        return all(c.lower() in STATUS for c in self.classes)


def evaluate_models(
    models: Sequence[Predictions],
    *,
    level: str = "slide",
    metrics: Sequence[str] | None = None,
    positive: int | None = None,
    draws: int = 2000,
    seed: int = 0,
    by: Sequence[str] = (),
    external: Sequence[External] = (),
) -> Evaluation:
    """Judge joined predictions, and compare them pair by pair on the slides that both have.

    Args:
        metrics: which ones; None for all, with the comparison by :data:`COMPARED`.
        positive: index of the class that ROC and calibration of two classes are about; None for the second.
        by: columns to group by, besides sites where there are several; external: of each model, for that profile.

    Raises:
        InputError: at patient level, a patient whose slides have different labels.
    """
    classes = models[0].classes
    if len(classes) == 2 and positive is None:
        positive = 1
    out = []
    with phase("judging", len(models), "model") as told:
        for n, m in enumerate(models):
            told.item = m.name
            slides = m.cases()
            scores = metric_table(
                slides.labels,
                slides.probabilities,
                slides.patients,
                slides.folds,
                classes=classes,
                level=level,
                metrics=metrics or METRICS,
                draws=draws,
                seed=seed,
            )
            cases = at_level(slides, level, classes)
            figures = calibration_of(m, level, positive, draws=draws, seed=seed)
            most = majority(cases.labels, classes)
            sets = None
            if m.sets is not None and m.coverage is not None:
                sets = set_figures(m.sets, slides.labels, slides.patients, m.coverage, draws=draws, seed=seed)
            groups = groups_of(m, by, level, draws=draws, seed=seed)
            own = per_class(cases, classes)
            outside = external[n] if external else None
            out.append(ModelEvaluation(m, cases, scores, own, most, figures, sets, groups, outside))
            told.advance()
    shared = [at_level(m.cases(), level, classes) for m in common(models)]
    truth = shared[0]
    compared = []
    both = pairs(len(models)) if len(truth.labels) else []
    with phase("comparing", len(both), "pair") as told:
        for reference, other in both:
            found = differences(
                truth.labels,
                shared[other].probabilities,
                shared[reference].probabilities,
                truth.patients,
                metrics=metrics or COMPARED,
                draws=draws,
                seed=seed,
            )
            names = models[other].name, models[reference].name
            compared += [Difference(*names, metric, v) for metric, v in found.items()]
            told.advance()
    n, patients = len(truth.labels), len(set(truth.patients))
    return Evaluation(level, classes, positive, draws, seed, out, compared, n, patients)


def groups_of(m: Predictions, by: Sequence[str], level: str, *, draws: int, seed: int) -> dict[str, list[Subgroup]]:
    """The cases of a model by site, where there are several, and by the columns asked for.

    Raises:
        InputError: at patient level, a patient whose slides have different labels.
    """
    several = SITE in m.rows and m.rows[SITE][m.rows[SITE] != ""].nunique() > 1
    columns = dict.fromkeys([*([SITE] if several else []), *by])
    return {
        name: subgroups(m.cases(), m.rows[name].tolist(), m.classes, level=level, sets=m.sets, draws=draws, seed=seed)
        for name in columns
    }


def calibration_of(
    m: Predictions, level: str, positive: int | None, *, draws: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """Calibration slope, intercept and error of predictions as they are (``given``) and, where those are known and
    others, before calibration (``raw``).

    Raises:
        InputError: at patient level, a patient whose slides have different labels.
    """
    both = {"given": m} if m.raw is None else {"given": m, "raw": m.as_raw()}
    return {
        name: calibration_figures(at_level(own.cases(), level, own.classes), positive, draws=draws, seed=seed)
        for name, own in both.items()
    }


def pairs(models: int) -> list[tuple[int, int]]:
    """Which of so many models are compared: (reference, model), each with each or with the first.

    evaluation/README 3.
    """
    return [p for p in combinations(range(models), 2) if models <= ALL_PAIRS or p[0] == 0]


def inputs_for_digest(m: Predictions) -> list[Any]:
    """All that the report takes from a model's predictions, for the digest."""
    rows = m.rows.astype(object).where(m.rows.notna(), None).to_numpy().tolist()
    out = [m.source, m.kind, m.leaks, m.remarks, rows, np.round(m.probabilities, 12).tolist()]
    if m.said is not None:
        out += [m.task.as_json(), m.times, m.said.to_numpy().tolist()]
    if m.raw is not None:
        out.append(np.round(m.raw, 12).tolist())
    if m.sets is not None:
        out.append([m.coverage, m.sets.tolist()])
    if m.reading is None:
        return out
    columns = vars(m.reading).values()
    return [*out, [None if v is None else np.where(np.isfinite(v), v, -1).tolist() for v in columns]]
