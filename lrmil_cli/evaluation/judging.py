"""How predictions of each task are judged and shown: the one place where commands ask which task it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lrmil_cli.evaluation import (
    evaluate_models,
    evaluate_targets,
    evaluation_files,
    evaluation_page,
    plots,
    target_files,
    target_page,
    target_plots,
)
from lrmil_cli.evaluation.metrics import METRICS
from lrmil_cli.evaluation.page import Block
from lrmil_cli.evaluation.target_cases import KINDS


@dataclass(frozen=True)
class Judging:
    """What ``lrmil evaluate`` needs of a task.

    Attributes:
        metrics: what may be asked for; evaluate: joined predictions -> an evaluation; the others: an evaluation ->
            the content of evaluation.json, the rows of metrics.csv, the picture.
        blocks: an evaluation, the picture, the history entry, pictures of errors (of classes) -> the page.
        warnings: an evaluation -> why its figures tell little.
    """

    metrics: tuple[str, ...]
    evaluate: Callable[..., Any]
    as_json: Callable[[Any], dict[str, Any]]
    frame: Callable[[Any], pd.DataFrame]
    picture: Callable[[Any], bytes]
    blocks: Callable[..., list[Block]]
    warnings: Callable[[Any], list[str]] = lambda e: []


def _curves(e: evaluate_models.Evaluation) -> bytes:
    cases = [(m.name, m.cases) for m in e.models]
    return plots.evaluation_picture(cases, e.classes, e.positive, draws=e.draws, seed=e.seed)


def _of_target(kind: str) -> Judging:
    return Judging(
        KINDS[kind].metrics,
        evaluate_targets.evaluate_targets,
        target_files.as_json,
        target_files.metrics_frame,
        lambda e: target_plots.pictures(e.models),
        lambda e, png, made_by, pictures: target_page.blocks(e, png, made_by),
        lambda e: [f"{m.name}: {text}" for m in e.models for text in target_page.warnings_of(m)],
    )


JUDGING = {
    "classification": Judging(
        METRICS,
        evaluate_models.evaluate_models,
        evaluation_files.as_json,
        evaluation_files.metrics_frame,
        _curves,
        evaluation_page.blocks,
    ),
    "regression": _of_target("regression"),
    "survival": _of_target("survival"),
}
