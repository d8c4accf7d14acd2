"""The operating point: against slow versions of its rules, and of the intervals and net benefit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, norm

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.evaluation.operating_point import choose_threshold, net_benefit, share, shares_at
from lrmil_cli.evaluation.prediction_sets import CalibrationPatients


def record(p, hit):
    p = np.asarray(p, float)
    return CalibrationPatients("test", np.zeros(len(p), int), np.asarray(hit, int), np.stack([1 - p, p], 1))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(30, 80), steps=st.sampled_from([5, 20, 10_000]))
def test_the_rules_pick_what_a_search_over_all_thresholds_picks(seed, n, steps):
    rng = np.random.default_rng(seed)
    hit = rng.random(n) < 0.5
    p = np.clip(np.round(rng.normal(0.4 + 0.2 * hit, 0.2) * steps) / steps, 0.001, 0.999)
    if hit.all() or not hit.any():
        return
    every = np.unique(np.concatenate([p, np.nextafter(p, 1)]))
    sensitivity = [(p[hit] >= t).mean() for t in every]
    specificity = [(p[~hit] < t).mean() for t in every]
    found = choose_threshold("youden", record(p, hit), 1)
    assert found.sensitivity + found.specificity == pytest.approx(max(np.add(sensitivity, specificity)))
    assert found.sensitivity == (p[hit] >= found.value).mean() and found.specificity == (p[~hit] < found.value).mean()
    best = max((s for t, s in zip(sensitivity, specificity) if t >= 0.8), default=0)
    try:
        found = choose_threshold("sensitivity=0.8", record(p, hit), 1)
    except InputError as e:
        assert best == 0 or hit.sum() < 5, e
        return
    assert found.sensitivity >= 0.8 and found.specificity == pytest.approx(best)


def test_what_a_record_cannot_decide_is_said():
    p, hit = np.linspace(0.1, 0.9, 20), np.arange(20) >= 10
    assert choose_threshold("0.3", None, 1).value == 0.3
    for rule, of, what in (
        ("youden", None, "put the model file beside"),
        ("youden", record(p, np.ones(20)), "one class alone"),
        ("sensitivity=0.95", record(p, hit), "20 positive patients at least are needed to see it"),
        ("youden", record(np.full(20, 0.7), hit), "no threshold decides"),
    ):
        with pytest.raises(InputError, match=what):
            choose_threshold(rule, of, 1)
    for rule in ("1.5", "best", "sensitivity=high", "sensitivity=1"):
        with pytest.raises(UsageError, match="give a number between 0 and 1, youden"):
            choose_threshold(rule, record(p, hit), 1)


@pytest.mark.parametrize(("k", "n"), [(0, 9), (7, 10), (45, 45), (130, 200)])
def test_intervals_are_those_of_the_textbooks(k, n):
    z = norm.ppf(0.975)
    centre, half = (k + z**2 / 2) / (n + z**2), z * np.sqrt(k * (n - k) / n + z**2 / 4) / (n + z**2)
    found = share(k, n)
    assert (found.low, found.high) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)
    found = share(k, n, "clopper-pearson")
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert share(0, 0).value is None


def test_shares_and_net_benefit_by_counting():
    rng = np.random.default_rng(3)
    p, hit = rng.random(50), rng.random(50) < 0.4
    found = shares_at(p >= 0.6, hit, "wilson")
    rows = [(a >= 0.6, b) for a, b in zip(p, hit)]
    tp, fp, fn, tn = (rows.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
    assert [(s.hits, s.n) for s in found.values()] == [(tp, tp + fn), (tn, tn + fp), (tp, tp + fp), (tn, tn + fn),
                                                       (tp + tn, 50)]  # fmt: skip
    assert net_benefit(p, hit, [0.6])[0] == pytest.approx(tp / 50 - fp / 50 * 0.6 / 0.4)
    assert net_benefit(np.ones(50), hit, [0.2])[0] == pytest.approx(hit.mean() - (1 - hit.mean()) * 0.25)
