"""An evaluation of one or several models of numbers or of survival, computed; nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrmil_cli.evaluation.bootstrap import Interval
from lrmil_cli.evaluation.evaluate_models import Difference, pairs
from lrmil_cli.evaluation.join_predictions import common
from lrmil_cli.evaluation.predictions import SITE, Predictions
from lrmil_cli.evaluation.regression import bland_altman
from lrmil_cli.evaluation.scores import Score
from lrmil_cli.evaluation.subgroups import parts
from lrmil_cli.evaluation.survival_detail import survival_detail
from lrmil_cli.evaluation.target_cases import KINDS, TargetCases, at_level, cases_of, judged, scores_of
from lrmil_cli.progress import phase
from lrmil_cli.targets.task import Task

#: column -> slide id -> its cell.
Cells = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class TargetGroup:
    """A part of the cases of one model; events: None of numbers."""

    name: str
    n: int
    patients: int
    events: int | None
    metrics: dict[str, Interval]


@dataclass(frozen=True)
class TargetModel:
    """One model: its predictions, the cases at the level asked for, and what came of them.

    Attributes:
        detail: regression: :func:`agreement`; survival: :func:`survival_detail.survival_detail`; in plain types.
    """

    predictions: Predictions
    cases: TargetCases
    scores: list[Score]
    groups: dict[str, list[TargetGroup]]
    detail: dict[str, Any]

    @property
    def name(self) -> str:
        return self.predictions.name


@dataclass(frozen=True)
class TargetEvaluation:
    """All of it, as ``evaluate_models.Evaluation`` is of classes."""

    task: Task
    level: str
    draws: int
    seed: int
    models: list[TargetModel]
    differences: list[Difference]
    compared: int
    compared_patients: int


def evaluate_targets(
    models: Sequence[Predictions],
    *,
    level: str = "slide",
    metrics: Sequence[str] | None = None,
    draws: int = 2000,
    seed: int = 0,
    by: Sequence[str] = (),
    horizons: Sequence[float] | None = None,
    adjust: Cells | None = None,
) -> TargetEvaluation:
    """Judge joined predictions, and compare them pair by pair on the slides that all have.

    Args:
        metrics: which ones; None for all. by: columns to group by, besides sites where there are several.
        horizons: at which survival is judged; None for the times of the first model; adjust: of hazard ratios.

    Raises:
        InputError: slides of a patient that differ in what is predicted (of numbers at patient level only).
        MachineError: of survival, lifelines is not installed.
    """
    task = models[0].task
    at = models[0].times if horizons is None else horizons
    out = []
    with phase("judging", len(models), "model") as told:
        for m in models:
            told.item = m.name
            slides = cases_of(m, at)
            detail = DETAILS[task.kind](slides, level, adjust)  # first, since it may lack a library
            scores = scores_of(slides, level, metrics=metrics, draws=draws, seed=seed)
            groups = groups_of(m, slides, by, level, draws=draws, seed=seed)
            out.append(TargetModel(m, at_level(slides, level), scores, groups, detail))
            told.advance()
    shared = [at_level(cases_of(m, at), level) for m in common(models)]
    compared = []
    both = pairs(len(models)) if len(shared[0].frame) else []
    with phase("comparing", len(both), "pair") as told:
        for reference, other in both:
            chosen = metrics or KINDS[task.kind].compared
            found = judged(shared[other], other=shared[reference], metrics=chosen, draws=draws, seed=seed)
            names = models[other].name, models[reference].name
            compared += [Difference(*names, metric, v) for metric, v in found.items()]
            told.advance()
    return TargetEvaluation(task, level, draws, seed, out, compared, len(shared[0].frame), len(set(shared[0].patients)))


def groups_of(
    m: Predictions, slides: TargetCases, by: Sequence[str], level: str, *, draws: int, seed: int
) -> dict[str, list[TargetGroup]]:
    """The cases of a model by site, where there are several, and by the columns asked for."""
    several = SITE in m.rows and m.rows[SITE][m.rows[SITE] != ""].nunique() > 1
    kind = KINDS[m.task.kind]
    out: dict[str, list[TargetGroup]] = {}
    for column in dict.fromkeys([*([SITE] if several else []), *by]):
        out[column] = []
        for name, index in parts(m.rows[column].tolist()).items():
            own = at_level(slides.take(index), level)
            events = int(own.frame["event"].sum()) if "event" in own.frame else None
            found = judged(own, metrics=kind.grouped, draws=draws, seed=seed)
            out[column].append(TargetGroup(str(name), len(own.frame), len(set(own.patients)), events, found))
    return out


def agreement(cases: TargetCases) -> dict[str, Any]:
    """Spread of the numbers, and how far what is said of them lies off (Bland and Altman); None of fewer than two."""
    truth, said = cases.frame["label"].to_numpy(float), cases.frame["predicted"].to_numpy(float)
    return {
        "least": float(truth.min()),
        "most": float(truth.max()),
        "mean": float(truth.mean()),
        "sd": float(truth.std(ddof=1)) if len(truth) > 1 else None,
        "bland_altman": bland_altman(truth, said) if len(truth) > 1 else None,
    }


#: Task -> what is said of a model besides its metrics, by its slides and the level of the metrics.
DETAILS: dict[str, Callable[[TargetCases, str, Cells | None], dict[str, Any]]] = {
    "regression": lambda slides, level, adjust: agreement(at_level(slides, level)),
    "survival": lambda slides, level, adjust: survival_detail(slides, adjust),
}
