"""What the students of a run are trained and judged on, which files that is made from, and where heads are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lrmil_cli.distill.student_encoders import StudentEncoders
from lrmil_cli.files.header import digest, last_digest
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.heads import Bag
from lrmil_cli.training.bags import Bags
from lrmil_cli.training.fold_files import FoldFiles
from lrmil_cli.training.folds import fold_names, members
from lrmil_cli.training.high_resolution import HighResolution
from lrmil_cli.training.teacher import Teacher, manifest_digest


@dataclass
class OtherSide:
    """Other LR encoders whose students are trained for comparison, and the bags of each."""

    encoders: StudentEncoders
    low: list[Bags[Bag]]

    @property
    def title(self) -> str:
        """What their students are called: of a distilled copy, or of which architecture."""
        info = self.encoders.first.info
        copied = info.distilled is not None and "student" not in info.distilled
        return "student of a copy" if copied else f"student of {info.architecture}"

    def bags_of(self, fold: int) -> Bags[Bag]:
        """The LR bags that a fold (from 1) reads."""
        return self.low[self.encoders.of_fold[fold - 1]]


@dataclass
class StudentCohort:
    """What the students are trained and judged on; lists are in the order of the manifest.

    Attributes:
        folds: who is train, val and test in which fold; tiles: settings of the LR tiles.
        low: LR bags, a set for each of ``encoders``; baseline: those of the LR-only student, None for no such student.
        also: the LR side of another LR encoder, None without one.
        guide, high: the teacher, and the HR side of the slides it speaks of; None without one.
        taught: slides that learn from the teacher; counts: their regions, see :func:`matched_counts`.
    """

    manifest: Manifest
    folds: pd.DataFrame
    tiles: dict[str, Any]
    encoders: StudentEncoders
    low: list[Bags[Bag]]
    baseline: Bags[Bag] | None
    also: OtherSide | None
    guide: Teacher | None
    high: HighResolution | None
    taught: set[str]
    counts: dict[str, int]

    @property
    def ids(self) -> list[str]:
        return [e.slide_id for e in self.manifest]

    @property
    def tested(self) -> set[str]:
        return slides_of(self.folds, "test")

    def bags_of(self, fold: int) -> Bags[Bag]:
        """The LR bags that a fold (from 1) reads."""
        return self.low[self.encoders.of_fold[fold - 1]]


def all_inputs(cohort: StudentCohort) -> dict[str, str]:
    """Digests of all files that decide the model."""
    bags = enumerate(cohort.low)
    lr = {f"lr{n}/{i}": last_digest(h) for n, b in bags for i, h in zip(cohort.ids, b.headers)}
    other = enumerate(cohort.also.low if cohort.also is not None else [])
    also = {f"also{n}/{i}": last_digest(h) for n, b in other for i, h in zip(cohort.ids, b.headers)}
    return {**_known_inputs(cohort), **lr, **also}


def _known_inputs(cohort: StudentCohort) -> dict[str, str]:
    """Those that all folds have in common."""
    return {
        "manifest": manifest_digest(cohort.manifest),
        **(cohort.high.inputs if cohort.high is not None else {}),
        **({"teacher": last_digest(cohort.guide.header)} if cohort.guide is not None else {}),
    }


def fold_files(
    cohort: StudentCohort, own: dict[str, Any], folder: Path, fold: int | None, run: int = 0
) -> dict[str, FoldFiles]:
    """Where heads are kept until the model is written, by the students' names.

    Args:
        own: the settings, with the seed of the run; run: its number from 0, where there are several.
    """
    more = f".seed{run + 1}" if run else ""

    def files(name: str, inputs: Callable[[int], dict[str, str]]) -> FoldFiles:
        wanted = lambda k: digest(own, inputs(k))
        return FoldFiles(
            folder, name + more, "distill-student", cohort.manifest.classes, own, inputs, wanted, fold is not None
        )

    known = _known_inputs(cohort)
    low = lambda bags: {f"lr/{i}": last_digest(h) for i, h in zip(cohort.ids, bags.headers)}
    out = {"distilled": files("distilled", lambda k: {**known, **low(cohort.bags_of(k))})}
    if (bags := cohort.baseline) is not None:
        out["lr_only"] = files("lr_only", lambda k: {**known, **low(bags)})
    if (also := cohort.also) is not None:
        out["also"] = files("also", lambda k: {**known, **low(also.bags_of(k))})
    return out


def slides_of(folds: pd.DataFrame, part: str) -> set[str]:
    """Slides that are in ``part`` of some fold."""
    return {s for name in fold_names(folds) for s in members(folds, name)[part]}
