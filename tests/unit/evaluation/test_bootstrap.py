"""What the bootstrap over patients promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lrmil_cli.evaluation import bootstrap
from lrmil_cli.evaluation.bootstrap import Interval, intervals, resamples
from lrmil_cli.evaluation.metrics import METRIC_FUNCTIONS, METRICS
from lrmil_cli.evaluation.resampled import resampled
from lrmil_cli.evaluation.scores import differences
from tests.unit.evaluation.test_metrics import make


def interval(metric, *arrays, **options):
    return intervals([metric], *arrays, **options)[metric]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(1, 40), st.booleans())
def test_a_metric_of_many_resamples_is_that_of_each_resample_written_out(seed, classes, cases, coarse):
    rng = np.random.default_rng(seed)
    labels, p = make(cases, classes, seed)
    p = np.round(p, 1) if coarse else p  # ties
    _, patient = np.unique(rng.integers(1 + cases // 2, size=cases), return_inverse=True)
    times = np.stack([np.ones(patient.max() + 1), *next(iter(resamples(patient.max() + 1, 5, seed)))])
    for metric in METRICS:
        slow = [
            METRIC_FUNCTIONS[metric](*(np.repeat(a, t[patient].astype(int), 0) for a in (labels, p))) for t in times
        ]
        fast = resampled(metric, labels, p, patient)(times)
        assert fast == pytest.approx([np.nan if v is None else v for v in slow], abs=1e-12, nan_ok=True)


def test_the_auc_of_a_resample_is_that_of_scikit_learn_by_weights():
    labels, p = make(60, 2, 9)
    p, patient = np.round(p, 1), np.arange(60) // 2
    for times in resamples(30, 20, 0):
        expected = [roc_auc_score(labels, p[:, 1], sample_weight=t[patient]) for t in times]
        assert resampled("auc", labels, p, patient)(times) == pytest.approx(expected, abs=1e-12)


def test_how_many_resamples_are_held_at_a_time_has_no_say(monkeypatch):
    labels, p = make(40, 3, 1)
    whole = intervals(METRICS, labels, p, np.arange(40), draws=50)
    monkeypatch.setattr(bootstrap, "CHUNK", 7 * 40)
    for metric, got in intervals(METRICS, labels, p, np.arange(40), draws=50).items():
        assert (got.low, got.high) == pytest.approx((whole[metric].low, whole[metric].high), abs=1e-12)
    assert [len(t) for t in resamples(40, 50, 0)] == [7] * 7 + [1]


def test_interval_is_the_same_for_the_same_seed_and_any_order_of_slides():
    labels, p = make(40, 2, 0)
    patients = np.array([f"p{i // 2}" for i in range(40)])
    first = interval("auc", labels, p, patients, draws=200)
    assert first == interval("auc", labels, p, patients, draws=200)
    assert first.low < first.value < first.high
    turned = np.random.default_rng(1).permutation(40)
    assert interval("auc", labels[turned], p[turned], patients[turned], draws=200) == first
    other = interval("auc", labels, p, patients, draws=200, seed=1)
    assert (other.low, other.high) != (first.low, first.high) and other.value == first.value


def test_patients_are_drawn_whole_and_as_many_as_there_are():
    times = np.concatenate(list(resamples(3, 200, 0)))
    assert times.shape == (200, 3) and (times.sum(1) == 3).all()
    assert len(set(map(tuple, times))) == 10  # all ways of drawing 3 of 3 with replacement


def test_more_slides_of_the_same_patients_do_not_narrow_the_interval():
    labels, p = make(60, 2, 2)
    patients = np.array([f"p{i:02d}" for i in range(60)])
    width = lambda v: v.high - v.low  # noqa: E731
    for name in ("auc", "accuracy", "brier"):
        once = interval(name, labels, p, patients, draws=400)
        many = [np.repeat(a, 9, axis=0) for a in (labels, p, patients)]
        again = interval(name, *many, draws=400)
        assert (again.value, again.low, again.high) == pytest.approx((once.value, once.low, once.high))
        as_if_independent = interval(name, many[0], many[1], np.arange(540), draws=400)
        assert width(as_if_independent) == pytest.approx(width(once) / 3, rel=0.2)


def test_interval_of_the_accuracy_is_that_of_a_binomial():
    labels, p = np.ones(400, int), np.tile([0.2, 0.8], (400, 1))
    p[:100] = [0.9, 0.1]  # 300 of 400 right
    got = interval("accuracy", labels, p, np.arange(400), draws=4000)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert got.value == 0.75 and (got.low, got.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.005)
    narrow = interval("accuracy", labels, p, np.arange(400), draws=4000, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * half / 1.96, abs=0.005)


def test_resamples_that_lack_a_class_are_left_out_and_counted():
    labels, p = np.array([0] * 9 + [1]), make(10, 2, 3)[1]
    patients = np.arange(10)
    lacking = sum(int((times[:, 9] % 10 == 0).sum()) for times in resamples(10, 500, 0))
    got = interval("auc", labels, p, patients, draws=500)
    assert got.undefined == lacking and 100 < lacking < 300  # (9/10)^10 = 35 %
    assert got.low is not None
    assert interval("auc", labels * 0, p, patients, draws=50) == Interval(None, None, None, 50)


@pytest.mark.parametrize(
    ("labels", "patients", "draws"), [([1, 0], ["a", "a"], 100), ([1], ["a"], 100), ([1, 0], ["a", "b"], 0)]
)
def test_one_patient_or_no_draws_give_a_value_without_interval(labels, patients, draws):
    p = np.array([[0.2, 0.8], [0.7, 0.3]])[: len(labels)]
    assert interval("accuracy", labels, p, patients, draws=draws) == Interval(1.0, None, None, 0)


def test_a_model_does_not_differ_from_itself_and_differences_turn_with_the_order():
    labels, p = make(50, 3, 4)
    q, patients = make(50, 3, 5)[1], np.array([f"p{i // 3}" for i in range(50)])
    for name in METRICS:
        assert interval(name, labels, p, patients, minus=p, draws=100) == Interval(0.0, 0.0, 0.0, 0)
        ab = interval(name, labels, p, patients, minus=q, draws=300)
        ba = interval(name, labels, q, patients, minus=p, draws=300)
        assert ab.value == pytest.approx(METRIC_FUNCTIONS[name](labels, p) - METRIC_FUNCTIONS[name](labels, q))
        assert (ab.value, ab.low, ab.high) == pytest.approx((-ba.value, -ba.high, -ba.low))


def test_pairing_sees_a_small_difference_that_two_intervals_do_not():
    labels, p = make(150, 2, 6)
    better = p.copy()
    wrong = np.flatnonzero(p.argmax(1) != labels)
    better[wrong[::2]] = p[wrong[::2]][:, ::-1]  # every second mistake put right
    patients = np.arange(150)
    difference = differences(labels, better, p, patients, metrics=["accuracy"], draws=500)["accuracy"]
    assert difference.value == pytest.approx(len(wrong[::2]) / 150) and difference.low > 0
