"""Patients, folds, classes, curves."""

import numpy as np
import pytest

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.metrics import auc
from lrmil_cli.evaluation.scores import (
    Cases,
    at_level,
    macro_roc,
    majority,
    metric_table,
    per_class,
)
from tests.unit.evaluation.test_metrics import make


def test_patient_level_is_the_mean_of_a_patients_slides():
    cases = Cases(
        np.array([0, 1, 0, 1]),
        np.array([[0.25, 0.75], [0.375, 0.625], [0.875, 0.125], [0.75, 0.25]]),
        np.array(["x", "y", "x", "y"]),
    )
    got = at_level(cases, "patient", ["a", "b"])
    assert got.patients.tolist() == ["x", "y"] and got.labels.tolist() == [0, 1]
    assert got.probabilities.tolist() == [[0.5625, 0.4375], [0.5625, 0.4375]]
    table = {
        s.metric: s
        for s in metric_table(
            cases.labels,
            cases.probabilities,
            cases.patients,
            [1, 1, 2, 1],
            classes=["a", "b"],
            level="patient",
            draws=10,
        )
    }
    assert table["accuracy"].pooled.value == 0.5 and table["auc"].pooled.value == 0.5
    # Fold 1: x by its first slide (wrong), y (wrong); fold 2: x by its second slide (right).
    assert (table["accuracy"].mean, table["accuracy"].folds) == (0.5, 2)
    assert (table["auc"].mean, table["auc"].folds, table["auc"].of_folds) == (0.0, 1, 2)


def test_a_patient_with_two_labels_is_named():
    with pytest.raises(InputError, match="patient 'x' has slides of the classes 'a' and 'b'"):
        at_level(Cases(np.array([0, 1]), np.full((2, 2), 0.5), np.array(["x", "x"])), "patient", ["a", "b"])


def test_mean_and_sd_over_folds_by_hand():
    labels, p = [0, 1, 0, 1, 1, 1], np.array([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
    table = {
        s.metric: s for s in metric_table(labels, p, list("abcdef"), [1, 1, 2, 2, 3, 3], classes=["n", "t"], draws=20)
    }
    accuracy, area = table["accuracy"], table["auc"]
    assert (accuracy.mean, accuracy.folds) == (pytest.approx(2 / 3), 3) and accuracy.sd == pytest.approx(
        np.std([1, 0.5, 0.5], ddof=1)
    )
    assert (area.mean, area.sd, area.folds, area.of_folds) == (
        0.5,
        pytest.approx(np.std([1, 0], ddof=1)),
        2,
        3,
    )  # fold 3 has no n
    assert area.pooled.value == pytest.approx(6.5 / 8) and area.reason == ""
    missing = metric_table([1, 1], p[:2], ["a", "b"], classes=["n", "t"], metrics=["auc"], draws=20)[0]
    assert missing.pooled.value is None and missing.reason == "no slide of class n" and missing.mean is None


def test_classes_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    said = np.array([0, 0, 1, 1, 0, 2])
    rows = per_class(Cases(labels, np.eye(4)[said], labels), ["a", "b", "c", "d"])
    assert [(r.n, r.sensitivity, r.specificity) for r in rows[:3]] == [(3, 2 / 3, 2 / 3), (2, 0.5, 0.75), (1, 1.0, 1.0)]
    assert (rows[3].n, rows[3].sensitivity, rows[3].specificity, rows[3].auc) == (0, None, 1.0, None)
    assert majority(labels, ["a", "b", "c", "d"]) == ("a", 0.5)


def test_area_under_the_mean_curve_is_the_macro_auc():
    for seed, decimals in ((0, None), (1, 1)):
        labels, p = make(60, 4, seed, decimals)
        false, true = macro_roc(labels, p)
        assert ((true[1:] + true[:-1]) / 2 * np.diff(false)).sum() == pytest.approx(auc(labels, p), abs=1e-9)
        assert (np.diff(false) >= 0).all() and (np.diff(true) >= -1e-12).all() and (false[0], true[-1]) == (0, 1)
    assert macro_roc(labels % 3, p) is None
