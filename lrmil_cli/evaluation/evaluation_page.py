"""An evaluation as the blocks of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lrmil_cli.evaluation.evaluate_models import Difference, Evaluation
from lrmil_cli.evaluation.evaluate_targets import TargetEvaluation
from lrmil_cli.evaluation.evaluation_files import reading_json
from lrmil_cli.evaluation.external_page import external_blocks
from lrmil_cli.evaluation.metrics import TITLES, lower_is_better, metric_title, show
from lrmil_cli.evaluation.page import Block, Heading, Picture, Table, Text
from lrmil_cli.evaluation.plots import curve_picture
from lrmil_cli.evaluation.scores import ClassScore
from lrmil_cli.evaluation.wording import (
    calibration_table,
    count_text,
    folds_text,
    group_table,
    interval_text,
    set_table,
)
from lrmil_cli.targets.task import SLIDE

#: File names of the pictures beside the page.
PICTURE = "evaluation.png"
CURVE_PICTURE = "evaluation.reading.png"


def blocks(
    e: Evaluation, png: bytes, made_by: dict[str, Any], pictures: Sequence[Mapping[str, bytes]] = ()
) -> list[Block]:
    """The page of an evaluation.

    Args:
        png: the picture; made_by: history entry of the evaluation.
        pictures: of each model, slide id -> PNG of a slide that it got wrong, for the external profile.
    """
    made = f"Made by {made_by['argv'] or 'lrmil evaluate'} with version {made_by['lrmil']} on {made_by['date']}"
    dated = f"Made {made_by['date']} by lrmil {made_by['lrmil']}; resamples by seed {e.seed}"
    out: list[Block] = [Text(t) for t in (*_headline(e), *_opening(e))]
    out.append(Text(f"{dated}. For research use only; not a medical device."))
    for m in e.models:
        out += [Text(f"Warning: {m.name}: {leak}.") for leak in m.predictions.leaks]
    out += [Heading("Metrics"), *_metric_tables(e)]
    if len(e.models) > 1:
        out += [
            Heading("Differences between models"),
            _difference_table(e) if e.differences else Text(f"No {e.level} was predicted by all models."),
        ]
    out += [Heading("Calibration"), calibration_table([(m.name, m.calibration) for m in e.models])]
    with_sets = [(m.name, m.sets) for m in e.models if m.sets is not None]
    out += [Heading("Prediction sets"), set_table(with_sets, "slides")] if with_sets else []
    for m, own_pictures in zip(e.models, pictures or [{}] * len(e.models)):
        if m.external is not None:
            out += external_blocks(m, m.external, len(e.models) > 1, own_pictures)
    for column in dict.fromkeys(c for m in e.models for c in m.groups):
        own = [(m.name, m.groups[column]) for m in e.models if column in m.groups]
        out += [Heading(f"By {column}"), group_table(column, own, e.classes)]
    out += [Heading("Curves and confusion"), Picture(png, _alt(e), PICTURE)]
    out += _reading_blocks(e)
    out += [Heading("Classes"), *_class_tables(e)]
    out += [Heading("What was judged"), model_table(e)]
    out += [Text(f"{m.name}: {'; '.join(m.predictions.remarks)}.") for m in e.models if m.predictions.remarks]
    out += [Heading("How to read this"), *(Text(t) for t in _notes(e))]
    return [*out, Text(f"{made}; digest {made_by['digest']}. Research use only.")]


def title(e: Evaluation | TargetEvaluation) -> str:
    """Of the page."""
    names = [m.name for m in e.models]
    return f"Evaluation of {names[0]}" if len(names) == 1 else f"Evaluation of {', '.join(names[:-1])} and {names[-1]}"


def _headline(e: Evaluation) -> list[str]:
    """What the figures tell: of each model accuracy and AUC, of two what their intervals tell apart."""
    said = []
    for m in e.models:
        own = {s.metric: s for s in m.scores}
        parts = [
            f"pooled {TITLES[k]} {interval_text(own[k].pooled)}"
            + (f" (fold mean {show(own[k].mean)})" if own[k].of_folds > 1 else "")
            for k in ("auc", "accuracy")
            if k in own
        ]
        said += [f"{m.name}: {', '.join(parts)}."] if parts else []
    for model, reference in dict.fromkeys((d.model, d.reference) for d in e.differences):
        own_differences = [d for d in e.differences if (d.model, d.reference) == (model, reference)]
        verdicts = {d.metric: verdict(d) for d in own_differences}
        clear = [f"{TITLES[k]}: {v}" for k, v in verdicts.items() if v.endswith("is better")]
        rest = [TITLES[k] for k, v in verdicts.items() if v == "no clear difference"]
        text = f"{model} against {reference}: {'; '.join(clear) or 'no metric tells them apart'}"
        said.append(text + (f" ({', '.join(rest)} cannot be told apart)." if clear and rest else "."))
    return said


def _opening(e: Evaluation) -> list[str]:
    first = e.models[0]
    counts = ", ".join(f"{c.n} {c.name}" for c in first.classes)
    n, patients = len(first.cases.labels), first.predictions.rows["patient_id"].nunique()
    what = (
        count_text(n, "patient")
        if e.level == "patient"
        else f"{count_text(n, 'slide')} of {count_text(patients, 'patient')}"
    )
    alike = all(m.classes[i].n == c.n for m in e.models for i, c in enumerate(first.classes))
    out = [
        f"{what} ({counts}){'' if alike else f', of {first.name}'}. Always saying {first.majority[0]} would be right "
        f"in {first.majority[1]:.1%}."
    ]
    if e.is_survival_status:
        out.append(
            "The classes are survival status: alive or dead at last contact, whenever that was. Follow-up time and "
            "censoring are ignored, so this is no survival analysis; judge the accuracy against the majority rate."
        )
    return out


def _metric_tables(e: Evaluation) -> list[Block]:
    names = [m.name for m in e.models]
    rows = []
    for i, metric in enumerate(s.metric for s in e.models[0].scores):
        rows.append([TITLES[metric], *(interval_text(m.scores[i].pooled) for m in e.models)])
        if metric == "accuracy":
            rows.append(["majority rate", *(f"{m.majority[1]:.3f}" for m in e.models)])
    out: list[Block] = [Table([f"pooled: all {e.level}s together", *names], rows, pooled_note(e, "lacked a class"))]
    out += fold_table(e)
    return out


def fold_table(e: Evaluation | TargetEvaluation) -> list[Table]:
    """Metrics by their mean over folds; nothing where no model has several."""
    if not any(s.of_folds > 1 for m in e.models for s in m.scores):
        return []
    first = e.models[0].scores
    rows = [[metric_title(s.metric), *(folds_text(m.scores[i]) for m in e.models)] for i, s in enumerate(first)]
    note = "Mean and standard deviation; each fold is judged by itself, and does not count where a metric is undefined."
    return [Table(["fold mean ± sd", *(m.name for m in e.models)], rows, note)]


def pooled_note(e: Evaluation | TargetEvaluation, lacking: str) -> str:
    """What stands under the pooled metrics: how intervals were made, what is undefined and why.

    Args:
        lacking: of draws in which a metric is undefined, such as "lacked a class".
    """
    interval = f"; in brackets the 95 % interval of {e.draws} bootstrap draws of patients" if e.draws else ""
    parts = [f"Over all {e.level}s{interval}."]
    for m in e.models:
        who = f" ({m.name})" if len(e.models) > 1 else ""
        for s in m.scores:
            if s.reason:
                parts.append(f"{metric_title(s.metric)}{who} is undefined: {s.reason}.")
            elif s.pooled.undefined:
                left_out = f"{s.pooled.undefined} of {e.draws} draws {lacking} and were left out"
                parts.append(f"{metric_title(s.metric)}{who}: {left_out}.")
        if e.draws and len(set(m.cases.patients)) < 2:
            parts.append(f"No interval{who}: there is only one patient.")
    return " ".join(parts)


def _difference_table(e: Evaluation) -> Table:
    rows = [
        [f"{d.model} - {d.reference}", TITLES[d.metric], interval_text(d.interval, sign=True), verdict(d)]
        for d in e.differences
    ]
    return Table(
        ["difference", "metric", "value", "reading"],
        rows,
        f"On the {count_text(e.compared, e.level)} that all models predicted, all judged on the same {e.draws} draws "
        "of patients. Lower is better for Brier score and log loss. An interval that holds 0 shows no difference.",
    )


def verdict(d: Difference) -> str:
    """Which of two models a metric tells better, if any."""
    v = d.interval
    if v.value is None:
        return "undefined"
    if v.low is None or v.high is None:
        return "no interval"
    if v.low <= 0 <= v.high:
        return "no clear difference"
    return f"{d.model if (v.value > 0) != lower_is_better(d.metric) else d.reference} is better"


def _class_tables(e: Evaluation) -> list[Block]:
    headers = [f"{e.level}s", "sensitivity", "specificity", "AUC against the rest"]

    def cells(c: ClassScore) -> list[str]:
        return [c.name, str(c.n), show(c.sensitivity), show(c.specificity), show(c.auc)]

    if e.positive is not None:  # of two classes the other one mirrors it
        rows = [[m.name, *cells(m.classes[e.positive])] for m in e.models]
        return [Table(["model", "class", *headers], rows)]
    out: list[Block] = []
    for m in e.models:
        out += [Heading(m.name, 3)] if len(e.models) > 1 else []
        out.append(Table(["class", *headers], [cells(c) for c in m.classes]))
    return out


def model_table(e: Evaluation | TargetEvaluation) -> Table:
    """Where the predictions of each model come from."""
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
    told = [(m.name, reading_json(m, m.predictions.reading)) for m in e.models if m.predictions.reading is not None]
    if not told:
        return []
    out: list[Block] = [Heading("What was read"), reading_table(told, e.models[0].predictions.bag)]
    curves = [(name, c) for name, c in ((m.name, m.curve) for m in e.models) if c is not None]
    if curves:
        alt = "; ".join(
            f"{n}: accuracy {c.accuracy[0]:.3f} with no HR tile, {c.accuracy[-1]:.3f} with {c.hr_tiles[-1]:.1f} a slide"
            for n, c in curves
        )
        hint = "Predict with `--confidence 1` for the whole curve."
        out += [
            Picture(curve_picture(curves), f"Accuracy against HR tiles a slide. {alt}", CURVE_PICTURE),
            Text(f"Slides are read at HR in the order of doubt. {alt}. {hint}"),
        ]
    return out


def reading_table(told: Sequence[tuple[str, dict[str, Any]]], bag: str = SLIDE) -> Table:
    """Tiles and seconds a bag of each model, by name, as ``reading_json`` or ``tiles_json`` have them."""
    some = any(r["uncertain"] for _, r in told)
    mid = any(r["mid_tiles"] for _, r in told)
    right = some and all("accuracy_of_the_sure" in r for _, r in told)
    unlike = any(r["unlike_training"] for _, r in told)
    rows = [
        [
            name,
            f"{r['lr_tiles']:.1f}",
            *([f"{r['mid_tiles'] or 0:.1f}"] if mid else []),
            f"{r['hr_tiles']:.1f}",
            f"{r['seconds']:.2f}",
            *([str(r["uncertain"])] if some else []),
            *([show(r["accuracy_of_the_sure"])] if right else []),
            *(["not known" if r["unlike_training"] is None else str(r["unlike_training"])] if unlike else []),
        ]
        for name, r in told
    ]
    headers = [f"a {bag}", "LR tiles", *(["tiles between"] if mid else []), "HR tiles", "seconds"]
    headers += [*(["uncertain"] if some else []), *(["accuracy of the others"] if right else [])]
    headers += ["unlike those of training"] if unlike else []
    return Table(headers, rows, f"Means over {bag}s; seconds as `lrmil predict` took them, without imports.")


def _alt(e: Evaluation) -> str:
    areas = ", ".join(f"{m.name} AUC {show(s.pooled.value)}" for m in e.models for s in m.scores if s.metric == "auc")
    known = f" ({areas})" if areas else ""
    return f"ROC curves{known}, calibration curves and confusion matrices; the figures are in the tables"


def _notes(e: Evaluation) -> list[str]:
    own = e.positive_class
    which, truth = (
        "the mean over the classes, each against the rest",
        "of the predicted class with how often it is right",
    )
    if own is not None:
        which, truth = f"of {own}", f"of {own} with how often it is true"
    out = [
        "AUC is the chance that a case of one class gets a higher probability for it than a case of another: 0.5 is "
        f"guessing, 1 is perfect. Here: {which}. Where a class is missing it is undefined, not 0.",
        "Accuracy counts the most probable class as the answer; read it beside the majority rate. Balanced accuracy is "
        "the mean of the classes' sensitivities. The Brier score is the squared distance of the probabilities to the "
        "truth, summed over classes (0 is perfect, 2 is certain and wrong); log loss punishes certain mistakes harder. "
        f"Calibration compares the probability {truth}.",
        "The interval says how much the figure depends on which patients were in the cohort; all slides of a patient "
        "are drawn together. It does not hold what another training run, hospital or scanner would change.",
    ]
    if any(s.of_folds > 1 for m in e.models for s in m.scores):
        out.append(
            "Out-of-fold predictions of different folds come from different heads. Their probabilities need not be on "
            "one scale, so the pooled AUC can differ from the mean over folds."
        )
    if any(m.predictions.rows["slide_id"].duplicated().any() for m in e.models):
        out.append(
            "Some slides were tested in several folds; each of these predictions counts"
            + (" in the mean of its patient." if e.level == "patient" else ".")
        )
    return out
