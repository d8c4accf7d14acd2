"""Prediction sets and abstaining: against slow versions of their definitions, and over made cohorts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.prediction_sets import (
    CalibrationPatients,
    abstain_below,
    by_patient,
    calibration_patients,
    check_coverage,
    error_bound,
    held_out_sets,
    lowest_error,
    patients_needed,
    prediction_sets,
    set_figures,
)


def made(rng, n, heads=1, classes=2, of="test", spread=0.5):
    """Patients whose labels are drawn from what the heads say: perfectly calibrated."""
    p = rng.dirichlet(np.full(classes, spread), n)
    labels = np.array([rng.choice(classes, p=row) for row in p])
    return CalibrationPatients(of, rng.integers(0, heads, n), labels, p)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 40),
    heads=st.integers(1, 4),
    classes=st.integers(2, 4),
    coverage=st.sampled_from([0.5, 0.7, 0.8, 0.9]),
    by_class=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_sets_are_as_cv_plus_defines_them(n, heads, classes, coverage, by_class, seed):
    rng = np.random.default_rng(seed)
    known, new = made(rng, n, heads, classes), rng.dirichlet(np.ones(classes), (3, heads))
    found = prediction_sets(new, known, coverage, by_class=by_class)
    for i in range(3):
        for y in range(classes):
            own = [j for j in range(n) if not by_class or known.labels[j] == y]
            smaller = sum(1 - known.probabilities[j, known.labels[j]] < 1 - new[i, known.head[j], y] for j in own)
            assert found[i, y] == (smaller < round(coverage * (len(own) + 1), 9))


def test_with_one_head_it_is_split_conformal():
    """By the quantile that textbooks have."""
    rng = np.random.default_rng(1)
    known, new = made(rng, 57), rng.dirichlet([1, 1], 200)
    cut = np.sort(known.scores)[int(np.ceil(0.9 * 58)) - 1]
    assert (prediction_sets(new[:, None], known, 0.9) == (1 - new <= cut)).all()
    # Patients that no head saw are compared with the mean of the heads.
    both, of_mean = rng.dirichlet([1, 1], (50, 3)), CalibrationPatients("named", known.head - 1, known.labels,
                                                                        known.probabilities)  # fmt: skip
    assert (prediction_sets(both, of_mean, 0.9) == (1 - both.mean(1) <= cut)).all()


def test_coverage_is_kept_over_cohorts_and_in_each_class():
    rng = np.random.default_rng(2)
    reached, of_class = [], []
    for _ in range(100):
        known, new = made(rng, 60), made(rng, 200)
        for by_class, out in ((False, reached), (True, of_class)):
            sets = prediction_sets(new.probabilities[:, None], known, 0.9, by_class=by_class)
            right = sets[np.arange(200), new.labels]
            out.append([right[new.labels == y].mean() for y in (0, 1)] if by_class else right.mean())
    assert 0.88 < np.mean(reached) < 0.93
    assert (np.abs(np.mean(of_class, 0) - 0.915) < 0.03).all()


def test_too_few_patients_are_refused_with_the_number_needed():
    rng = np.random.default_rng(0)
    assert [patients_needed(c) for c in (0.5, 0.8, 0.9, 0.95)] == [1, 4, 9, 19]
    known = CalibrationPatients("test", np.zeros(12, int), np.repeat([0, 1], [9, 3]), rng.dirichlet([1, 1], 12))
    for enough in (0.9, 0.92):
        check_coverage(known, enough, False, ("a", "b"))
    with pytest.raises(
        UsageError, match=r"needs 19 calibration patients; the model has 12; give --coverage 0\.92 or less"
    ):
        check_coverage(known, 0.95, False, ("a", "b"))
    with pytest.raises(UsageError, match="9 calibration patients of each class; the model has 3 of class b"):
        check_coverage(known, 0.9, True, ("a", "b"))
    with pytest.raises(UsageError, match="between 0 and 1"):
        check_coverage(known, 1.0, False, ("a", "b"))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 300), share=st.floats(0, 1))
def test_the_bound_is_that_of_clopper_and_pearson(n, share):
    wrong = int(share * n)
    expected = binomtest(wrong, n, alternative="less").proportion_ci(0.95, method="exact").high
    assert error_bound(wrong, n) == pytest.approx(expected)


def test_abstaining_goes_down_until_the_first_test_fails():
    """300 patients of falling confidence: the first 100 right, then one in three wrong."""
    n = 300
    p = np.linspace(0.99, 0.51, n)
    wrong = (np.arange(n) >= 100) & (np.arange(n) % 3 == 0)
    known = CalibrationPatients("test", np.zeros(n, int), wrong.astype(int), np.stack([p, 1 - p], 1))
    found = abstain_below(known, 0.1)
    bounds = [error_bound(int(wrong[:m].sum()), m) for m in range(1, n + 1)]
    last = next(m for m in range(76, n) if bounds[m] > 0.1)  # 76: three errors of 76 are the fewest that pass
    assert error_bound(3, 76) <= 0.1 < error_bound(3, 75)
    assert (found.answered, found.confidence, found.of) == (last, pytest.approx(p[last - 1]), n)
    assert found.errors == wrong[:last].sum() and found.bound == pytest.approx(bounds[last - 1])
    assert lowest_error(known) <= 0.1
    assert abstain_below(known, 0.001).confidence is None


def test_patients_of_one_confidence_are_answered_together():
    p = np.repeat([0.9, 0.6], 100)
    known = CalibrationPatients("test", np.zeros(200, int), np.repeat([0, 1], 100), np.stack([p, 1 - p], 1))
    assert abstain_below(known, 0.05).confidence == 0.9 and abstain_below(known, 0.05).answered == 100


def test_the_error_is_kept_in_19_of_20_cohorts():
    rng = np.random.default_rng(3)
    kept, used = [], 0
    for _ in range(60):
        rule = abstain_below(made(rng, 250, spread=0.15), 0.05)
        new = made(rng, 2000, spread=0.15)
        sure = new.probabilities.max(1) >= (rule.confidence or np.inf)
        used += rule.confidence is not None
        kept.append((new.probabilities.argmax(1) != new.labels)[sure].mean() <= 0.05 if sure.any() else True)
    assert np.mean(kept) >= 0.95 and used > 30


def test_a_patient_is_one_row_with_the_mean_of_its_slides():
    p = np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.1, 0.9], [0.5, 0.5]])
    found = by_patient("test", [0, 0, 1, 1, 0], ["a", "a", "b", "a", "c"], [0, 0, 1, 0, 1], p)
    assert found.head.tolist() == [0, 1, 0] and found.labels.tolist() == [0, 1, 1]  # a's other head comes too late
    assert found.probabilities == pytest.approx(np.array([[0.7, 0.3], [0.3, 0.7], [0.5, 0.5]]))
    assert found.scores == pytest.approx([0.3, 0.3, 0.5])


def test_what_a_header_holds_comes_back_or_is_refused():
    known = made(np.random.default_rng(0), 12, heads=2)
    heads = [{"method": "none"}] * 2
    header = {"classes": ["a", "b"], "calibration": {"heads": heads}, "calibration_patients": known.as_json()}
    found = calibration_patients(header, "m")
    assert found.probabilities == pytest.approx(known.probabilities, abs=1e-6)
    assert (found.head == known.head).all() and (found.labels == known.labels).all()
    with pytest.raises(InputError, match="lrmil calibrate"):
        calibration_patients({"classes": ["a", "b"]}, "m")
    for key, value in (("head", [2] * 12), ("class", [-1] * 12), ("class", [0]), ("probabilities", [[0.5] * 3])):
        with pytest.raises(InputError, match="damaged"):
            calibration_patients({**header, "calibration_patients": {**known.as_json(), key: value}}, "m")


def test_held_out_patients_have_no_part_in_their_own_sets():
    rng = np.random.default_rng(4)
    known = made(rng, 90, heads=3)
    sets, labels = held_out_sets(known, 0.9)
    own = known.head == 0
    cut = np.sort(known.scores[~own])[int(np.ceil(0.9 * ((~own).sum() + 1))) - 1]
    assert (sets[: own.sum()] == (1 - known.probabilities[own] <= cut)).all() and len(labels) == 90
    one = made(rng, 40, of="validation")
    tested = made(rng, 30)
    assert (held_out_sets(one, 0.9, tested)[0] == prediction_sets(tested.probabilities[:, None], one, 0.9)).all()
    assert held_out_sets(made(rng, 8, heads=2), 0.9) is None
    found = set_figures(np.eye(2, dtype=bool)[[0, 1, 1]], np.array([0, 1, 0]), np.array(["a", "b", "c"]), 0.9,
                        draws=20, seed=0)  # fmt: skip
    assert found.reached.value == pytest.approx(2 / 3) and (found.one_class, found.empty, found.n) == (1, 0, 3)
