"""An evaluation of one or several models: computed from their predictions, then as JSON, tables and the blocks of a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from lrmil_cli.evaluation.bootstrap import Interval
from lrmil_cli.evaluation.metrics import METRICS, confusion, show
from lrmil_cli.evaluation.page import Block, Heading, Picture, Table, Text
from lrmil_cli.evaluation.predictions import Predictions, common
from lrmil_cli.evaluation.scores import (
    COMPARED,
    Cases,
    ClassScore,
    Score,
    answers,
    at_level,
    differences,
    majority,
    metric_table,
    per_class,
    reliability,
)
from lrmil_cli.evaluation.tiles_read import Curve, cascade_curve, curve_picture

#: Up to so many models, each is compared with each; of more, each with the first.
ALL_PAIRS = 4
PICTURE = "evaluation.png"
CURVE_PICTURE = "evaluation.reading.png"
TITLES = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "f1_weighted": "weighted F1",
    "brier": "Brier score",
    "log_loss": "log loss",
}
LOWER_IS_BETTER = ("brier", "log_loss")
#: Class names of a survival-status task, as they stand in TCGA, cBioPortal and the like.
STATUS = {
    "alive",
    "dead",
    "living",
    "deceased",
    "died",
    "survived",
    "event",
    "no event",
    "censored",
    "0:living",
    "1:deceased",
}


@dataclass(frozen=True)
class ModelEvaluation:
    """One model: its predictions, the cases at the level asked for, and what came of them."""

    predictions: Predictions
    cases: Cases
    scores: list[Score]
    classes: list[ClassScore]
    majority: tuple[str, float]

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
    """All of it."""

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
    done: Callable[[int], None] = lambda n: None,
) -> Evaluation:
    """Judge joined predictions, and compare them pair by pair on the slides that both have.

    Args:
        metrics: which ones; None for all, with the comparison by :data:`COMPARED`; positive: index of the class that
            ROC and calibration of two classes are about.

    Raises:
        InputError: at patient level, a patient whose slides have different labels.
    """
    classes = models[0].classes
    if len(classes) == 2 and positive is None:
        positive = 1
    out = []
    for m in models:
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
        out.append(ModelEvaluation(m, cases, scores, per_class(cases, classes), majority(cases.labels, classes)))
        done(1)
    shared = [at_level(m.cases(), level, classes) for m in common(models)]
    truth = shared[0]
    compared = []
    for r, m in pairs(len(models)) if len(truth.labels) else []:
        found = differences(
            truth.labels,
            shared[m].probabilities,
            shared[r].probabilities,
            truth.patients,
            metrics=metrics or COMPARED,
            draws=draws,
            seed=seed,
        )
        compared += [Difference(models[m].name, models[r].name, metric, v) for metric, v in found.items()]
        done(1)
    return Evaluation(level, classes, positive, draws, seed, out, compared, len(truth.labels), len(set(truth.patients)))


def pairs(models: int) -> list[tuple[int, int]]:
    """Which models are compared: (reference, model), each with each, or with the first where that would be many."""
    return [p for p in combinations(range(models), 2) if models <= ALL_PAIRS or p[0] == 0]


def as_json(e: Evaluation) -> dict[str, Any]:
    """The content of ``evaluation.json`` besides its header."""
    return {
        "level": e.level,
        "classes": list(e.classes),
        "positive": None if e.positive is None else e.classes[e.positive],
        "survival_status": e.is_survival_status,
        "models": [_model_json(m, e) for m in e.models],
        "differences": [
            {
                "model": d.model,
                "reference": d.reference,
                "metric": d.metric,
                "n": e.compared,
                "patients": e.compared_patients,
                **_interval_json(d.interval),
            }
            for d in e.differences
        ],
    }


def _interval_json(v: Interval) -> dict[str, Any]:
    return {"value": v.value, "low": v.low, "high": v.high, "undefined_draws": v.undefined}


def _model_json(m: ModelEvaluation, e: Evaluation) -> dict[str, Any]:
    p = m.predictions
    bins = reliability(*answers(m.cases, e.positive))
    return {
        "name": m.name,
        "source": p.source,
        "kind": p.kind,
        "made_by": p.made_by,
        "n": len(m.cases.labels),
        "slides": p.rows["slide_id"].nunique(),
        "patients": p.rows["patient_id"].nunique(),
        "counts": {c.name: c.n for c in m.classes},
        "majority_class": m.majority[0],
        "majority_rate": m.majority[1],
        "metrics": {
            s.metric: {
                **_interval_json(s.pooled),
                "reason": s.reason,
                "mean": s.mean,
                "sd": s.sd,
                "folds": s.folds,
                "of_folds": s.of_folds,
            }
            for s in m.scores
        },
        "per_class": [asdict(c) for c in m.classes],
        "confusion": confusion(m.cases.labels, m.cases.probabilities).tolist(),
        "calibration": {"predicted": bins.predicted.tolist(), "observed": bins.observed.tolist(), "n": bins.n.tolist()},
        "leaks": list(p.leaks),
        "remarks": list(p.remarks),
        "reading": _reading_json(m),
    }


def _reading_json(m: ModelEvaluation) -> dict[str, Any] | None:
    """Tiles and seconds a slide, abstentions, and the curve of a cascade; None where the predictions do not say."""
    own = m.predictions.reading
    if own is None:
        return None
    labels, said = m.predictions.cases().labels, m.predictions.probabilities.argmax(1)
    sure = ~own.uncertain
    curve = m.curve
    return {
        "lr_tiles": float(own.lr.mean()),
        "mid_tiles": None if own.mid is None else float(own.mid.mean()),
        "hr_tiles": float(own.hr.mean()),
        "seconds": float(own.seconds.mean()),
        "uncertain": int(own.uncertain.sum()),
        "accuracy_of_the_sure": float((said == labels)[sure].mean()) if sure.any() else None,
        "curve": None if curve is None else {k: v.tolist() for k, v in vars(curve).items()},
    }


def metrics_frame(e: Evaluation) -> pd.DataFrame:
    """One row a model and metric; what is undefined is empty. The accuracy of always saying the largest class is ``majority_rate``."""
    rows = []
    for m in e.models:
        about = {"n": len(m.cases.labels), "patients": m.predictions.rows["patient_id"].nunique()}
        for s in m.scores:
            v = s.pooled
            rows.append(
                {
                    "model": m.name,
                    "level": e.level,
                    "metric": s.metric,
                    "value": v.value,
                    "low": v.low,
                    "high": v.high,
                    "mean": s.mean,
                    "sd": s.sd,
                    "folds": s.folds,
                    "of_folds": s.of_folds,
                    **about,
                    "undefined_draws": v.undefined,
                    "reason": s.reason,
                }
            )
        rows.append(
            {
                "model": m.name,
                "level": e.level,
                "metric": "majority_rate",
                "value": m.majority[1],
                **about,
                "reason": "",
            }
        )
    columns = [
        "model",
        "level",
        "metric",
        "value",
        "low",
        "high",
        "mean",
        "sd",
        "folds",
        "of_folds",
        "n",
        "patients",
        "undefined_draws",
        "reason",
    ]
    counts = ["folds", "of_folds", "undefined_draws"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype(dict.fromkeys(counts, "Int64"))


def differences_frame(e: Evaluation) -> pd.DataFrame:
    """One row a pair of models and metric: model - reference."""
    return pd.DataFrame(
        [
            {
                "model": d.model,
                "reference": d.reference,
                "level": e.level,
                "metric": d.metric,
                "difference": d.interval.value,
                "low": d.interval.low,
                "high": d.interval.high,
                "n": e.compared,
                "patients": e.compared_patients,
                "undefined_draws": d.interval.undefined,
            }
            for d in e.differences
        ],
        columns=[
            "model",
            "reference",
            "level",
            "metric",
            "difference",
            "low",
            "high",
            "n",
            "patients",
            "undefined_draws",
        ],
    )


def interval_text(v: Interval, sign: bool = False) -> str:
    """``0.812 (0.740 to 0.880)``, or what is known of it."""
    form = (lambda x: f"{x:+.3f}") if sign else show
    if v.value is None or v.low is None:
        return show(v.value) if v.value is None else form(v.value)
    return f"{form(v.value)} ({form(v.low)} to {form(v.high)})"


def folds_text(s: Score) -> str:
    """``0.801 ± 0.052``, with the number of folds where not all count."""
    if not s.of_folds:
        return "-"
    if s.mean is None:
        return "undefined"
    sd = f" ± {s.sd:.3f}" if s.sd is not None else ""
    return f"{s.mean:.3f}{sd}" + (f", {s.folds} of {s.of_folds} folds" if s.folds < s.of_folds else "")


def blocks(e: Evaluation, png: bytes, made_by: dict[str, Any]) -> list[Block]:
    """The page.

    Args:
        png: the picture; made_by: history entry of the evaluation.
    """
    out: list[Block] = [Text(t) for t in _opening(e)]
    for m in e.models:
        out += [Text(f"Warning: {m.name}: {leak}.") for leak in m.predictions.leaks]
    out += [Heading("Metrics"), *_metric_tables(e)]
    if len(e.models) > 1:
        out += [
            Heading("Differences between models"),
            _difference_table(e) if e.differences else Text(f"No {e.level} was predicted by all models."),
        ]
    out += [Heading("Curves and confusion"), Picture(png, _alt(e), PICTURE)]
    out += _reading_blocks(e)
    out += [Heading("Classes"), *_class_tables(e)]
    out += [Heading("What was judged"), _model_table(e)]
    out += [Text(f"{m.name}: {'; '.join(m.predictions.remarks)}.") for m in e.models if m.predictions.remarks]
    out += [Heading("How to read this"), *(Text(t) for t in _notes(e))]
    out += [
        Text(
            f"Made by {made_by['argv'] or 'lrmil evaluate'} with version {made_by['lrmil']} on {made_by['date']}; digest {made_by['digest']}. "
            "Research use only."
        )
    ]
    return out


def title(e: Evaluation) -> str:
    names = [m.name for m in e.models]
    return f"Evaluation of {names[0]}" if len(names) == 1 else f"Evaluation of {', '.join(names[:-1])} and {names[-1]}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _opening(e: Evaluation) -> list[str]:
    first = e.models[0]
    counts = ", ".join(f"{c.n} {c.name}" for c in first.classes)
    n, patients = len(first.cases.labels), first.predictions.rows["patient_id"].nunique()
    what = _count(n, "patient") if e.level == "patient" else f"{_count(n, 'slide')} of {_count(patients, 'patient')}"
    alike = all(m.classes[i].n == c.n for m in e.models for i, c in enumerate(first.classes))
    out = [
        f"{what} ({counts}){'' if alike else f', of {first.name}'}. Always saying {first.majority[0]} would be right "
        f"in {first.majority[1]:.1%}."
    ]
    if e.is_survival_status:
        out.append(
            "The classes are survival status: alive or dead at last contact, whenever that was. Follow-up time and censoring are "
            "ignored, so this is no survival analysis; judge the accuracy against the majority rate."
        )
    return out


def _metric_tables(e: Evaluation) -> list[Block]:
    names = [m.name for m in e.models]
    rows = []
    for i, metric in enumerate(s.metric for s in e.models[0].scores):
        rows.append([TITLES[metric], *(interval_text(m.scores[i].pooled) for m in e.models)])
        if metric == "accuracy":
            rows.append(["majority rate", *(f"{m.majority[1]:.3f}" for m in e.models)])
    out: list[Block] = [Table(["metric", *names], rows, _pooled_note(e))]
    if any(s.of_folds > 1 for m in e.models for s in m.scores):
        rows = [
            [TITLES[s.metric], *(folds_text(m.scores[i]) for m in e.models)] for i, s in enumerate(e.models[0].scores)
        ]
        out.append(
            Table(
                ["over folds", *names],
                rows,
                "Mean and standard deviation; each fold is judged by itself, and does not count where a metric is undefined.",
            )
        )
    return out


def _pooled_note(e: Evaluation) -> str:
    parts = [
        f"Over all {e.level}s; in brackets the 95 % interval of {e.draws} bootstrap draws of patients."
        if e.draws
        else f"Over all {e.level}s."
    ]
    for m in e.models:
        who = f" ({m.name})" if len(e.models) > 1 else ""
        for s in m.scores:
            if s.reason:
                parts.append(f"{TITLES[s.metric]}{who} is undefined: {s.reason}.")
            elif s.pooled.undefined:
                parts.append(
                    f"{TITLES[s.metric]}{who}: {s.pooled.undefined} of {e.draws} draws lacked a class and were left out."
                )
        if e.draws and len(set(m.cases.patients)) < 2:
            parts.append(f"No interval{who}: there is only one patient.")
    return " ".join(parts)


def _difference_table(e: Evaluation) -> Table:
    rows = [
        [f"{d.model} - {d.reference}", TITLES[d.metric], interval_text(d.interval, sign=True), _verdict(d)]
        for d in e.differences
    ]
    return Table(
        ["difference", "metric", "value", "reading"],
        rows,
        f"On the {_count(e.compared, e.level)} that all models predicted, all judged on the same {e.draws} draws of patients. "
        "Lower is better for Brier score and log loss. An interval that holds 0 shows no difference.",
    )


def _verdict(d: Difference) -> str:
    v = d.interval
    if v.value is None:
        return "undefined"
    if v.low is None:
        return "no interval"
    if v.low <= 0 <= v.high:
        return "no clear difference"
    return f"{d.model if (v.value > 0) != (d.metric in LOWER_IS_BETTER) else d.reference} is better"


def _class_tables(e: Evaluation) -> list[Block]:
    headers = [f"{e.level}s", "sensitivity", "specificity", "AUC against the rest"]
    cells = lambda c: [str(c.n), show(c.sensitivity), show(c.specificity), show(c.auc)]  # noqa: E731
    if e.positive is not None:  # of two classes the other one mirrors it
        return [
            Table(
                ["model", "class", *headers],
                [[m.name, e.classes[e.positive], *cells(m.classes[e.positive])] for m in e.models],
            )
        ]
    out: list[Block] = []
    for m in e.models:
        out += [Heading(m.name, 3)] if len(e.models) > 1 else []
        out.append(Table(["class", *headers], [[c.name, *cells(c)] for c in m.classes]))
    return out


def _model_table(e: Evaluation) -> Table:
    kinds = {
        "out-of-fold": "out-of-fold: each slide by the head of the fold that did not train on it",
        "predict": "lrmil predict: all heads of the model",
    }
    rows = [
        [
            m.name,
            m.predictions.source,
            kinds[m.predictions.kind],
            str(m.predictions.rows["slide_id"].nunique()),
            str(m.predictions.rows["patient_id"].nunique()),
        ]
        for m in e.models
    ]
    return Table(["model", "read from", "predictions", "slides", "patients"], rows)


def _reading_blocks(e: Evaluation) -> list[Block]:
    """What was read of a slide, where predictions say so; for a cascade also what reading more would have bought."""
    told = [(m, _reading_json(m)) for m in e.models if m.predictions.reading is not None]
    if not told:
        return []
    some = any(r["uncertain"] for _, r in told)
    mid = any(r["mid_tiles"] for _, r in told)
    rows = [
        [
            m.name,
            f"{r['lr_tiles']:.1f}",
            *([f"{r['mid_tiles'] or 0:.1f}"] if mid else []),
            f"{r['hr_tiles']:.1f}",
            f"{r['seconds']:.2f}",
            *([str(r["uncertain"]), show(r["accuracy_of_the_sure"])] if some else []),
        ]
        for m, r in told
    ]
    headers = [
        "a slide",
        "LR tiles",
        *(["tiles between"] if mid else []),
        "HR tiles",
        "seconds",
        *(["uncertain", "accuracy of the others"] if some else []),
    ]
    out: list[Block] = [
        Heading("What was read"),
        Table(headers, rows, "Means over slides; seconds as `lrmil predict` took them, without imports."),
    ]
    curves = [(m.name, m.curve) for m in e.models if m.curve is not None]
    if curves:
        alt = "; ".join(
            f"{n}: accuracy {c.accuracy[0]:.3f} with no HR tile, {c.accuracy[-1]:.3f} with {c.hr_tiles[-1]:.1f} a slide"
            for n, c in curves
        )
        out += [
            Picture(curve_picture(curves), f"Accuracy against HR tiles a slide. {alt}", CURVE_PICTURE),
            Text(
                f"Slides are read at HR in the order of doubt. {alt}. Predict with `--confidence 1` for the whole curve."
            ),
        ]
    return out


def _alt(e: Evaluation) -> str:
    areas = ", ".join(f"{m.name} AUC {show(s.pooled.value)}" for m in e.models for s in m.scores if s.metric == "auc")
    return f"ROC curves{f' ({areas})' if areas else ''}, calibration curves and confusion matrices; the figures are in the tables"


def _notes(e: Evaluation) -> list[str]:
    two = len(e.classes) == 2
    out = [
        "AUC is the chance that a case of one class gets a higher probability for it than a case of another: 0.5 is guessing, 1 is perfect. "
        + (f"Here: of {e.classes[e.positive]}." if two else "Here: the mean over the classes, each against the rest.")
        + " Where a class is missing it is undefined, not 0.",
        "Accuracy counts the most probable class as the answer; read it beside the majority rate. Balanced accuracy is the mean of the "
        "classes' sensitivities. The Brier score is the squared distance of the probabilities to the truth, summed over classes (0 is perfect, "
        "2 is certain and wrong); log loss punishes certain mistakes harder. Calibration compares the probability "
        + (
            f"of {e.classes[e.positive]} with how often it is true."
            if two
            else "of the predicted class with how often it is right."
        ),
        "The interval says how much the figure depends on which patients were in the cohort; all slides of a patient are drawn together. It does "
        "not hold what another training run, hospital or scanner would change.",
    ]
    if any(s.of_folds > 1 for m in e.models for s in m.scores):
        out.append(
            "Out-of-fold predictions of different folds come from different heads. Their probabilities need not be on one scale, so the "
            "pooled AUC can differ from the mean over folds."
        )
    if any(m.predictions.rows["slide_id"].duplicated().any() for m in e.models):
        out.append(
            "Some slides were tested in several folds; each of these predictions counts"
            + (" in the mean of its patient." if e.level == "patient" else ".")
        )
    return out


def inputs_for_digest(m: Predictions) -> list[Any]:
    """All that the report takes from a model's predictions, for the digest."""
    rows = m.rows.astype(object).where(m.rows.notna(), None).to_numpy().tolist()
    own = (
        []
        if m.reading is None
        else [[None if v is None else np.where(np.isfinite(v), v, -1).tolist() for v in vars(m.reading).values()]]
    )
    return [m.source, m.kind, m.leaks, m.remarks, rows, np.round(m.probabilities, 12).tolist(), *own]
