"""The receipt of a distillation of numbers or of survival: figures, picture, page (evaluation/README 19)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lrmil_cli.errors import MachineError
from lrmil_cli.evaluation.bootstrap import Interval
from lrmil_cli.evaluation.evaluate_targets import DETAILS, TargetGroup, groups_of
from lrmil_cli.evaluation.page import Block, Heading, Picture, Text
from lrmil_cli.evaluation.predictions import SITE, Predictions
from lrmil_cli.evaluation.receipt_page import closing_blocks, metric_blocks, opening_blocks, seed_blocks, site_text
from lrmil_cli.evaluation.scores import Score
from lrmil_cli.evaluation.target_cases import RECEIPT_METRICS, at_level, cases_of, judged, scores_of
from lrmil_cli.evaluation.target_page import few_events_text, number_blocks, survival_blocks, target_group_table
from lrmil_cli.evaluation.target_plots import numbers_picture, survival_picture
from lrmil_cli.targets.task import task_of


@dataclass(frozen=True)
class StudentFigures:
    """What came of each model, and of pairs of them (distilled, other).

    Attributes:
        details: by the name of the task, as ``evaluate_targets.TargetModel.detail``; of survival without lifelines
            ``unknown``: why.
    """

    scores: dict[str, list[Score]]
    details: dict[str, dict[str, Any]]
    sites: dict[str, list[TargetGroup]]
    differences: dict[tuple[str, str], dict[str, Interval]]


def judge_students(
    shared: dict[str, Predictions], level: str, pairs: Sequence[tuple[str, str]], *, draws: int, seed: int
) -> StudentFigures:
    """Figures of teacher and students on the slides that all of them predicted.

    Raises:
        InputError: slides of a patient that differ in what is predicted (of numbers at patient level only).
    """
    task = shared["distilled"].task
    metrics, at = RECEIPT_METRICS[task.kind], shared["distilled"].times
    slides = {n: cases_of(p, at) for n, p in shared.items()}
    cases = {n: at_level(c, level) for n, c in slides.items()}
    scores = {n: scores_of(c, level, metrics=metrics, draws=draws, seed=seed) for n, c in slides.items()}
    sites = {n: groups_of(p, slides[n], (), level, draws=draws, seed=seed).get(SITE, []) for n, p in shared.items()}
    details: dict[str, dict[str, Any]] = {}
    for n, c in slides.items():
        try:
            details[n] = {task.kind: DETAILS[task.kind](c, level, None)}
        except MachineError as e:  # a training that has ended still gets its receipt
            details[n] = {"unknown": str(e)}
    both = {
        (a, b): judged(cases[a], other=cases[b], metrics=metrics, draws=draws, seed=seed)
        for a, b in pairs
        if a in cases and b in cases
    }
    return StudentFigures(scores, details, sites, both)


def students_picture(
    shared: dict[str, Predictions], titles: dict[str, str], receipt: dict[str, Any]
) -> tuple[bytes, str] | None:
    """PNG of teacher and students, and what it shows in words; None where there is nothing to show."""
    task = task_of(receipt)
    if task.kind == "regression":
        cases = [(titles[n], at_level(cases_of(p), receipt["level"])) for n, p in shared.items()]
        return numbers_picture(cases, task.label), "Predicted against true numbers, and Bland-Altman, of the models"
    known = [(titles[n], m["survival"]) for n, m in receipt["models"].items() if "survival" in m]
    if not known:
        return None
    return survival_picture(known, task.time), "Kaplan-Meier curves of the groups of risk of the models"


def target_receipt_blocks(
    receipt: dict[str, Any], picture: Picture | None, apart: Picture | None = None, made: dict[str, Any] | None = None
) -> list[Block]:
    """The receipt as a page; arguments as of ``receipt_page.receipt_blocks``."""
    task, models = task_of(receipt), list(receipt["models"].values())
    blocks = opening_blocks(receipt, made or {})
    known = [(m["title"], m[task.kind]) for m in models if task.kind in m]
    if known and known[0][1].get("few_events"):
        blocks.append(Text(f"Warning: {few_events_text(known[0][1]['events'])}."))
    blocks += metric_blocks(receipt)
    if picture is not None:
        of_task = number_blocks(known, picture) if task.kind == "regression" else None
        blocks += of_task or survival_blocks(known, picture, task.time)
    blocks += [Text(f"Not computed: {why}.") for why in dict.fromkeys(m["unknown"] for m in models if "unknown" in m)]
    blocks += seed_blocks(receipt)
    if about := receipt["sites"]:
        groups = [(receipt["models"][n]["title"], [_group(g) for g in own]) for n, own in about["models"].items()]
        blocks += [Heading("Sites"), Text(site_text(about)), target_group_table("site", groups)]
    return [*blocks, *closing_blocks(receipt, None, apart)]


def _group(g: dict[str, Any]) -> TargetGroup:
    metrics = {k: Interval(v["value"], v["low"], v["high"], v["undefined_draws"]) for k, v in g["metrics"].items()}
    return TargetGroup(g["name"], g["n"], g["patients"], g["events"], metrics)
