"""Reliability bins by hand; how a head is calibrated, by hand, against slow searches and on new slides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.calibration import calibration_errors, calibration_figures, recalibrations, reliability
from lrmil_cli.evaluation.head_calibration import (
    HIGHEST,
    LOWEST,
    HeadCalibration,
    calibrate_head,
    calibrated,
    calibrated_heads,
    common_temperature,
    fit_slopes,
    fit_temperature,
    uncalibrated,
)
from lrmil_cli.evaluation.scores import Cases


def test_reliability_by_hand():
    bins = reliability(np.array([0, 0, 1, 1], bool), np.array([0.1, 0.2, 0.7, 0.9]))
    assert (
        bins.n.tolist() == [2, 2] and bins.predicted == pytest.approx([0.15, 0.8]) and bins.observed.tolist() == [0, 1]
    )
    alike = reliability(np.array([0, 1, 1, 1], bool), np.full(4, 0.6))  # one value, one bin
    assert (alike.n.tolist(), alike.predicted.tolist(), alike.observed.tolist()) == ([4], [0.6], [0.75])
    assert reliability(np.array([True]), np.array([0.5])).n.tolist() == [1]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 200), seed=st.integers(0, 1000))
def test_reliability_keeps_every_case(n, seed):
    rng = np.random.default_rng(seed)
    p, hit = np.round(rng.random(n), 1), rng.random(n) < 0.5
    bins = reliability(hit, p)
    assert bins.n.sum() == n and (bins.n > 0).all()
    assert bins.predicted @ bins.n == pytest.approx(p.sum()) and bins.observed @ bins.n == pytest.approx(hit.sum())


def test_calibration_by_hand():
    p = np.array([[0.8, 0.2], [0.5, 0.5]])
    assert calibrated(p, 1.0) == pytest.approx(p)
    assert calibrated(p, 2.0)[0, 0] == pytest.approx(2 / 3)  # 0.8 : 0.2 = 4 : 1, its root 2 : 1
    assert (calibrated(np.eye(3), 5.0).argmax(1) == np.arange(3)).all() and np.isfinite(
        calibrated(np.eye(3), 0.2)
    ).all()


def test_the_temperature_is_the_best_of_a_fine_grid():
    rng = np.random.default_rng(0)
    truth = rng.dirichlet([1, 1, 1], 400)
    labels = np.array([rng.choice(3, p=t) for t in truth])
    found = fit_temperature(labels, calibrated(truth, 1 / 3))  # three times too sure
    grid = np.linspace(LOWEST, HIGHEST, 8000)
    said = [calibrated(calibrated(truth, 1 / 3), t)[np.arange(400), labels] for t in grid]
    losses = [-np.log(p).sum() + 2 * np.log(t) ** 2 for p, t in zip(said, grid)]
    assert found == pytest.approx(grid[int(np.argmin(losses))], abs=0.01) and 2.5 < found < 4


def test_few_slides_that_are_all_right_do_not_make_a_model_sure_of_everything():
    labels = np.array([0, 0, 1, 1])
    p = np.where(np.eye(2)[labels] > 0, 0.7, 0.3)
    own = fit_temperature(labels, p)
    # Where the slope of 4 ln(1 + e^(-z / T)) + 2 (ln T)^2 by ln T is 0, z the log odds.
    z = np.log(0.7 / 0.3)
    assert 4 * z / own / (1 + np.exp(z / own)) + 4 * np.log(own) == pytest.approx(0, abs=1e-4) and 0.5 < own < 1
    assert fit_temperature(np.zeros(0, int), np.zeros((0, 2))) == 1.0


def test_a_good_head_is_not_made_unsure_by_the_few_slides_it_is_calibrated_on():
    """Of 100 sets of 24 slides, all or nearly all of them right; the head means what it says."""
    rng, off = np.random.default_rng(0), []
    for _ in range(100):
        labels = np.arange(24) % 2
        z = 3.5 * (rng.normal(size=24) + 3.5 * (labels - 0.5))  # log odds of two normal classes
        p = 1 / (1 + np.exp(-np.stack([-z, z], 1)))
        off.append(calibrate_head(labels, p, np.arange(24).astype(str)).apply(p).max(1).mean() - p.max(1).mean())
    assert abs(np.mean(off)) < 0.01


def drawn(n, classes, seed, slope=1.0, offset=None):
    """Labels, and the probabilities of a head whose log odds are ``slope`` times too large and ``offset`` off."""
    rng = np.random.default_rng(seed)
    truth = rng.dirichlet(np.ones(classes), n)
    labels = np.array([rng.choice(classes, p=t) for t in truth])
    wrong = np.exp(slope * np.log(truth) + (0 if offset is None else np.asarray(offset)))
    return labels, wrong / wrong.sum(1, keepdims=True)


def log_loss(labels, p):
    return -np.log(p[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize(
    ("classes", "slope", "offset", "method"),
    [(2, 3.0, None, "temperature"), (2, 1.0, (0, 3.0), "platt"), (3, 1.0, (0, 3.0, -3.0), "vector")],
)
def test_a_head_is_calibrated_by_what_its_own_slides_ask_for(classes, slope, offset, method):
    labels, p = drawn(300, classes, 1, slope, offset)
    found = calibrate_head(labels, p, [f"p{i}" for i in range(300)])
    assert found.method == method and found.log_loss[method] < found.log_loss["raw"]
    new, said = drawn(3000, classes, 2, slope, offset)  # others than it was fitted on
    own = found.apply(said)
    assert own.sum(1) == pytest.approx(np.ones(3000)) and log_loss(new, own) < log_loss(new, said) - 0.05
    assert HeadCalibration(**found.as_json()).apply(said) == pytest.approx(own)


def test_slope_and_intercept_are_where_a_general_search_finds_them():
    """Without gradient and bounds, of the loss as the page writes it."""
    for classes in (2, 3):
        labels, p = drawn(60, classes, 3, 2.0, np.arange(classes))
        scale, offset = fit_slopes(labels, p)
        targets = np.eye(classes)[labels]

        def loss(x, classes=classes, p=p, targets=targets):
            s, b = (np.full(2, x[0]), np.array([0, x[1]])) if classes == 2 else np.split(x, 2)
            logits = s * np.log(p) + b
            said = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            half = len(x) // 2
            return -(targets * said).sum() + 2 * (np.log(x[:half]) ** 2).sum() + 2 * (x[half:] ** 2).sum()

        own = np.array([scale[0], offset[1]]) if classes == 2 else np.r_[scale, offset]
        best = minimize(loss, own + 0.3, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9, "maxiter": 5000})
        assert own == pytest.approx(best.x, abs=1e-3)


def test_the_choice_is_by_log_loss_of_patients_left_out():
    labels, p = drawn(40, 2, 5, 1.5, (0, 0.7))
    patients = np.repeat(np.arange(20), 2).astype(str)
    losses = []
    for patient in np.unique(patients):
        out = patients == patient
        t = fit_temperature(labels[~out], p[~out])
        losses += [log_loss(labels[[i]], calibrated(p[[i]], t)) for i in np.flatnonzero(out)]
    found = calibrate_head(labels, p, patients)
    assert found.log_loss["temperature"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert found.method == min(("temperature", "platt"), key=found.log_loss.get)


def test_few_slides_or_one_class_calibrate_nothing():
    labels, p = drawn(19, 2, 0)
    few = calibrate_head(labels, p, np.arange(19).astype(str))
    one = calibrate_head(np.zeros(30, int), np.tile(p[:1], (30, 1)), np.arange(30).astype(str))
    assert few.method == one.method == "none" and "19" in few.reason and "one class" in one.reason
    assert few.apply(p) is p
    labels, p = drawn(60, 3, 0)
    labels[labels == 2] = 0  # a class without slides has no intercept
    assert calibrate_head(labels, p, np.arange(60).astype(str)).method == "temperature"


def test_headers_of_earlier_versions_change_nothing_and_damaged_ones_are_refused():
    per_fold = np.array([[0.9, 0.1], [0.3, 0.7]])
    old = {"classes": ["a", "b"], "calibration": {"temperature": 2.0}}
    assert calibrated_heads(old, per_fold) is per_fold and common_temperature(old) == 2.0
    assert common_temperature({"classes": ["a", "b"]}) is None and "earlier version" in uncalibrated(old)
    heads = [HeadCalibration("temperature", (t, t), (0.0, 0.0), 30).as_json() for t in (0.5, 1.0)]
    new = {"classes": ["a", "b"], "calibration": {"of": "validation", "heads": heads}}
    assert calibrated_heads(new, per_fold) == pytest.approx(np.array([[0.75, 0.25], [0.3, 0.7]]))
    assert common_temperature(new) == 1.0 and uncalibrated(new) is None
    for damaged in (heads[:1], [heads[0], {**heads[1], "scale": [1.0]}], [heads[0], {"method": "platt"}]):
        with pytest.raises(InputError, match="again"):
            calibrated_heads({**new, "calibration": {"heads": damaged}}, per_fold)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 80), seed=st.integers(0, 1000), slope=st.floats(0.2, 4))
def test_slope_and_intercept_are_those_of_scikit_learn(n, seed, slope):
    labels, p = drawn(n, 2, seed, slope, (0, 0.5))
    times = np.stack([np.ones(n), *np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), 4)])
    x = np.log(p[:, 1] / p[:, 0])
    for own, found in zip(times, recalibrations(labels == 1, p[:, 1], times)):
        yes, no = x[(labels == 1) & (own > 0)], x[(labels == 0) & (own > 0)]
        if not len(yes) or not len(no) or yes.min() >= no.max() or no.min() >= yes.max():
            assert np.isnan(found).all()
            continue
        fit = LogisticRegression(C=1e9, tol=1e-10, max_iter=5000).fit(x[:, None], labels, sample_weight=own)
        assert found == pytest.approx((fit.coef_[0, 0], fit.intercept_[0]), rel=0.02, abs=0.02)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 200), seed=st.integers(0, 1000), digits=st.integers(0, 3))
def test_the_calibration_error_of_a_draw_is_that_of_its_bins(n, seed, digits):
    rng = np.random.default_rng(seed)
    p, hit = np.round(rng.random(n), digits), rng.random(n) < 0.5
    times = np.stack([np.ones(n, int), *rng.multinomial(rng.integers(1, 2 * n, endpoint=True), np.full(n, 1 / n), 5)])
    for own, found in zip(times, calibration_errors(hit, p, times.astype(float))):
        bins = reliability(np.repeat(hit, own), np.repeat(p, own))
        assert found == pytest.approx(np.abs(bins.predicted - bins.observed) @ bins.n / bins.n.sum(), abs=1e-9)


def test_calibration_figures_of_perfect_probabilities_hold_1_and_0_and_0():
    labels, p = drawn(2000, 2, 7)
    found = calibration_figures(Cases(labels, p, np.arange(2000).astype(str)), 1, draws=50, seed=0)
    assert found["slope"].low < 1 < found["slope"].high and found["intercept"].low < 0 < found["intercept"].high
    assert found["ece"].value < 0.04 and found["ece"].low <= found["ece"].value
    labels, p = drawn(2000, 2, 7, 2.0)  # twice too sure
    assert calibration_figures(Cases(labels, p, np.arange(2000).astype(str)), 1, draws=0, seed=0)[
        "slope"
    ].value == pytest.approx(0.5, abs=0.05)
    by_hand = np.array([0, 0, 1, 1], bool), np.array([0.1, 0.2, 0.7, 0.9]), np.ones((1, 4))
    assert calibration_errors(*by_hand) == pytest.approx([0.175])
