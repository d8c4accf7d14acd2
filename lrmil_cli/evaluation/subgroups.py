"""Figures of parts of a cohort: by site, or by any column of the manifest (evaluation/README 15)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrmil_cli.evaluation.bootstrap import Interval, intervals
from lrmil_cli.evaluation.scores import Cases, at_level

#: Groups that are shown one by one, the largest; all others are one.
MOST = 15
#: What each group is judged by.
METRICS = ("auc", "accuracy", "brier")


@dataclass(frozen=True)
class Subgroup:
    """A part of the cases of one model.

    Attributes:
        name: of the group, "" for those whose group nobody says; n, patients: how many; counts: cases of each class.
        metrics: with their intervals over the patients of the group; None where undefined.
        covered: share of prediction sets that hold the true class, slide by slide; None without sets.
    """

    name: str
    n: int
    patients: int
    counts: tuple[int, ...]
    metrics: dict[str, Interval]
    covered: float | None


def subgroups(
    slides: Cases,
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    level: str = "slide",
    sets: np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> list[Subgroup]:
    """The cases by group, the largest first.

    A patient with slides in two groups counts in both, each time by the slides there.

    Args:
        slides: one row a slide; groups: [n]; sets: bool [n, C], the prediction sets.

    Raises:
        InputError: at patient level, a patient whose slides have different labels.
    """
    out = []
    for name, index in parts(groups).items():
        own = at_level(slides.take(index), level, classes)
        found = intervals(METRICS, own.labels, own.probabilities, own.patients, draws=draws, seed=seed)
        counts = np.bincount(own.labels, minlength=len(classes)).tolist()
        covered = None if sets is None else float(sets[index, slides.labels[index]].mean())
        out.append(Subgroup(str(name), len(own.labels), len(set(own.patients)), tuple(counts), found, covered))
    return out


def parts(groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Group -> indices of its slides, the largest first; those beyond :data:`MOST` together."""
    names = np.asarray(groups, dtype=object)
    order = [name for name, _ in sorted(Counter(groups).items(), key=lambda item: (-item[1], item[0]))]
    out = {name: np.flatnonzero(names == name) for name in order[:MOST]}
    if rest := order[MOST:]:
        out[f"{len(rest)} others"] = np.flatnonzero(np.isin(names, rest))
    return out
