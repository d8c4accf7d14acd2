"""Answers with a promise: sets of classes that hold the true one often enough, and abstaining up to a given error.

Both lean on patients that were predicted by a head that did not see them; a model keeps what that head said of each
(``calibration_patients`` in its header). evaluation/README 12; the papers have neither, sources stand at the functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.bootstrap import Interval, intervals_of

#: Confidence of the bound on the error of what is answered.
BOUND = 0.95
#: Tests of :func:`abstain_below` begin where so many errors, at most, would still be allowed.
ERRORS_ALLOWED = 3
#: Of the coverage that is looked at in a receipt.
COVERAGE = 0.9


@dataclass(frozen=True)
class CalibrationPatients:
    """What heads said of patients that they did not see.

    Attributes:
        of: ``test`` (out of fold; CV+) or ``validation`` (one split: split conformal), or ``named`` by a user.
        head: int [n], from 0 (the fold, where a fold has several heads), or -1 where no head saw them and the mean of
            all answered; labels: int [n];
        probabilities: [n, C], calibrated, the mean over a patient's slides.
    """

    of: str
    head: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """``1 - p(y)``, [n]: how strange each patient was to the head."""
        return 1 - self.probabilities[np.arange(len(self.labels)), self.labels]

    def take(self, index: np.ndarray) -> CalibrationPatients:
        return CalibrationPatients(self.of, self.head[index], self.labels[index], self.probabilities[index])

    def as_json(self) -> dict[str, Any]:
        return {
            "of": self.of,
            "head": self.head.tolist(),
            "class": self.labels.tolist(),
            "probabilities": self.probabilities.round(6).tolist(),
        }


def by_patient(
    of: str, head: Sequence[int], patients: Sequence[str], labels: Sequence[int], probabilities: np.ndarray
) -> CalibrationPatients:
    """Slides put together: one row a patient, the mean of its slides, since patients are what is exchangeable.

    A patient whose slides differ in label counts once for each; one that several heads did not see counts for the
    first of them.

    Args:
        head: int [n], from 0; patients: [n]; labels: int [n]; probabilities: [n, C], calibrated.
    """
    first: dict[str, int] = {}
    rows: dict[tuple[str, int], list[int]] = {}
    for i, (h, patient, label) in enumerate(zip(head, patients, labels)):
        if first.setdefault(patient, int(h)) == h:
            rows.setdefault((patient, int(label)), []).append(i)
    return CalibrationPatients(
        of,
        np.array([first[patient] for patient, _ in rows], np.int64),
        np.array([label for _, label in rows], np.int64),
        np.array([probabilities[own].mean(0) for own in rows.values()]).reshape(len(rows), probabilities.shape[1]),
    )


def calibration_patients(header: dict[str, Any], where: str) -> CalibrationPatients:
    """Those that a model's header holds.

    Raises:
        InputError: it holds none, or is damaged.
    """
    about = header.get("calibration_patients")
    if about is None:
        raise InputError(
            f"{where}: holds no calibration patients (it is of an earlier version); make a model that does by "
            "`lrmil calibrate`, or train it again"
        )
    try:
        found = CalibrationPatients(
            str(about["of"]),
            np.array(about["head"], np.int64).reshape(-1),
            np.array(about["class"], np.int64).reshape(-1),
            np.array(about["probabilities"], np.float64).reshape(-1, len(header["classes"])),
        )
        heads = len(set(header.get("fold_of", range(len(header["calibration"]["heads"])))))
        n, classes = len(found.head), len(header["classes"])
        inside = ((found.head >= -1) & (found.head < heads)).all() and (
            (found.labels >= 0) & (found.labels < classes)
        ).all()
        if not (len(found.labels) == len(found.probabilities) == n and inside):
            raise ValueError("rows")
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise InputError(f"{where}: its calibration patients are damaged ({e!r}); copy or make the file again") from e
    return found


def patients_needed(coverage: float) -> int:
    """How few patients can promise a coverage: ``1 / a - 1`` with ``a = 1 - coverage``."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def check_coverage(known: CalibrationPatients, coverage: float, by_class: bool, classes: Sequence[str]) -> None:
    """There are patients enough for sets of this coverage.

    Raises:
        UsageError: the coverage is none, or there are too few patients, in all or in a class.
    """
    if not 0 < coverage < 1:
        raise UsageError(f"--coverage {coverage:g}: give a share between 0 and 1, such as 0.9")
    counts = np.bincount(known.labels, minlength=len(classes)).tolist()
    groups = list(zip([f" of class {c}" for c in classes], counts)) if by_class else [("", len(known.labels))]
    needed = patients_needed(coverage)
    short = [f"{n}{of}" for of, n in groups if n < needed]
    if short:
        fewest = min(n for _, n in groups)
        most = math.floor(100 * fewest / (fewest + 1)) / 100  # so few are needed for this
        instead = f"give --coverage {most:g} or less, or have" if most else "have"
        raise UsageError(
            f"--coverage {coverage:g}{' --coverage-by class' if by_class else ''} needs {needed} calibration patients"
            f"{' of each class' if by_class else ''}; the model has {', '.join(short)}; "
            f"{instead} it calibrated on more of them (`lrmil calibrate`)"
        )


def prediction_sets(
    probabilities: np.ndarray, known: CalibrationPatients, coverage: float, *, by_class: bool = False
) -> np.ndarray:
    """Which classes are in the set of each slide, bool [m, C].

    CV+ (Romano, Sesia and Candes 2020; Barber et al. 2021): class y is in the set if fewer than ``coverage (n + 1)`` of
    the n scores are strictly smaller than ``1 - p(y)`` of the same head. With one head that is split conformal.

    Args:
        probabilities: [m, F, C] of the calibrated heads; by_class: compare y with patients of class y alone (Mondrian).
    """
    m, _, classes = probabilities.shape
    probabilities = np.concatenate([probabilities, probabilities.mean(1, keepdims=True)], 1)  # the last one, head -1
    out = np.zeros((m, classes), bool)
    for y in range(classes):
        own = known.take(np.flatnonzero(known.labels == y)) if by_class else known
        smaller = (own.scores < 1 - probabilities[:, own.head, y]).sum(1)
        out[:, y] = smaller < coverage * (len(own.head) + 1) - 1e-9  # 0.7 * 10 is a little more than 7 in floats
    return out


def error_bound(errors: int, answered: int) -> float:
    """The upper 95 % bound of Clopper and Pearson (1934) of an error; 1 where all are wrong, or none is answered."""
    from scipy.stats import beta

    return 1.0 if errors >= answered else float(beta.ppf(BOUND, errors + 1, answered - errors))


@dataclass(frozen=True)
class Abstention:
    """Below which confidence to abstain.

    Attributes:
        confidence: None where no threshold keeps the promise.
        answered, errors: calibration patients at or above it; of: all of them; bound: on the error among the answered.
    """

    confidence: float | None
    answered: int
    errors: int
    of: int
    bound: float | None


def abstain_below(known: CalibrationPatients, max_error: float) -> Abstention:
    """The lowest confidence at which the error among the answered is at most ``max_error``, with 95 % certainty.

    Fixed-sequence testing (Angelopoulos et al. 2021, learn then test): thresholds from the top down, each tested by
    :func:`error_bound`, until the first that fails. The first test is where patients are enough to pass it with
    :data:`ERRORS_ALLOWED` errors, or with fewer where that would take more than half of all patients; labels have no
    say in where it is, so the promise holds whatever they are.

    Raises:
        UsageError: the error is none.
    """
    if not 0 < max_error < 1:
        raise UsageError(f"--max-error {max_error:g}: give a share between 0 and 1, such as 0.05")
    confidence = known.probabilities.max(1)
    wrong = known.probabilities.argmax(1) != known.labels
    order = np.argsort(-confidence, kind="stable")
    n, sorted_confidence, errors = len(order), confidence[order], np.cumsum(wrong[order])
    ends = [m for m in range(1, n + 1) if m == n or sorted_confidence[m] < sorted_confidence[m - 1]]
    enough = [_enough(e, max_error) for e in range(ERRORS_ALLOWED + 1)]
    start = max([enough[0], *(m for m in enough if m <= n / 2)])
    found, bound = None, None
    for m in ends:
        if m < start:
            continue
        if (tested := error_bound(int(errors[m - 1]), m)) > max_error:
            break
        found, bound = m, tested
    if found is None:
        return Abstention(None, 0, 0, n, None)
    return Abstention(float(sorted_confidence[found - 1]), found, int(errors[found - 1]), n, bound)


def lowest_error(known: CalibrationPatients) -> float | None:
    """The lowest error, in hundredths, that :func:`abstain_below` reaches; None where it reaches none."""
    return next((e / 100 for e in range(1, 100) if abstain_below(known, e / 100).confidence is not None), None)


def _enough(errors: int, max_error: float) -> int:
    """The fewest answered patients of which so many may be wrong."""
    low, high = errors, errors + 1
    while error_bound(errors, high) > max_error:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if error_bound(errors, middle) > max_error else (low, middle)
    return high


def held_out_sets(
    known: CalibrationPatients, coverage: float, tested: CalibrationPatients | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Sets of patients that had no part in what made them: which classes, bool [m, C], and the labels, int [m].

    Of CV+, the patients of each fold by the scores of the other folds, as if they were new; of one split, the test
    patients by those of validation. None where patients are too few.

    Args:
        tested: the test patients of one split.
    """
    if known.of == "validation" and tested is not None:
        if len(known.head) < patients_needed(coverage) or not len(tested.head):
            return None
        return prediction_sets(tested.probabilities[:, None], known, coverage), tested.labels
    sets, labels = [], []
    for fold in np.unique(known.head):
        own = known.head == fold
        others = known.take(np.flatnonzero(~own))
        if len(others.head) < patients_needed(coverage):
            return None
        # What the one head that did not see them said stands for what all heads would say.
        alone = CalibrationPatients(known.of, np.zeros_like(others.head), others.labels, others.probabilities)
        sets.append(prediction_sets(known.probabilities[own][:, None], alone, coverage))
        labels.append(known.labels[own])
    return (np.concatenate(sets), np.concatenate(labels)) if sets else None


@dataclass(frozen=True)
class SetFigures:
    """What sets reach: the share that holds the true class, with its bootstrap interval over patients; the shares with
    one class, and with none; how many sets there are, and what coverage they promised."""

    promised: float
    n: int
    reached: Interval
    one_class: float
    empty: float


def set_figures(
    sets: np.ndarray, labels: np.ndarray, patients: np.ndarray, promised: float, *, draws: int, seed: int
) -> SetFigures:
    """Figures of sets bool [m, C] of cases with labels int [m], m at least 1, of these patients [m]."""
    right = sets[np.arange(len(labels)), labels]
    (found,) = intervals_of(lambda times: (times @ right / times.sum(1))[:, None], patients, draws=draws, seed=seed)
    sizes = sets.sum(1)
    return SetFigures(promised, len(labels), found, float((sizes == 1).mean()), float((sizes == 0).mean()))
