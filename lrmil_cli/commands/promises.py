"""Options of ``lrmil predict`` about promises: sets of classes of a coverage, abstaining up to an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from lrmil_cli.commands.second_look import classes_only
from lrmil_cli.errors import UsageError

if TYPE_CHECKING:
    from lrmil_cli.inference.prediction import Predictor

COVERAGE_BY = ("all", "class")

Coverage = Annotated[
    Optional[float],
    typer.Option(
        "--coverage",
        metavar="P",
        help="Also give the set of classes that holds the true one for this share of new patients, such as 0.9 "
        "(CV+, by the held-out patients in the model file).",
    ),
]
CoverageBy = Annotated[
    Optional[str],
    typer.Option(
        "--coverage-by",
        help="With --coverage: keep the share in all patients, or in those of each class apart, which takes more of "
        "them.  [default: all; ours]",
    ),
]
MaxError = Annotated[
    Optional[float],
    typer.Option(
        "--max-error",
        metavar="P",
        help="With --abstain, in place of --confidence: call so many answers uncertain that at most this share of the "
        "others is wrong, with 95 % certainty by the held-out patients in the model file.",
    ),
]


def check_promises(
    coverage: float | None,
    coverage_by: str | None,
    max_error: float | None,
    escalate: str | None,
    confidence: float | None,
    abstain: bool,
) -> None:
    """Options that would do nothing or that contradict each other, said before any work.

    Raises:
        UsageError: there are some.
    """
    if coverage_by is not None and coverage_by not in COVERAGE_BY:
        raise UsageError(f"--coverage-by {coverage_by}: choose one of {', '.join(COVERAGE_BY)}")
    if coverage_by is not None and coverage is None:
        raise UsageError("--coverage-by says among whom --coverage is kept; give --coverage P too")
    if max_error is not None and not abstain:
        raise UsageError("--max-error says when to abstain; give --abstain too")
    if max_error is not None and confidence is not None:
        raise UsageError("--max-error finds the confidence by itself; leave out --confidence")
    for option, value in (("--coverage", coverage), ("--max-error", max_error)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{option} {value:g}: give a share between 0 and 1")
        if value is not None and escalate is not None:
            raise UsageError(
                f"{option} is about the model's own heads, whose held-out patients it knows, and not about a teacher; "
                "leave out --escalate"
            )


def with_promises(
    predictor: Predictor, coverage: float | None, coverage_by: str | None, max_error: float | None
) -> Predictor:
    """The predictor with what these options ask of it; itself where they ask nothing."""
    if coverage is None and max_error is None:
        return predictor
    classes_only(predictor, "--coverage" if coverage is not None else "--max-error")
    from lrmil_cli.inference.promises import with_promises

    return with_promises(predictor, coverage=coverage, by_class=coverage_by == "class", max_error=max_error)
