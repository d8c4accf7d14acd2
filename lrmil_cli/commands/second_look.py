"""Options of ``lrmil predict`` about answers that are not sure: a second look at high resolution, and saying so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError

if TYPE_CHECKING:
    from lrmil_cli.inference.prediction import Predictor

#: LR tiles under which HR tiles are read, and the probability that is sure enough, unless the user says otherwise.
BUDGET, CONFIDENCE = 16, 0.8

Escalate = Annotated[
    Optional[str],
    typer.Option(
        "--escalate",
        metavar="DIR",
        help="Where the answer is not sure (the fold heads disagree, its calibrated probability is below --confidence, "
        "or heads of a number differ by more than --max-spread), read 20x under the most attended 5x tiles and let "
        "this teacher answer.",
    ),
]
Budget = Annotated[
    Optional[int],
    typer.Option(
        "--budget",
        metavar="N",
        min=1,
        help=f"With --escalate: read 20x under N tiles of 5x at most.  [default: {BUDGET}; ours]",
    ),
]
Confidence = Annotated[
    Optional[float],
    typer.Option(
        "--confidence",
        metavar="P",
        help="With --escalate or --abstain: an answer of a lower calibrated probability is not sure; "
        f"with 1 none is.  [default: {CONFIDENCE}; ours]",
    ),
]
MaxSpread = Annotated[
    Optional[float],
    typer.Option(
        "--max-spread",
        metavar="SD",
        min=0,
        help="With --escalate or --abstain, of a model of a number: an answer is not sure where the standard deviation "
        "over its heads is larger, in the number's unit; with 0 none is.  [default: a quarter of that of the number "
        "over the training slides; ours]",
    ),
]
HrEncoder = Annotated[
    Optional[str],
    typer.Option(
        "--hr-encoder",
        metavar="SPEC",
        help="With --escalate: the encoder of the teacher.  "
        "[default: the one that the model's encoder was distilled from]",
    ),
]
Abstain = Annotated[
    bool,
    typer.Option(
        "--abstain",
        help="Call an answer that is not sure (after --escalate, where given) uncertain: "
        "status `uncertain` in --json, `uncertain` with the reason in the prediction.",
    ),
]


def classes_only(predictor: Predictor, option: str) -> None:
    """Raises UsageError if an option that speaks of probabilities is given for a model that has none."""
    from lrmil_cli.targets.task import task_of

    if not (task := task_of(predictor.header)).classes:
        raise UsageError(f"{option} speaks of classes; {predictor.path} learned {task.name}")


def _number_only(predictor: Predictor, option: str) -> None:
    from lrmil_cli.targets.task import task_of

    if (task := task_of(predictor.header)).kind != "regression":
        raise UsageError(f"{option} is about heads of a number; {predictor.path} learned {task.name}")


@dataclass(frozen=True)
class Asked:
    """What these options ask, by their names."""

    escalate: str | None
    budget: int | None
    confidence: float | None
    max_spread: float | None
    hr_encoder: str | None
    abstain: bool


def with_second_look(
    predictor: Predictor,
    asked: Asked,
    *,
    device: str,
    batch_size: int | None,
    allow_upsample: bool,
    report: Report,
) -> Predictor:
    """The predictor with what these options ask of it; itself where they ask nothing."""
    if asked.confidence is not None:
        classes_only(predictor, "--confidence")
    if asked.max_spread is not None:
        _number_only(predictor, "--max-spread")
    if asked.escalate is None and not asked.abstain:
        return predictor
    from lrmil_cli.inference.second_look import with_second_look

    return with_second_look(
        predictor,
        teacher=asked.escalate,
        budget=asked.budget or BUDGET,
        confidence=CONFIDENCE if asked.confidence is None else asked.confidence,
        max_spread=asked.max_spread,
        abstain=asked.abstain,
        encoder=asked.hr_encoder,
        device=device,
        batch_size=batch_size,
        allow_upsample=allow_upsample,
        warn=report.warn,
    )


def check_second_look(asked: Asked) -> None:
    """Options that would do nothing, said before any work.

    Raises:
        UsageError: there are some.
    """
    for option, value in (("--budget", asked.budget), ("--hr-encoder", asked.hr_encoder)):
        if value is not None and asked.escalate is None:
            raise UsageError(f"{option} is about a second look at high resolution; give --escalate TEACHER too")
    for option, number in (("--confidence", asked.confidence), ("--max-spread", asked.max_spread)):
        if number is not None and asked.escalate is None and not asked.abstain:
            raise UsageError(f"{option} says when an answer is not sure; give --escalate TEACHER or --abstain too")
