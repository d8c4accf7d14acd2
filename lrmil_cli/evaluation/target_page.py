"""An evaluation of numbers or of survival as the blocks of a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lrmil_cli.evaluation.evaluate_targets import TargetEvaluation, TargetGroup, TargetModel
from lrmil_cli.evaluation.evaluation_files import tiles_json
from lrmil_cli.evaluation.evaluation_page import PICTURE, fold_table, model_table, pooled_note, reading_table, verdict
from lrmil_cli.evaluation.metrics import decimals, metric_title, show
from lrmil_cli.evaluation.page import Block, Heading, Picture, Table, Text
from lrmil_cli.evaluation.survival import FEW_EVENTS
from lrmil_cli.evaluation.target_plots import p_text
from lrmil_cli.evaluation.wording import count_text, interval_text

#: What stands in the headline.
HEADLINES = {"regression": ("r2", "mae", "spearman"), "survival": ("c_harrell", "c_uno", "ibs")}


def blocks(e: TargetEvaluation, png: bytes, made_by: dict[str, Any]) -> list[Block]:
    """The page of an evaluation.

    Args:
        png: the picture; made_by: history entry of the evaluation.
    """
    dated = f"Made {made_by['date']} by lrmil {made_by['lrmil']}; resamples by seed {e.seed}"
    out: list[Block] = [Text(t) for t in (*_headline(e), _opening(e))]
    out.append(Text(f"{dated}. For research use only; not a medical device."))
    out += [Text(f"Warning: {m.name}: {leak}.") for m in e.models for leak in m.predictions.leaks]
    out += [Text(f"Warning: {m.name}: {w}.") for m in e.models for w in warnings_of(m)]
    out += [Heading("Metrics"), *_metric_tables(e)]
    if len(e.models) > 1:
        out.append(Heading("Differences between models"))
        out.append(_difference_table(e) if e.differences else Text(f"No {e.level} was predicted by all models."))
    if e.task.kind == "survival":
        out += survival_blocks([(m.name, m.detail) for m in e.models], Picture(png, _alt(e), PICTURE), e.task.time)
    else:
        out += number_blocks([(m.name, m.detail) for m in e.models], Picture(png, _alt(e), PICTURE))
    for column in dict.fromkeys(c for m in e.models for c in m.groups):
        own = [(m.name, m.groups[column]) for m in e.models if column in m.groups]
        out += [Heading(f"By {column}"), target_group_table(column, own)]
    judged = [(m.name, m.predictions) for m in e.models]
    read = [(name, tiles_json(p.reading, p.unlike)) for name, p in judged if p.reading is not None]
    out += [Heading("What was read"), reading_table(read, e.models[0].predictions.bag)] if read else []
    out += [Heading("What was judged"), model_table(e)]
    out += [Text(f"{m.name}: {'; '.join(m.predictions.remarks)}.") for m in e.models if m.predictions.remarks]
    out += [Heading("How to read this"), *(Text(t) for t in NOTES[e.task.kind])]
    made = f"Made by {made_by['argv'] or 'lrmil evaluate'} with version {made_by['lrmil']} on {made_by['date']}"
    return [*out, Text(f"{made}; digest {made_by['digest']}. Research use only.")]


def warnings_of(m: TargetModel) -> list[str]:
    """Why figures of a model tell little."""
    if m.detail.get("few_events"):
        return [few_events_text(m.detail["events"])]
    return []


def few_events_text(events: int) -> str:
    """The warning of a small cohort."""
    return (
        f"only {count_text(events, 'event')} among those who are judged; with fewer than {FEW_EVENTS}, figures of "
        "survival say next to nothing"
    )


def _headline(e: TargetEvaluation) -> list[str]:
    """Of each model its main figures, of two what their intervals tell apart."""
    said = []
    for m in e.models:
        own = {s.metric: s for s in m.scores}
        parts = [
            f"pooled {metric_title(k)} {interval_text(own[k].pooled, metric=k)}"
            + (f" (fold mean {show(own[k].mean, decimals(k))})" if own[k].of_folds > 1 else "")
            for k in HEADLINES[e.task.kind]
            if k in own
        ]
        said += [f"{m.name}: {', '.join(parts)}."] if parts else []
    for model, reference in dict.fromkeys((d.model, d.reference) for d in e.differences):
        verdicts = {d.metric: verdict(d) for d in e.differences if (d.model, d.reference) == (model, reference)}
        clear = [f"{metric_title(k)}: {v}" for k, v in verdicts.items() if v.endswith("is better")]
        rest = [metric_title(k) for k, v in verdicts.items() if v == "no clear difference"]
        text = f"{model} against {reference}: {'; '.join(clear) or 'no metric tells them apart'}"
        said.append(text + (f" ({', '.join(rest)} cannot be told apart)." if clear and rest else "."))
    return said


def _opening(e: TargetEvaluation) -> str:
    first = e.models[0]
    patients = count_text(first.predictions.rows["patient_id"].nunique(), "patient")
    slides = f"{count_text(first.predictions.rows['slide_id'].nunique(), 'slide')} of {patients}"
    d = first.detail
    if e.task.kind == "survival":
        follow = f", followed for {d['follow_up']:.4g} (median, {e.task.time})" if d["follow_up"] is not None else ""
        return f"{slides}: {count_text(d['events'], 'patient')} with the event{follow}."
    sd = f", mean {d['mean']:.4g}, sd {d['sd']:.4g}" if d["sd"] is not None else ""
    return f"{slides}: {e.task.label} from {d['least']:.4g} to {d['most']:.4g}{sd}."


def _metric_tables(e: TargetEvaluation) -> list[Block]:
    names = [m.name for m in e.models]
    first = e.models[0].scores
    rows = [
        [metric_title(s.metric), *(interval_text(m.scores[i].pooled, metric=s.metric) for m in e.models)]
        for i, s in enumerate(first)
    ]
    out: list[Block] = [Table([f"pooled: all {e.level}s together", *names], rows, pooled_note(e, "left it undefined"))]
    out += fold_table(e)
    return out


def _difference_table(e: TargetEvaluation) -> Table:
    rows = [
        [f"{d.model} - {d.reference}", metric_title(d.metric), interval_text(d.interval, True, d.metric), verdict(d)]
        for d in e.differences
    ]
    return Table(
        ["difference", "metric", "value", "reading"],
        rows,
        f"On the {count_text(e.compared, e.level)} that all models predicted, all judged on the same {e.draws} draws "
        "of patients. Of errors and Brier scores lower is better. An interval that holds 0 shows no difference.",
    )


def number_blocks(models: Sequence[tuple[str, dict[str, Any]]], picture: Picture) -> list[Block]:
    """Bias and limits of agreement."""
    rows = [
        [name, *(f"{d['bland_altman'][k]:.4g}" if d["bland_altman"] else "undefined" for k in ("bias", "low", "high"))]
        for name, d in models
    ]
    note = (
        "Bland and Altman, of predicted - true: the mean, and between what 95 % of the differences would lie if they "
        "were normal."
    )
    table = Table(["", "bias", "lower limit", "upper limit"], rows, note)
    return [Heading("Predicted and true"), picture, table]


def survival_blocks(models: Sequence[tuple[str, dict[str, Any]]], picture: Picture, unit: str) -> list[Block]:
    """Curves of the groups of risk, and hazard ratios."""
    rows = [
        [name, g["name"], str(g["n"]), str(g["events"]), "not reached" if g["median"] is None else f"{g['median']:.4g}"]
        for name, d in models
        for g in d["groups"]
    ]
    tests = "; ".join(f"{n} {'one group' if d['log_rank'] is None else p_text(d['log_rank'])}" for n, d in models)
    cut = (
        "The cut between the groups is the median risk of the training slides of each head: no slide that is judged "
        f"has a say in it. Log-rank p: {tests}. Patient by patient: mean risk of its slides, group of most of them."
    )
    if any(d["repeated"] for _, d in models):
        cut += (
            " Patients who were tested in several folds count once in each, so p and ratios look surer than they are."
        )
    ratios = [
        [name, _of(r), row["name"], _ratio_text(row), p_text(row["p"]), str(r["n"])]
        for name, d in models
        for r in d["ratios"]
        for row in r["rows"]
    ]
    note = "By Cox regression, each fold with a baseline of its own; 95 % intervals (Wald)."
    for name, d in models:
        if d["adjust"]:
            columns = ", ".join(d["adjust"]["columns"])
            left = count_text(d["adjust"]["left_out"], "patient")
            note += f" {name}: adjusted for {columns}; {left} left out, of whom one of them is not known."
        note += "".join(f" {name}, {_of(r)}: {r['reason']}." for r in d["ratios"] if r["reason"])
    headers = ["model", "hazard ratio", "variable", "value", "p", "patients"]
    return [
        Heading("Groups of risk"),
        picture,
        Table(["model", "risk", "patients", "events", f"median {unit}"], rows, cut),
        Heading("Hazard ratios"),
        Table(headers, ratios, note) if ratios else Text(note),
    ]


def _of(ratio: dict[str, Any]) -> str:
    what = "high against low risk" if ratio["of"] == "group" else "risk, per sd"
    return what + (f", adjusted for {', '.join(ratio['adjusted_for'])}" if ratio["adjusted_for"] else ", alone")


def _ratio_text(row: dict[str, Any]) -> str:
    return f"{row['hazard_ratio']:.3g} ({row['low']:.3g} to {row['high']:.3g})"


def target_group_table(column: str, models: Sequence[tuple[str, Sequence[TargetGroup]]]) -> Table:
    """Figures of parts of a cohort, a row a group and model."""
    metrics = list(models[0][1][0].metrics)
    events = models[0][1][0].events is not None
    rows = []
    for name in dict.fromkeys(g.name for _, own in models for g in own):
        for title, g in ((title, g) for title, own in models for g in own if g.name == name):
            row = [name or "not said", str(g.n), str(g.patients), *([str(g.events)] if events else [])]
            row += [interval_text(v, metric=k) for k, v in g.metrics.items()]
            rows.append([title, *row] if len(models) > 1 else row)
    headers = [*(["model"] if len(models) > 1 else []), column, "cases", "patients", *(["events"] if events else [])]
    note = "In brackets 95 % bootstrap intervals over the patients of the group. Many groups: some differ by chance."
    return Table([*headers, *map(metric_title, metrics)], rows, note)


def _alt(e: TargetEvaluation) -> str:
    if e.task.kind == "regression":
        return "Predicted against true numbers, and their difference against their mean; the figures are in the tables"
    return "Kaplan-Meier curves of the groups of risk with numbers at risk; the figures are in the tables"


INTERVAL_NOTE = (
    "The interval says how much the figure depends on which patients were in the cohort; all slides of a patient are "
    "drawn together. It does not hold what another training run, hospital or scanner would change."
)
NOTES = {
    "regression": (
        "MAE is the mean distance of what is said from the truth, RMSE the root of the mean squared one, both in the "
        "number's own unit. R2 is the share of the spread that is explained: 1 is perfect, 0 as good as always saying "
        "the mean, below 0 worse. Pearson's correlation asks for a straight line, Spearman's for the same order.",
        INTERVAL_NOTE,
    ),
    "survival": (
        "Harrell's C is the share of pairs whose order is known in which who had the event sooner had the higher risk: "
        "0.5 is guessing, 1 is perfect. Uno's C weighs pairs so that censoring has no say. Risks of different folds "
        "have no common unit, so both, and the AUC, compare within folds only.",
        "The AUC at a time is the chance that who had the event until then had a higher risk than who was free of it "
        "for longer. The Brier score at a time is the mean squared distance of the predicted chance to be free of the "
        "event from what happened, weighed for censoring; the integrated one is its mean over time. 0 is perfect; 0.25 "
        "is what always saying one half has.",
        INTERVAL_NOTE,
    ),
}
