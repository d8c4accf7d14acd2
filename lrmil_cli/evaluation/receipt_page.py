"""The receipt of a distillation as the blocks of a page, and as its headline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lrmil_cli.evaluation.bootstrap import Interval
from lrmil_cli.evaluation.metrics import TARGET_TITLES, TITLES, decimals, lower_is_better, metric_title, show
from lrmil_cli.evaluation.page import Block, Heading, Picture, Table, Text
from lrmil_cli.evaluation.prediction_sets import SetFigures
from lrmil_cli.evaluation.scores import Score
from lrmil_cli.evaluation.subgroups import Subgroup
from lrmil_cli.evaluation.wording import calibration_table, folds_text, group_table, interval_text, set_table

#: Of all tasks; a receipt has those of one.
METRIC_TITLES = {
    m: title + (" (lower is better)" if lower_is_better(m) else "") for m, title in (TITLES | TARGET_TITLES).items()
}
#: Task -> the metric that its headline begins with.
LEADS = {"regression": "r2", "survival": "c_harrell"}


def receipt_blocks(
    receipt: dict[str, Any], picture: Picture, apart: Picture | None = None, made: dict[str, Any] | None = None
) -> list[Block]:
    """The receipt as a page.

    Args:
        apart: the slides where teacher and student disagree most, where there is a picture of them.
        made: history entry of the page, for its date; the receipt itself is the same whenever it is written.
    """
    models = receipt["models"]
    most = f" Always saying {receipt['majority']['class']} has accuracy {receipt['majority']['share']:.3f}."
    blocks = [*opening_blocks(receipt, made or {}), *metric_blocks(receipt, most)]
    figures = [
        (m["title"], {who: {k: Interval(**v) for k, v in own.items()} for who, own in m["calibration"].items()})
        for m in models.values()
    ]
    blocks += [Heading("Whether its probabilities mean what they say"), calibration_table(figures)]
    if receipt["prediction_sets"]:
        sets = receipt["prediction_sets"]
        own = SetFigures(**{**sets, "reached": Interval(**sets["reached"])})
        blocks += [Heading("Prediction sets"), set_table([(models["distilled"]["title"], own)], "held-out patients")]
    blocks += seed_blocks(receipt)
    blocks += _site_blocks(receipt)
    return [*blocks, *closing_blocks(receipt, picture, apart)]


def opening_blocks(receipt: dict[str, Any], made: dict[str, Any]) -> list[Block]:
    """What it comes to, and of when it is."""
    return [Text(headline(receipt)), Text(_dated(receipt, made))]


def metric_blocks(receipt: dict[str, Any], more: str = "") -> list[Block]:
    """Metrics of each, pooled and over folds, and differences.

    Args:
        more: follows what is said of the pooled ones.
    """
    models = receipt["models"]
    titles = [m["title"] for m in models.values()]
    own = {k: t for k, t in METRIC_TITLES.items() if k in next(iter(models.values()))["metrics"]}
    rows = [[t, *(value_text(m["metrics"][k], metric=k) for m in models.values())] for k, t in own.items()]
    note = f"On the same {receipt['slides']} slides{_who(receipt)}; in brackets 95 % bootstrap intervals over patients."
    blocks: list[Block] = [Heading("How good"), Table(["pooled: all slides together", *titles], rows, note + more)]
    if receipt["folds"] > 1:
        rows = [[t, *(_over_folds(k, m["metrics"][k]) for m in models.values())] for k, t in own.items()]
        note = (
            "Each fold judged by itself, then the mean: what papers mostly report. It differs from the pooled figure "
            "above, because heads of different folds need not be on one scale, and folds are small."
        )
        blocks.append(Table(["fold mean ± sd", *titles], rows, note))
    both = receipt["differences"]
    if both:
        rows = [[t, *(value_text(d[k], True, k) for d in both)] for k, t in own.items() if k in both[0]]
        note = (
            "Paired: both models on the same resampled patients. An interval that holds 0 does not tell the two apart."
        )
        headers = ["", *(f"{models[d['a']]['title']} - {models[d['b']]['title']}" for d in both)]
        blocks += [Heading("Differences"), Table(headers, rows, note)]
    return blocks


def closing_blocks(receipt: dict[str, Any], picture: Picture | None, apart: Picture | None) -> list[Block]:
    """What it costs, where they look, the picture if it did not stand before, how it was made."""
    blocks: list[Block] = [Heading("What it costs"), *_cost_blocks(receipt["cost"], receipt["models"])]
    blocks += [Heading("Where they look"), *_agreement_blocks(receipt)]
    if apart is not None:
        blocks += [Heading("Where teacher and student disagree most"), apart, Text(APART)]
    if picture is not None:
        blocks += [Heading("Pictures"), picture]
    return [*blocks, Heading("How it was made"), Text(_fine_print(receipt))]


APART = (
    "Held-out slides, those first whose answers are farthest apart; what is shown of the teacher is its attention at "
    "20x, carried to the 5x tiles. The same colours for all, as multiples of an even share."
)


def _dated(receipt: dict[str, Any], made: dict[str, Any]) -> str:
    """When, by which version, with which seeds, and what it is not for."""
    trained = receipt.get("trained") or {}
    said = f"Trained {trained.get('date') or 'at an unknown time'} by lrmil {trained.get('lrmil') or 'unknown'}"
    seeds = f"seed {trained.get('seed', 'not recorded')}, resamples by seed {receipt['bootstrap']['seed']}"
    written = f"; receipt of {made['date']} by lrmil {made['lrmil']}" if made else ""
    return f"{said} ({seeds}){written}. For research use only; not a medical device."


def _site_blocks(receipt: dict[str, Any]) -> list[Block]:
    """Figures by site, and what the features know of sites."""
    about = receipt.get("sites")
    if not about:
        return []
    groups = [
        (receipt["models"][n]["title"], [_subgroup(g, receipt["classes"]) for g in own])
        for n, own in about["models"].items()
    ]
    return [Heading("Sites"), Text(site_text(about)), group_table("site", groups, receipt["classes"])]


def site_text(about: dict[str, Any]) -> str:
    """Whether folds keep sites apart, and whether features tell them, in sentences.

    Args:
        about: ``apart`` and ``probe``.
    """
    apart = {
        True: "No head was judged on a site that it was trained on.",
        False: "Heads were judged on sites that they were trained on: where site and label go together, figures are "
        "too good for a new hospital (--by-site preserve judges without that).",
        None: "Whether heads were judged on sites that they were trained on is not recorded.",
    }[about["apart"]]
    probe = about.get("probe")
    if not probe:
        return apart
    if "auc" not in probe["site"]:
        return f"{apart} Whether the features tell the site is not known: {probe['site']['reason']}."
    own = probe["label"]
    label = f"; the label by the same means {value_text(own['auc'])}" if "auc" in own else ""
    return (
        f"{apart} A logistic regression on the means of the features tells the site with a macro AUC of "
        f"{value_text(probe['site']['auc'])} ({probe['site']['classes']} sites, 0.5 is chance){label}."
    )


def _subgroup(g: dict[str, Any], classes: Sequence[str]) -> Subgroup:
    metrics = {k: Interval(v["value"], v["low"], v["high"], v["undefined_draws"]) for k, v in g["metrics"].items()}
    return Subgroup(g["name"], g["n"], g["patients"], tuple(g["counts"][c] for c in classes), metrics, g["covered"])


def _who(receipt: dict[str, Any]) -> str:
    """Whose slides, and whether the heads that judged them knew their patients."""
    apart = receipt.get("patients_apart")
    if apart is None:
        return ", each predicted by heads that did not see it; patients unknown, so slides are taken for patients"
    of = f" of {receipt['patients']} patients, each predicted by heads that "
    return of + ("did not see its patient" if apart else "did not see it, but some saw OTHER SLIDES OF ITS PATIENT")


def lead_of(receipt: dict[str, Any]) -> str:
    """The metric that the headline begins with."""
    return LEADS.get((receipt.get("target") or {}).get("kind", ""), "auc")


def headline(receipt: dict[str, Any]) -> str:
    """The receipt in a few sentences: all that the intervals tell apart, and no more."""
    m = receipt["models"]

    lead = lead_of(receipt)

    def figure(name: str) -> str:
        own = m[name]["metrics"][lead]
        folds = f", fold mean {show(own['mean'])}" if own.get("of_folds") and own["of_folds"] > 1 else ""
        return value_text(own) + folds

    parts = [f"Pooled {metric_title(lead)} at low resolution {figure('distilled')} with preset {receipt['preset']}"]
    if "lr_only" in m:
        parts.append(f"{figure('lr_only')} from the labels alone")
    if "also" in m:
        parts.append(f"{figure('also')} for the {m['also']['title']}")
    if "teacher" in m:
        parts.append(f"{figure('teacher')} for the teacher at high resolution")
    text = "; ".join(parts) + "."
    against = {"lr_only": "LR-only student", "teacher": "teacher", "also": m["also"]["title"] if "also" in m else ""}
    for d in receipt["differences"]:
        if d["b"] == "teacher" and d["a"] == "lr_only":
            continue
        text += " " + _difference_text(receipt, d, against[d["b"]])
    ratio = receipt["cost"].get("tile_ratio")
    return text + (f" It reads {ratio:.1f} times fewer tiles." if ratio else "")


def _difference_text(receipt: dict[str, Any], d: dict[str, Any], against: str) -> str:
    """The distilled student against another: each metric whose interval excludes 0, and which do not."""
    known = {k: d[k] for k in METRIC_TITLES if k in d and d[k]["value"] is not None and d[k]["low"] is not None}
    sure = {k: v for k, v in known.items() if v["low"] > 0 or v["high"] < 0}

    def one(metric: str) -> str:
        value, sd = sure[metric]["value"], _spread_of(receipt, d["b"], metric)
        better, form = "better" if (value > 0) != lower_is_better(metric) else "worse", decimals(metric)
        if sd is not None and abs(value) <= sd:
            better = f"no more than another seed changes, sd {sd:{form}}: no gain is claimed"
        return f"{metric_title(metric)} {abs(value):{form}} {'higher' if value > 0 else 'lower'} ({better})"

    rest = [metric_title(k) for k in known if k not in sure]
    if not known:
        return f"Against the {against} there is no interval."
    if not sure:
        return f"Against the {against} these patients tell no metric apart ({', '.join(rest)})."
    left = f"; {', '.join(rest)} cannot be told apart" if rest else ""
    return f"Against the {against} the distilled student has {', '.join(map(one, sure))}{left}."


def _spread_of(receipt: dict[str, Any], other: str, metric: str) -> float | None:
    """The sd over seeds of a difference: to the LR-only student of the same seed, or, since there is one teacher, of
    the distilled student's own figure; None where there was one seed, or it is not known."""
    about = receipt.get("seeds")
    if not about:
        return None
    own = about["differences"].get(other) or about["models"].get("distilled") or {}
    return (own.get(metric) or {}).get("sd")


def seed_blocks(receipt: dict[str, Any]) -> list[Block]:
    """The two doubts apart: over patients, which the intervals tell, and over seeds."""
    about = receipt.get("seeds")
    if not about:
        return []
    rows = [
        [receipt["models"][who]["title"], *(_over_seeds(own[m], metric=m) for m in own)]
        for who, own in about["models"].items()
        if who in receipt["models"]
    ]
    rows += [[f"distilled - {receipt['models'][b]['title']}", *(_over_seeds(own[m], "+", m) for m in own)]
             for b, own in about["differences"].items() if b in receipt["models"]]  # fmt: skip
    note = (
        f"Mean ± sd over {about['count']} seeds, each judged as if it were the only one. Intervals above are about "
        "which patients were in the cohort; this is about which numbers training began with."
    )
    return [Heading("Seeds"), Table(["", *(metric_title(m) for m in next(iter(about["models"].values())))], rows, note)]


def _over_seeds(v: dict[str, Any], sign: str = "", metric: str = "") -> str:
    if v["mean"] is None:
        return "undefined"
    form = decimals(metric)
    return f"{v['mean']:{sign}{form}}" + (f" ± {v['sd']:{form}}" if v["sd"] is not None else "")


def _interval(value: dict[str, Any]) -> Interval:
    return Interval(value["value"], value["low"], value["high"], value["undefined"])


def value_text(value: dict[str, Any], sign: bool = False, metric: str = "") -> str:
    """A value of a receipt with its interval, and why it is undefined where it is."""
    text = interval_text(_interval(value), sign, metric)
    return f"{text} ({value['reason']})" if value.get("reason") else text


def _over_folds(metric: str, value: dict[str, Any]) -> str:
    rest = (value[k] for k in ("mean", "sd", "folds", "of_folds", "reason"))
    return folds_text(Score(metric, _interval(value), *rest))


def _cost_blocks(cost: dict[str, Any], models: dict[str, Any]) -> list[Block]:
    sides = [s for s in ("hr", "lr", "also") if s in cost]
    titles = {"hr": "HR", "lr": "LR", "also": f"LR, {models['also']['title']}" if "also" in models else ""}
    if not sides:
        return [Text("Not recorded.")]

    def row(title: str, key: str, form: str, ratio: float | None) -> list[str]:
        cells = [form.format(cost[s][key]) if cost[s][key] is not None else "not recorded" for s in sides]
        return [title, *cells, f"{ratio:.1f}" if ratio else "-"]

    devices = sorted({d for s in sides for d in cost[s]["devices"]})
    where = f", on {', '.join(devices)}" if devices else ""
    timed = ", ".join(f"{titles[s]} {cost[s]['timed']} of {cost[s]['slides']} slides" for s in sides)
    return [
        Table(
            ["a slide", *(titles[s] for s in sides), "HR / LR"],
            [
                row("tiles read and encoded", "tiles", "{:.1f}", cost.get("tile_ratio")),
                row("seconds", "seconds", "{:.2f}", cost.get("seconds_ratio")),
            ],
            f"Seconds are those of opening, reading and encoding when the features were made{where}. Timed: {timed}.",
        )
    ]


def _agreement_blocks(receipt: dict[str, Any]) -> list[Block]:
    own = receipt["agreement"]
    if not own:
        return [Text("Not compared: that takes a teacher, and HR features and pairs of the held-out slides.")]
    keys = ("rank_correlation", "overlap", "chance")
    rows = [[receipt["models"][s]["title"], str(v["slides"]), *(show(v[k]) for k in keys)] for s, v in own.items()]
    return [
        Table(
            ["compared with the teacher", "slides", "rank correlation", "top-k overlap", "overlap by chance"],
            rows,
            "Attention of the teacher, carried to LR tiles, against the student's own, on held-out slides: Spearman "
            "correlation and the share of the teacher's top k LR tiles that are in the student's top k, both as means "
            "over slides.",
        )
    ]


def _fine_print(receipt: dict[str, Any]) -> str:
    folds = f"{receipt['folds']} folds" if receipt["folds"] > 1 else "one fixed split"
    text = (
        f"Head {receipt['head']}, {folds}, the same for all models; the epoch of each head was chosen on validation "
        f"slides. Metrics count {receipt['level']}s; {receipt['bootstrap']['draws']} resamples. "
    )
    if not receipt.get("seeds"):
        text += "One seed: what another would change is not known (--seeds). "
    if receipt["encoder_saw_test_pixels"]:
        return text + (
            "The LR encoder was distilled on slides that are test slides here: it saw their pixels, not their labels. "
            "For inductive numbers make one encoder a fold."
        )
    return text + "The LR encoder saw no test slide."
