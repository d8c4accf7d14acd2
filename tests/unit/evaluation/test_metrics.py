"""Metrics against scikit-learn and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_cli.evaluation.metrics import LOWER_IS_BETTER, METRICS, TITLES, auc, evaluate, one_auc


def make(n, classes, seed, decimals=None):
    """Labels and probabilities that agree a little; rounded probabilities have ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    p = rng.dirichlet(np.ones(classes), n)
    p[np.arange(n), labels] += 0.4
    p /= p.sum(1, keepdims=True)
    if decimals is not None:
        p = np.round(p, decimals)
        p[:, -1] = 1 - p[:, :-1].sum(1)
    return labels, p


@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn's, of classes that are only predicted
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 60), classes=st.integers(2, 5), seed=st.integers(0, 10_000), decimals=st.sampled_from([None, 1])
)
def test_metrics_are_those_of_scikit_learn(n, classes, seed, decimals):
    from sklearn import metrics as sk

    labels, p = make(n, classes, seed, decimals)
    own, said = evaluate(labels, p), p.argmax(1)
    assert own["accuracy"] == pytest.approx(sk.accuracy_score(labels, said))
    assert own["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, said))
    assert own["f1_weighted"] == pytest.approx(sk.f1_score(labels, said, average="weighted", zero_division=0))
    assert own["brier"] == pytest.approx(((p - np.eye(classes)[labels]) ** 2).sum(1).mean())
    if p.min() > 0:
        assert own["log_loss"] == pytest.approx(sk.log_loss(labels, p, labels=range(classes)))
    if len(set(labels)) == classes:
        wanted = (
            sk.roc_auc_score(labels, p[:, 1])
            if classes == 2
            else np.mean([sk.roc_auc_score(labels == c, p[:, c]) for c in range(classes)])
        )
        assert own["auc"] == pytest.approx(wanted)
    else:
        assert own["auc"] is None


def test_auc_counts_ties_half():
    # Pairs (class 1, class 0): (.5, .5) half, (.5, .2) right, (.8, .5) right, (.8, .2) right.
    assert one_auc(np.array([False, True, False, True]), np.array([0.5, 0.5, 0.2, 0.8])) == 3.5 / 4
    assert one_auc(np.array([True, False]), np.array([0.3, 0.3])) == 0.5
    assert one_auc(np.array([True, True]), np.array([0.3, 0.4])) is None


def test_metrics_of_no_slides_are_undefined_and_nan_is_refused():
    assert evaluate([], np.zeros((0, 3))) == dict.fromkeys(METRICS)
    with pytest.raises(ValueError, match="finite"):
        auc(np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, np.nan]]))


def test_every_metric_has_a_title():
    assert set(TITLES) == set(METRICS) > set(LOWER_IS_BETTER)
