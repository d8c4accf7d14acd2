"""Figures in words: a value with its interval, a mean over folds, how well probabilities are calibrated."""

from __future__ import annotations

from collections.abc import Sequence

from lrmil_cli.evaluation.bootstrap import Interval
from lrmil_cli.evaluation.calibration import FIGURES
from lrmil_cli.evaluation.metrics import TITLES, decimals, show
from lrmil_cli.evaluation.page import Table
from lrmil_cli.evaluation.prediction_sets import SetFigures
from lrmil_cli.evaluation.scores import Score
from lrmil_cli.evaluation.subgroups import METRICS, Subgroup


def interval_text(v: Interval, sign: bool = False, metric: str = "") -> str:
    """``0.812 (0.740 to 0.880)``, or what is known of it; with ``sign`` also a plus.

    Args:
        metric: which one it is, for the number of its digits.
    """

    def number(x: float) -> str:
        return f"{x:{'+' if sign else ''}{decimals(metric)}}"

    if v.value is None:
        return show(None)
    if v.low is None or v.high is None:
        return number(v.value)
    return f"{number(v.value)} ({number(v.low)} to {number(v.high)})"


def folds_text(s: Score) -> str:
    """``0.801 ± 0.052``, with the number of folds where not all count."""
    if not s.of_folds:
        return "-"
    if s.mean is None:
        return "undefined"
    form = decimals(s.metric)
    sd = f" ± {s.sd:{form}}" if s.sd is not None else ""
    return f"{s.mean:{form}}{sd}" + (f", {s.folds} of {s.of_folds} folds" if s.folds < s.of_folds else "")


def count_text(n: int, what: str) -> str:
    """``1 slide``, ``2 slides``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def calibration_table(models: Sequence[tuple[str, dict[str, dict[str, Interval]]]]) -> Table:
    """Calibration figures, a row a model, and a second one where its probabilities before calibration are known.

    Args:
        models: (title, figures by ``given`` and ``raw``).
    """
    rows = []
    for title, both in models:
        for who, figures in both.items():
            kind = "before calibration" if who == "raw" else "calibrated" if "raw" in both else "as predicted"
            rows.append([title, kind, *(interval_text(figures[k]) for k in FIGURES)])
    note = (
        "Slope 1, intercept 0 and error 0 are perfect. A slope below 1: probabilities too extreme; an intercept above "
        "0: it comes true more often than they say. In brackets 95 % bootstrap intervals over patients."
    )
    return Table(["", "probabilities", *(t.removeprefix("calibration ") for t in FIGURES.values())], rows, note)


def group_table(column: str, models: Sequence[tuple[str, Sequence[Subgroup]]], classes: Sequence[str]) -> Table:
    """Figures of parts of a cohort, a row a group and model.

    Args:
        column: that says the groups; models: title and groups.
    """
    covered = any(g.covered is not None for _, own in models for g in own)
    rows = []
    for name in dict.fromkeys(g.name for _, own in models for g in own):
        for title, g in ((title, g) for title, own in models for g in own if g.name == name):
            counts = ", ".join(f"{n} {c}" for n, c in zip(g.counts, classes))
            figures = [interval_text(v) for v in g.metrics.values()]
            row = [name or "not said", str(g.n), str(g.patients), counts, *figures]
            row += [show(g.covered)] if covered else []
            rows.append([title, *row] if len(models) > 1 else row)
    headers = [*(["model"] if len(models) > 1 else []), column, "cases", "patients", "classes"]
    headers += [TITLES[k] for k in METRICS] + (["sets that hold the true class"] if covered else [])
    note = "In brackets 95 % bootstrap intervals over the patients of the group. Many groups: some differ by chance."
    return Table(headers, rows, note)


def set_table(models: Sequence[tuple[str, SetFigures]], what: str) -> Table:
    """What prediction sets reach, a row a model.

    Args:
        what: whose sets, as in "slides".
    """
    rows = [
        [title, str(s.n), f"{s.promised:g}", interval_text(s.reached), show(s.one_class), show(s.empty)]
        for title, s in models
    ]
    headers = ["sets", what, "promised coverage", "reached", "share with one class", "share with none"]
    return Table(headers, rows, "The coverage is the share of sets that hold the true class.")
