"""Survival and regression metrics against lifelines, torchsurv and scikit-learn on public small sets, and by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation import regression
from lrmil_cli.evaluation.bootstrap import figure_intervals
from lrmil_cli.evaluation.kaplan_meier import hazard_ratios, kaplan_meier, log_rank
from lrmil_cli.evaluation.survival import (
    Followed,
    curve_at,
    figures,
    harrell_c,
    uno_c,
)

lifelines = pytest.importorskip("lifelines")


def rossi():
    """432 convicts, followed for a year (Rossi et al. 1980), with a risk by age and earlier convictions."""
    from lifelines.datasets import load_rossi

    d = load_rossi()
    risk = (d["prio"] - 0.3 * d["age"]).to_numpy(float)
    names = np.array([f"p{i}" for i in range(len(d))])
    return d, Followed(d["week"].to_numpy(float), d["arrest"].to_numpy() == 1, risk, names)


def c_of(f, minus=None, draws=200):
    """Harrell's C with its interval, or the difference to another model's."""
    other = None if minus is None else figures(replace(f, risks=np.asarray(minus, float)))
    return figure_intervals(figures(f), f.patients, minus=other, draws=draws)["c_harrell"]


def auc_at(f, horizon):
    """NaN where one kind is missing."""
    return figures(f, horizons=[horizon])[f"auc_at_{horizon:g}"](np.ones((1, len(f.times))))[0]


def brier_at(f, survival, horizon):
    """Of a curve [n, 1] that is known at the horizon."""
    return figures(f, [horizon], survival, [horizon])[f"brier_at_{horizon:g}"](np.ones((1, len(f.times))))[0]


def test_c_is_that_of_lifelines_and_torchsurv():
    import torch
    from torchsurv.metrics.cindex import ConcordanceIndex
    from torchsurv.stats.ipcw import get_ipcw

    _, f = rossi()
    assert harrell_c(f) == pytest.approx(lifelines.utils.concordance_index(f.times, -f.risks, f.events), abs=1e-12)
    noise = np.random.default_rng(0).random(len(f.times)) / 100  # without ties
    g = Followed(f.times + noise, f.events, f.risks + noise, f.patients)
    event, time, risk = (torch.from_numpy(v) for v in (g.events, g.times, g.risks))
    theirs = ConcordanceIndex()(risk, event, time, weight=get_ipcw(event, time).double())
    assert uno_c(g) == pytest.approx(float(theirs), abs=1e-4)
    ours = c_of(g, draws=20)
    assert ours.value == pytest.approx(harrell_c(g)) and ours.low < ours.value < ours.high


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=9)
)
def test_c_counts_pairs(rows):
    times, events, risks, folds = (np.array(v) for v in zip(*rows))
    f = Followed(times.astype(float), events.astype(bool), risks.astype(float), np.arange(len(rows)).astype(str), folds)
    pairs = hits = 0.0
    for i in range(len(rows)):
        for j in range(len(rows)):
            later = times[i] < times[j] or (times[i] == times[j] and not events[j])
            if i != j and events[i] and later and folds[i] == folds[j]:
                pairs += 1
                hits += 1.0 if risks[i] > risks[j] else 0.5 if risks[i] == risks[j] else 0.0
    assert harrell_c(f) == (pytest.approx(hits / pairs) if pairs else None)


def test_a_resample_is_the_metric_of_the_drawn_patients():
    """Weights of pairs in the bootstrap give the C of the drawn rows themselves."""
    _, f = rossi()
    some = slice(0, 40)
    g = Followed(f.times[some], f.events[some], f.risks[some], f.patients[some])
    from lrmil_cli.evaluation.bootstrap import resamples

    (times,) = next(iter(resamples(40, 1, 0)))
    order = np.unique(g.patients, return_inverse=True)[1]
    rows = np.repeat(np.arange(40), times[order].astype(int))
    drawn = harrell_c(Followed(g.times[rows], g.events[rows], g.risks[rows], g.patients[rows]))
    assert c_of(g, draws=1).low == pytest.approx(drawn)


def test_null_risks_have_half_in_their_interval_and_a_paired_difference_of_a_model_with_itself_is_nothing():
    rng = np.random.default_rng(3)
    f = Followed(rng.exponential(1, 200), rng.random(200) < 0.7, rng.random(200), np.arange(200).astype(str))
    c = c_of(f)
    assert c.low < 0.5 < c.high
    same = c_of(f, f.risks, 50)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    twice = Followed(*(np.repeat(v, 2) for v in (f.times, f.events, f.risks, f.patients)))
    wide = c_of(twice)  # two slides a patient know no more than one
    assert wide.high - wide.low == pytest.approx(c.high - c.low, rel=0.05)


def test_auc_and_brier_over_time_by_hand():
    """Nobody is censored, so all weights are 1: a ROC AUC and a mean square."""
    f = Followed(np.array([1.0, 2, 3, 4]), np.ones(4, bool), np.array([4.0, 1, 3, 2]), np.array(list("abcd")))
    assert auc_at(f, 2.5) == pytest.approx(0.5) and np.isnan(auc_at(f, 0.5))  # 4 > 3, 4 > 2, 1 < 3, 1 < 2; nobody
    apart = Followed(f.times, f.events, f.risks, f.patients, np.array([0, 1, 0, 1]))
    assert auc_at(apart, 2.5) == pytest.approx(0.5)  # 4 > 3, 1 < 2
    s = np.array([[0.2, 0.1], [0.4, 0.3], [0.9, 0.6], [0.9, 0.8]])
    by_hand = [(0.04 + 0.16 + 0.01 + 0.01) / 4, (0.01 + 0.09 + 0.36 + 0.04) / 4]
    assert [brier_at(f, s[:, :1], 2.5), brier_at(f, s[:, 1:2], 3.5)] == pytest.approx(by_hand)
    own = figure_intervals(figures(f, [2.5, 3.5], s, [2.5, 3.5, 4]), f.patients, draws=0)
    assert own["ibs"].value == pytest.approx(np.mean(by_hand))  # the trapezoid of two points
    assert own["brier_at_4"].value is None and own["auc_at_4"].value is None  # beyond what the curves know


def test_auc_and_brier_are_those_of_torchsurv():
    import torch
    from torchsurv.metrics.auc import Auc
    from torchsurv.metrics.brier_score import BrierScore
    from torchsurv.stats.ipcw import get_ipcw

    rng = np.random.default_rng(5)
    n, at = 120, [0.4, 0.8, 1.2]
    happens, leaves = rng.exponential(1, n), rng.exponential(1.5, n)
    f = Followed(np.minimum(happens, leaves), happens < leaves, rng.normal(size=n) - happens, np.arange(n).astype(str))
    curves = np.exp(-np.exp(f.risks / 2)[:, None] * np.array(at))
    own = figure_intervals(figures(f, at, curves, at), f.patients, draws=0)
    event, time = torch.from_numpy(f.events), torch.from_numpy(f.times)
    new, weight = torch.tensor(at, dtype=torch.float64), get_ipcw(event, time).double()
    there = get_ipcw(event, time, new).double()
    kwargs = {"new_time": new, "weight": weight, "weight_new_time": there}
    auc = Auc()(torch.from_numpy(f.risks), event, time, **kwargs)
    assert [own[f"auc_at_{h:g}"].value for h in at] == pytest.approx(auc.tolist(), abs=1e-4)
    judge = BrierScore()
    scores = judge(torch.from_numpy(curves), event, time, **kwargs)
    assert [own[f"brier_at_{h:g}"].value for h in at] == pytest.approx(scores.tolist(), abs=1e-4)
    assert own["ibs"].value == pytest.approx(float(judge.integral()), abs=1e-4)


def test_curves_by_a_straight_line():
    own = curve_at([2.0, 4.0], np.array([[0.8, 0.4]]), 3.0)
    assert own == pytest.approx([0.6]) and curve_at([2.0, 4.0], np.array([[0.8, 0.4]]), 1.0) == pytest.approx([0.9])
    assert curve_at([2.0, 4.0], np.array([[0.8, 0.4]]), 5.0) is None


def test_curves_log_rank_and_ratios_are_those_of_lifelines():
    d, f = rossi()
    curve = kaplan_meier(f.times, f.events, [0, 26, 52])
    at = lambda t: curve.survival[np.searchsorted(curve.times, t, side="right") - 1]
    by_hand = 1.0
    for t in np.unique(f.times[f.events & (f.times <= 26)]):
        by_hand *= 1 - (f.events & (f.times == t)).sum() / (f.times >= t).sum()
    assert at(26) == pytest.approx(by_hand, rel=1e-9) and curve.median is None
    assert curve.at_risk == [432, int((f.times >= 26).sum()), int((f.times >= 52).sum())]
    two = lifelines.statistics.logrank_test(*(f.times[f.risks > 0], f.times[f.risks <= 0]),
                                            *(f.events[f.risks > 0], f.events[f.risks <= 0]))  # fmt: skip
    assert log_rank(f.times, f.events, f.risks > 0) == pytest.approx(two.p_value)
    assert log_rank(f.times, f.events, np.zeros(432)) is None
    rows = hazard_ratios(f, adjust=d[["fin"]])
    theirs = lifelines.CoxPHFitter().fit(
        d.assign(r=(f.risks - f.risks.mean()) / f.risks.std())[["week", "arrest", "r", "fin"]], "week", "arrest"
    )
    assert [r["name"] for r in rows] == ["risk", "fin"]
    assert rows[0]["hazard_ratio"] == pytest.approx(theirs.hazard_ratios_["r"], rel=1e-6) and rows[0]["low"] > 1
    text = hazard_ratios(f, adjust=pd.DataFrame({"stage": np.where(d["age"] > 25, "old", "young")}))
    assert text[1]["name"] == "stage young"
    flat = Followed(f.times, f.events, np.ones(432), f.patients)
    with pytest.raises(InputError, match="same for everybody"):
        hazard_ratios(flat)
    with pytest.raises(InputError, match="no hazard ratio of risk, x"):
        hazard_ratios(f, adjust=pd.DataFrame({"x": np.ones(432)}))


def test_ratios_keep_folds_apart():
    """The scale and place of a fold's risks have no say."""
    d, f = rossi()
    folds = np.arange(432) % 3
    apart = [Followed(f.times, f.events, r, f.patients, folds) for r in (f.risks, f.risks * (1 + folds) - 50 * folds)]
    a, b = (hazard_ratios(own)[0]["hazard_ratio"] for own in apart)
    assert a == pytest.approx(b, rel=1e-6) and a > 1
    assert hazard_ratios(apart[0], high=f.risks > 0)[0]["name"] == "group"
    assert hazard_ratios(apart[0], high=f.risks > 0) == hazard_ratios(apart[1], high=f.risks > 0)
    with pytest.raises(InputError, match="one group"):
        hazard_ratios(f, high=np.ones(432, bool))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=12))
def test_regression_metrics_are_those_of_scikit_learn_and_scipy(rows):
    from scipy import stats
    from sklearn import metrics

    y, p = (np.array(v, float) for v in zip(*rows))
    found = regression.regression_metrics(y, p)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(y, p))
    assert found["rmse"] == pytest.approx(metrics.mean_squared_error(y, p) ** 0.5)
    if np.ptp(y):
        assert found["r2"] == pytest.approx(metrics.r2_score(y, p))
    else:
        assert found["r2"] is None
    if np.ptp(y) and np.ptp(p):
        assert found["pearson"] == pytest.approx(stats.pearsonr(y, p)[0])
        assert found["spearman"] == pytest.approx(stats.spearmanr(y, p)[0])
    else:
        assert found["pearson"] is None and found["spearman"] is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 3)), min_size=2, max_size=9))
def test_a_resample_of_numbers_is_the_metric_of_the_drawn_rows(rows):
    y, p, times = (np.array(v, float) for v in zip(*rows))
    if not times.any():
        return
    drawn = regression.regression_metrics(*(np.repeat(v, times.astype(int)) for v in (y, p)))
    for name, figure in regression.figures(y, p).items():
        assert figure(times[None])[0] == pytest.approx(np.nan if drawn[name] is None else drawn[name], nan_ok=True)


def test_agreement_by_hand():
    a = regression.bland_altman(np.array([1.0, 2, 3]), np.array([2.0, 2, 5]))
    assert a["bias"] == 1 and a["high"] - a["low"] == pytest.approx(2 * 1.96)
    y = np.arange(30.0)
    near, far = y + np.tile([0.1, -0.1], 15), y + np.tile([3.0, -3.0], 15)
    own, other = (regression.figures(y, said) for said in (near, far))
    gain = figure_intervals(own, np.arange(30).astype(str), minus=other, draws=200)["mae"]
    assert gain.value == pytest.approx(-2.9) and gain.high < 0
