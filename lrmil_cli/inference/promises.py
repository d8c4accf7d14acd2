"""Answers with a promise: a set of classes that holds the true one often enough, abstaining up to a given error.

``predict --coverage`` and ``--max-error`` (inference/README 4); the arithmetic is in ``evaluation/prediction_sets``.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

from lrmil_cli.errors import UsageError
from lrmil_cli.evaluation.prediction_sets import (
    Abstention,
    CalibrationPatients,
    abstain_below,
    calibration_patients,
    check_coverage,
    lowest_error,
    prediction_sets,
)
from lrmil_cli.inference.prediction import Prediction, Predictor, reasons_to_abstain
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide


class Promised:
    """A predictor that adds to each answer the set of classes, and whether to abstain.

    Args:
        known: what both promises lean on; coverage: of the sets, None for none; by_class: Mondrian.
        max_error: among the answers that are not uncertain, with the ``rule`` that keeps it; None for no abstaining.
    """

    def __init__(
        self,
        base: Predictor,
        known: CalibrationPatients,
        *,
        coverage: float | None,
        by_class: bool,
        max_error: float | None,
        rule: Abstention | None,
    ):
        self.base, self.known, self.coverage, self.by_class = base, known, coverage, by_class
        self.max_error, self.rule = max_error, rule
        self.path, self.header, self.classes = base.path, base.header, base.classes
        self.tiles, self.device, self.ahead = base.tiles, base.device, base.ahead
        self.settings = {
            **base.settings,
            "promise": {"coverage": coverage, "by_class": by_class, "max_error": max_error},
        }

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        return self.base.plan(slide, region)

    def predict(self, slide: Slide, region: Region | None) -> Generator[None, None, Prediction]:
        return self.judged((yield from self.base.predict(slide, region)))

    def judged(self, p: Prediction) -> Prediction:
        """The answer of the base, with what is promised of it."""
        record: dict[str, Any] = {}
        if self.coverage is not None:
            (there,) = prediction_sets(p.per_fold[None], self.known, self.coverage, by_class=self.by_class)
            record["prediction_set"] = {
                "classes": [c for c, in_set in zip(self.classes, there.tolist()) if in_set],
                "coverage": self.coverage,
                "by": "class" if self.by_class else "all",
                "patients": len(self.known.head),
            }
        if self.rule is not None and self.rule.confidence is not None:
            sure = float(p.probabilities.max())
            record["confidence"] = round(sure, 6)
            low = sure < self.rule.confidence
            text = f"probability {math.floor(sure * 1e4) / 1e4:g} is below {self.rule.confidence:.4g}"
            doubt = f"{text}, for an error of {self.max_error:g} at most" if low else None
            record["uncertain"] = reasons_to_abstain(p.record, doubt)
            record["abstaining"] = {"max_error": self.max_error, **vars(self.rule)}
        p.record = {**p.record, **record}
        return p


def with_promises(base: Predictor, *, coverage: float | None, by_class: bool, max_error: float | None) -> Promised:
    """The predictor with sets of ``coverage``, or with abstaining up to ``max_error``, or both.

    Raises:
        InputError: the model holds no calibration patients, or damaged ones.
        UsageError: too few of them for what is asked, with the number needed, or the best that can be had.
    """
    known = calibration_patients(base.header, base.path)
    rule = None
    if coverage is not None:
        check_coverage(known, coverage, by_class, base.classes)
    if max_error is not None:
        rule = abstain_below(known, max_error)
        if rule.confidence is None:
            best = lowest_error(known)
            raise UsageError(
                f"--max-error {max_error:g}: not reachable, the {rule.of} calibration patients of {base.path} do not "
                "show it at any confidence; " + ("no error is" if best is None else f"the lowest they show is {best:g}")
            )
    return Promised(base, known, coverage=coverage, by_class=by_class, max_error=max_error, rule=rule)
