"""What was read, and what reading more buys."""

import numpy as np
import pytest

from lrmil_cli.evaluation.tiles_read import Reading, cascade_curve, read_reading


def slow_curve(labels, first, second, agree, confidence, hr):
    """By a list of slides, one at a time."""
    order = sorted(
        (i for i in range(len(labels)) if np.isfinite(second[i]).all()), key=lambda i: (agree[i], confidence[i])
    )
    points = []
    for k in range(len(order) + 1):
        read = set(order[:k])
        right = [(second if i in read else first)[i].argmax() == labels[i] for i in range(len(labels))]
        points.append((k, sum(hr[i] for i in read) / len(labels), np.mean(right)))
    return points


def test_the_curve_equals_reading_one_slide_after_the_other():
    rng = np.random.default_rng(3)
    n = 40
    first, second = rng.dirichlet([1, 1], n), rng.dirichlet([1, 1], n)
    second[rng.random(n) < 0.3] = np.nan
    labels, agree, confidence, hr = rng.integers(0, 2, n), rng.random(n) < 0.6, rng.random(n), rng.integers(1, 50, n)
    curve = cascade_curve(labels, Reading(hr, hr, hr * 1.0, agree, first, second, agree, confidence))
    assert list(zip(curve.escalated, curve.hr_tiles, curve.accuracy)) == [
        pytest.approx(p) for p in slow_curve(labels, first, second, agree, confidence, hr)
    ]


def test_nothing_read_is_no_curve_and_records_without_counts_are_no_reading():
    one = np.ones(2)
    assert cascade_curve(one.astype(int), Reading(one, one, one, one > 1)) is None
    assert (
        cascade_curve(
            one.astype(int), Reading(one, one, one, one > 1, np.ones((2, 2)), np.full((2, 2), np.nan), one > 0, one)
        )
        is None
    )
    assert read_reading([{"seconds": {}}], ["a", "b"]) is None
    plain = read_reading(
        [{"seconds": {"a": 1, "b": 2}, "tiles_read": {"lr": 3}, "settings": {"tiles": {"mpp": 2.0}}}], ["a", "b"]
    )
    fine = read_reading(
        [{"seconds": {"a": 1}, "tiles_read": {"lr": 3}, "settings": {"tiles": {"mpp": 0.5}}}], ["a", "b"]
    )
    assert (fine.lr.tolist(), fine.hr.tolist(), fine.mid) == ([0], [3], None)
    assert (plain.lr, plain.hr, plain.seconds, plain.uncertain) == ([3], [0], [3.0], [False]) and plain.first is None


def test_slides_and_classes_are_taken_along():
    n = np.arange(3)
    first = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    own = Reading(n, n + 1, n * 1.0, n > 1, first, first, n > 0, n * 0.1)
    some = own.take(np.array([2, 0]))
    assert (some.lr.tolist(), some.hr.tolist(), some.mid) == ([2, 0], [3, 1], None) and some.uncertain[0]
    assert own.in_order([1, 0]).second.tolist() == first[:, ::-1].tolist()
