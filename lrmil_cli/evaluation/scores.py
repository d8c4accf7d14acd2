"""How good predictions are: metrics with intervals, over folds, per class, and the difference of two models.

Pure functions of arrays (evaluation/README 4); files are read by ``predictions``, reports written by
``evaluation_page`` and ``receipt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.bootstrap import Interval, intervals, resamples
from lrmil_cli.evaluation.metrics import METRIC_FUNCTIONS, METRICS, confusion, mean_sd, one_auc

LEVELS = ("slide", "patient")
#: What two models are compared by, unless the user chooses.
COMPARED = ("auc", "accuracy", "brier", "log_loss")


@dataclass(frozen=True)
class Cases:
    """What is judged: one row a slide (or a patient).

    Attributes:
        labels: int [n]; probabilities: [n, C]; patients: str [n]; folds: [n] or None where nothing says.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    patients: np.ndarray
    folds: np.ndarray | None = None

    def take(self, index: np.ndarray) -> Cases:
        return Cases(
            self.labels[index],
            self.probabilities[index],
            self.patients[index],
            None if self.folds is None else self.folds[index],
        )


@dataclass(frozen=True)
class Score:
    """One metric of one model.

    Attributes:
        pooled: over all cases, with its interval.
        mean, sd: over the folds in which it is defined; folds: how many those are, of_folds: how many there are.
        reason: why it is undefined, else "".
    """

    metric: str
    pooled: Interval
    mean: float | None
    sd: float | None
    folds: int
    of_folds: int
    reason: str


def metric_table(
    labels: Sequence[int] | np.ndarray,
    probabilities: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    folds: Sequence[int] | np.ndarray | None = None,
    *,
    classes: Sequence[str],
    level: str = "slide",
    metrics: Sequence[str] = METRICS,
    draws: int = 2000,
    seed: int = 0,
) -> list[Score]:
    """The metrics of one model: pooled with a 95 % bootstrap interval over patients, mean and sd over folds.

    Args:
        labels: int [n]; probabilities: [n, C]; patients: [n]; folds: [n], the fold in which a slide was tested;
        level: ``patient`` averages a patient's slides first, over all folds and within each fold.

    Raises:
        InputError: at patient level, a patient whose slides have different labels.
    """
    slides = Cases(
        np.asarray(labels, dtype=np.int64),
        np.asarray(probabilities, dtype=np.float64),
        np.asarray(patients),
        None if folds is None else np.asarray(folds),
    )
    pooled = at_level(slides, level, classes)
    parts = []
    if slides.folds is not None:
        parts = [at_level(slides.take(slides.folds == k), level, classes) for k in np.unique(slides.folds)]
    absent = [c for n, c in enumerate(classes) if n not in pooled.labels]
    reason = f"no {level} of class {', '.join(absent)}" if absent else ""
    out = []
    whole_of = intervals(metrics, pooled.labels, pooled.probabilities, pooled.patients, draws=draws, seed=seed)
    for name, whole in whole_of.items():
        each = [METRIC_FUNCTIONS[name](p.labels, p.probabilities) for p in parts]
        defined = sum(v is not None for v in each)
        out.append(Score(name, whole, *mean_sd(each), defined, len(each), reason if whole.value is None else ""))
    return out


def differences(
    labels: Sequence[int] | np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    metrics: Sequence[str] = COMPARED,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """``metric(a) - metric(b)`` on the same cases with its paired bootstrap interval.

    Args:
        labels: int [n]; a, b: probabilities [n, C] of the two models; patients: [n].
    """
    return intervals(metrics, labels, a, patients, minus=b, draws=draws, seed=seed)


def at_level(cases: Cases, level: str, classes: Sequence[str]) -> Cases:
    """The cases themselves at slide level; at patient level one a patient, with the mean of its slides' probabilities.

    Raises:
        InputError: a patient whose slides have different labels.
    """
    if level == "slide":
        return cases
    names, patient = np.unique(cases.patients, return_inverse=True)
    slides = np.bincount(patient)
    labels = np.empty(len(names), np.int64)
    labels[patient] = cases.labels
    mixed = np.flatnonzero(labels[patient] != cases.labels)
    if mixed.size:
        i = mixed[0]
        both = sorted((classes[labels[patient[i]]], classes[cases.labels[i]]))
        raise InputError(
            f"patient {str(cases.patients[i])!r} has slides of the classes {both[0]!r} and {both[1]!r}; with --level "
            "patient all slides of a patient need one label (use --level slide, or correct the manifest)"
        )
    mean = np.zeros((len(names), cases.probabilities.shape[1]))
    np.add.at(mean, patient, cases.probabilities)
    return Cases(labels, mean / slides[:, None], names)


def majority(labels: np.ndarray, classes: Sequence[str]) -> tuple[str, float]:
    """The most frequent class and its share: the accuracy of always saying it."""
    counts = np.bincount(labels, minlength=len(classes))
    return classes[int(counts.argmax())], float(counts.max() / counts.sum())


@dataclass(frozen=True)
class ClassScore:
    """One class against the rest: its cases, sensitivity, specificity (None where there are none), AUC."""

    name: str
    n: int
    sensitivity: float | None
    specificity: float | None
    auc: float | None


def per_class(cases: Cases, classes: Sequence[str]) -> list[ClassScore]:
    """Each class against the rest; sensitivity and specificity of the most probable class as the answer."""
    counts = confusion(cases.labels, cases.probabilities)
    out = []
    for c, name in enumerate(classes):
        own, right, said = counts[c].sum(), counts[c, c], counts[:, c].sum()
        others = counts.sum() - own
        out.append(
            ClassScore(
                name,
                int(own),
                float(right / own) if own else None,
                float((others - (said - right)) / others) if others else None,
                one_auc(cases.labels == c, cases.probabilities[:, c]),
            )
        )
    return out


def roc(hit: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """False and true positive rate, from (0, 0) to (1, 1); None without both kinds.

    Args:
        hit: bool [n]; scores: [n].
    """
    from sklearn.metrics import roc_curve

    if hit.all() or not hit.any():
        return None
    false, true, _ = roc_curve(hit, scores)
    return false, true


def macro_roc(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean over classes of the true positive rate at each false positive rate; None where a class is missing."""
    found = [roc(labels == c, probabilities[:, c]) for c in range(probabilities.shape[1])]
    curves = [c for c in found if c is not None]
    if len(curves) < len(found):
        return None
    false = np.unique(np.concatenate([c[0] for c in curves]))
    # Where a curve rises straight up, both ends of the rise: just before, and at the false positive rate.
    ends = np.stack([np.nextafter(false, -1), false], 1)
    true = np.mean([np.interp(ends, *c, left=0.0) for c in curves], axis=0)
    return np.repeat(false, 2), true.ravel()


def roc_band(
    cases: Cases, which: Sequence[int], *, draws: int, seed: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """False positive rates [101], and between which true positive rates the ROC curve lies at each in ``level`` of
    resampled patients; None with fewer than two patients, or a class without cases.

    Args:
        which: classes, each against the rest, whose curves are averaged.
    """
    names, patient = np.unique(cases.patients, return_inverse=True)
    false = np.linspace(0, 1, 101)
    if len(names) < 2:
        return None
    drawn = np.concatenate([times[:, patient] for times in resamples(len(names), draws, seed)]).astype(np.float64)
    total = np.zeros((len(drawn), len(false)))
    for c in which:
        hit, scores = cases.labels == c, cases.probabilities[:, c]
        if hit.all() or not hit.any():
            return None
        order = np.argsort(-scores, kind="stable")
        last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # cases of one score come together
        up, right = (np.cumsum(drawn[:, order] * own[order], 1)[:, last] for own in (hit, ~hit))
        whole = (up[:, -1] > 0) & (right[:, -1] > 0)
        drawn, total, up, right = drawn[whole], total[whole], up[whole], right[whole]
        rise = [np.interp(false, np.r_[0, r / r[-1]], np.r_[0, u / u[-1]]) for r, u in zip(right, up)]
        total += np.array(rise).reshape(len(rise), len(false)) / len(which)
    if not len(total):
        return None
    low, high = np.quantile(total, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return false, low, high
