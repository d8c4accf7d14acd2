"""Reliability bins by hand; temperature scaling by hand and against a fine grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_cli.evaluation.calibration import HIGHEST, LOWEST, calibrated, fit_temperature, reliability


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
    n = np.bincount(labels, minlength=3)[labels]
    targets = np.tile(1 / (n + 3), (3, 1)).T
    targets[np.arange(400), labels] = (n + 1) / (n + 3)
    grid = np.linspace(LOWEST, HIGHEST, 8000)
    losses = [-(targets * np.log(calibrated(calibrated(truth, 1 / 3), t))).sum(1).mean() for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], abs=0.01) and 2.5 < found < 4


def test_few_slides_that_are_all_right_do_not_make_a_model_sure_of_everything():
    labels = np.array([0, 0, 1, 1])
    p = np.where(np.eye(2)[labels] > 0, 0.7, 0.3)
    own = fit_temperature(labels, p)  # the smoothed target is 3 / 4, not 1
    assert calibrated(p, own).max() == pytest.approx(0.75, abs=1e-3)
    assert fit_temperature(np.zeros(0, int), np.zeros((0, 2))) == 1.0
