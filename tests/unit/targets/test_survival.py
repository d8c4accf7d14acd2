"""Losses of survival and regression against torchsurv, slow versions in plain Python, and numbers by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_cli.errors import InputError
from lrmil_cli.targets import outputs, regression, strata, survival

NUMBER = st.floats(-6, 6)


@st.composite
def cohorts(draw):
    """Times with ties, events of which there is one at least, and log risks."""
    n = draw(st.integers(2, 12))
    times = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    events = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    events[draw(st.integers(0, n - 1))] = True
    risks = draw(st.lists(NUMBER, min_size=n, max_size=n))
    return np.array(times, float), np.array(events), np.array(risks)


def slow_cox(risks, times, events):
    total = 0.0
    for t in sorted(set(times[events])):
        tied = [i for i in range(len(times)) if times[i] == t and events[i]]
        later = sum(math.exp(r) for r, own in zip(risks, times) if own >= t)
        for place, i in enumerate(tied):
            total -= risks[i] - math.log(later - place / len(tied) * sum(math.exp(risks[j]) for j in tied))
    return total / events.sum()


@settings(max_examples=60, deadline=None)
@given(cohorts())
def test_cox_is_efrons_and_its_gradient_pulls_to_zero_sum(cohort):
    times, events, risks = cohort
    r = torch.tensor(risks, requires_grad=True)
    loss = survival.cox_loss(r, torch.tensor(times), torch.tensor(events))
    assert loss.item() == pytest.approx(slow_cox(risks, times, events), rel=1e-4, abs=1e-4)
    loss.backward()
    assert float(r.grad.sum()) == pytest.approx(0, abs=1e-4)  # a constant on all risks changes nothing


@settings(max_examples=40, deadline=None)
@given(cohorts())
def test_cox_and_its_gradient_are_those_of_torchsurv(cohort):
    cox = pytest.importorskip("torchsurv.loss.cox")
    times, events, risks = cohort
    # Of those with one time it takes the order in which they come, so who is censored stands a little later.
    times = times + np.where(events, 0, 0.01 + np.arange(len(times)) / 1000)
    ours, theirs = (torch.tensor(risks, dtype=torch.float32, requires_grad=True) for _ in range(2))
    a = survival.cox_loss(ours, torch.tensor(times), torch.tensor(events))
    b = cox.neg_partial_log_likelihood(
        theirs, torch.tensor(events), torch.tensor(times, dtype=torch.float32), ties_method="efron", reduction="sum"
    )  # its mean is over times of events, ours over events
    b = b / events.sum()
    assert a.item() == pytest.approx(b.item(), rel=1e-4, abs=1e-4)
    a.backward()
    b.backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)


def test_cox_by_hand():
    three = torch.tensor([0.0, math.log(2), math.log(3)]), torch.tensor([1.0, 2.0, 3.0])
    one = survival.cox_loss(*three, torch.tensor([1, 0, 0]))
    assert float(one) == pytest.approx(math.log(6))  # one event, of risk 1 among 1 + 2 + 3
    tied = survival.cox_loss(three[0], torch.ones(3), torch.ones(3))  # 6, then 6 - 2, then 6 - 4
    assert float(tied) == pytest.approx((math.log(6) + math.log(4) + math.log(2) - math.log(6)) / 3)
    r = torch.zeros(3, requires_grad=True)
    none = survival.cox_loss(r, three[1], torch.zeros(3))
    none.backward()
    assert float(none) == 0 and not r.grad.any()
    far = survival.cox_loss(torch.tensor([900.0, 0.0, -900.0]), three[1], torch.ones(3))
    assert torch.isfinite(far) and float(far) == pytest.approx(0, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBER, min_size=1, max_size=6), st.data())
def test_hazard_loss_is_the_likelihood(logits, data):
    b, event = data.draw(st.integers(0, len(logits) - 1)), data.draw(st.booleans())
    h = [1 / (1 + math.exp(-z)) for z in logits]
    free = [math.prod(1 - v for v in h[: j + 1]) for j in range(len(h))]
    chance = h[b] * (free[b - 1] if b else 1) if event else free[b]
    assert float(survival.hazard_loss(torch.tensor(logits), b, event)) == pytest.approx(-math.log(chance), rel=1e-4)
    assert outputs.survival_curve(np.array(logits)) == pytest.approx(free, rel=1e-9)
    # All that can become of a patient has chance 1: the event in an interval, or none of them.
    whole = sum(math.exp(-float(survival.hazard_loss(torch.tensor(logits), j, True))) for j in range(len(h)))
    assert whole + free[-1] == pytest.approx(1, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=5), st.data())
def test_hazard_distillation_is_the_sum_of_divergences_at_risk(pairs, data):
    b, temperature = data.draw(st.integers(0, len(pairs) - 1)), data.draw(st.sampled_from([1.0, 3.0]))
    student, teacher = (torch.tensor(v, requires_grad=True) for v in zip(*pairs))
    loss = survival.hazard_distillation(student, teacher, b, temperature)
    slow = 0.0
    for s, t in pairs[: b + 1]:
        p, q = (1 / (1 + math.exp(-v / temperature)) for v in (t, s))
        slow += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert loss.item() == pytest.approx(temperature**2 * slow, rel=1e-3, abs=1e-5)
    loss.backward()
    assert not student.grad[b + 1 :].any()  # what comes after the patient was last seen says nothing
    assert float(survival.hazard_distillation(teacher, teacher, b, temperature)) == pytest.approx(0, abs=1e-6)


def test_intervals_by_hand():
    times, events = [1, 2, 3, 4, 100, 200], [1, 1, 1, 1, 0, 0]
    borders = survival.hazard_borders(times, events, 4)
    assert borders.tolist() == [1.75, 2.5, 3.25]
    assert survival.interval_of([0, 1.75, 2.4, 3.25, 1e9], borders).tolist() == [0, 1, 1, 3, 3]
    assert survival.hazard_borders([5, 5, 5, 9], [1, 1, 1, 1], 4).tolist() == [6.0]  # ties leave fewer
    assert survival.hazard_borders([5, 5], [1, 1], 4).tolist() == []
    with pytest.raises(InputError, match="no event"):
        survival.hazard_borders([1, 2], [0, 0])


def test_median_and_risk_by_hand():
    borders = np.array([10.0, 20.0, 40.0])
    assert outputs.median_survival(np.array([0.8, 0.6, 0.2, 0.1]), borders) == pytest.approx(25.0)
    assert outputs.median_survival(np.array([0.25, 0.2, 0.1, 0.0]), borders) == pytest.approx(20 / 3)
    assert outputs.median_survival(np.array([0.9, 0.8, 0.7, 0.1]), borders) is None  # within what has no end
    curves = np.array([[0.8, 0.6], [0.5, 0.1]])
    assert outputs.risk_of(curves).tolist() == pytest.approx([-1.4, -0.6])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 20))
def test_risk_sets_deal_events_evenly(events, size):
    index = list(range(len(events)))
    sets = survival.risk_sets(np.array(events, float), index, size, np.random.default_rng(0))
    assert sorted(i for s in sets for i in s) == index
    held = [sum(events[i] for i in s) for s in sets]
    assert max(held) - min(held) <= 1 and max(map(len, sets)) - min(map(len, sets)) <= 1


def test_cox_distillation_knows_no_unit():
    teacher = torch.tensor([0.1, 0.5, 2.0, -1.0])
    assert float(survival.cox_distillation(7 * teacher + 3, teacher)) == pytest.approx(0, abs=1e-5)
    assert float(survival.cox_distillation(-teacher, teacher)) == pytest.approx(4, rel=1e-4)
    assert float(survival.cox_distillation(teacher[:1], teacher[:1])) == 0


def test_strata_of_folds():
    bins = strata.survival_bins([1, 2, 3, 4, 1, 2, 3, 4], [1, 1, 1, 1, 0, 0, 0, 0])
    assert bins.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert strata.target_bins([1, 2, 3, 4]).tolist() == [0, 1, 2, 3]
    assert strata.target_bins([0, 0, 0, 5]).tolist() == [1, 1, 1, 2]


def test_regression_by_hand():
    scale = regression.fit_scale([10, 20, 30])
    assert scale.mean == 20 and scale.sd == pytest.approx(math.sqrt(200 / 3))
    assert scale.own_unit(scale.standardised(np.array([1.0, 99.0]))) == pytest.approx([1, 99])
    near, far = torch.tensor([0.5]), torch.tensor([3.0])
    zero = torch.tensor(0.0)
    assert float(regression.regression_loss(near, zero)) == pytest.approx(0.125)
    assert float(regression.regression_loss(far, zero)) == pytest.approx(2.5)  # linear beyond delta 1
    assert float(regression.regression_loss(far, zero, "mse")) == pytest.approx(9)
    assert float(regression.regression_distillation(far, near)) == pytest.approx(6.25)
    with pytest.raises(InputError, match="3 for all training slides"):
        regression.fit_scale([3, 3, 3])
