"""The headline of a receipt: all that the intervals tell apart, and no more; bands around ROC curves."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from lrmil_cli.evaluation.bootstrap import resamples
from lrmil_cli.evaluation.receipt_page import headline
from lrmil_cli.evaluation.scores import Cases, roc_band


def value(v, low, high):
    return {"value": v, "low": low, "high": high, "undefined": 0}


def receipt(**differences):
    auc = {**value(0.8, 0.7, 0.9), "mean": 0.75, "sd": 0.1, "folds": 5, "of_folds": 5, "reason": None}
    models = {name: {"title": name, "metrics": {"auc": auc}} for name in ("teacher", "lr_only", "distilled")}
    base = {"auc": value(0.1, -0.05, 0.2), "accuracy": value(0.02, -0.1, 0.1), "brier": value(-0.1, -0.2, 0.01)}
    return {
        "preset": "lrmil",
        "models": models,
        "cost": {"tile_ratio": 12.0},
        "differences": [
            {"a": "distilled", "b": "lr_only", **base, **differences},
            {"a": "distilled", "b": "teacher", **base},
            {"a": "lr_only", "b": "teacher", **base},
        ],
    }


def test_every_metric_whose_interval_excludes_zero_is_said_and_the_others_too():
    text = headline(receipt(brier=value(-0.1, -0.2, -0.01), accuracy=value(-0.2, -0.3, -0.1)))
    assert "Pooled AUC at low resolution 0.800 (0.700 to 0.900), fold mean 0.750" in text
    assert (
        "the distilled student has accuracy 0.200 lower (worse), Brier score 0.100 lower (better); AUC cannot" in text
    )
    assert "Against the teacher these patients tell no metric apart (accuracy, AUC, Brier score)." in text
    assert text.count("Against the") == 2 and text.endswith("12.0 times fewer tiles.")


def test_the_band_around_a_roc_curve_is_that_of_curves_of_resampled_patients():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 15)
    p = np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1), 1)  # with ties
    patients = np.array([f"p{n // 2}" for n in range(30)])
    cases = Cases(labels, np.stack([1 - p, p], 1), patients, None)
    false, low, high = roc_band(cases, [1], draws=60, seed=3)
    names, index = np.unique(patients, return_inverse=True)
    curves = []
    for times in np.concatenate(list(resamples(len(names), 60, 3))):
        weight = times[index]
        if weight[labels == 1].sum() and weight[labels == 0].sum():
            fpr, tpr, _ = roc_curve(labels, p, sample_weight=weight, drop_intermediate=False)
            curves.append(np.interp(false, fpr, tpr))
    assert low == pytest.approx(np.quantile(curves, 0.025, axis=0), abs=1e-9)
    assert high == pytest.approx(np.quantile(curves, 0.975, axis=0), abs=1e-9)
    assert roc_band(Cases(labels * 0, cases.probabilities, patients, None), [1], draws=5, seed=0) is None
