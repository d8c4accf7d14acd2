"""What training says of its out-of-fold tables of numbers and survival."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score

from lrmil_cli.evaluation.target_metrics import target_metrics, target_metrics_table


def test_numbers_by_fold_and_pooled():
    rng = np.random.default_rng(0)
    y = rng.normal(size=20)
    names, folds = [f"s{i}" for i in range(20)], np.arange(20) % 2 + 1
    table = pd.DataFrame({"patient_id": names, "label": y.astype(str), "fold": folds, "predicted": y + 0.5})
    task = SimpleNamespace(kind="regression")
    whole = target_metrics(task, table)
    assert (
        whole["n"] == 20 and whole["mae"] == pytest.approx(0.5) and whole["r2"] == pytest.approx(r2_score(y, y + 0.5))
    )
    by = target_metrics_table(task, table).set_index("fold")
    assert list(by.index) == ["1", "2", "mean", "sd", "pooled"]
    each = [r2_score(y[k::2], y[k::2] + 0.5) for k in (0, 1)]
    assert by.loc["mean", "r2"] == pytest.approx(np.mean(each)) and by.loc["sd", "r2"] == pytest.approx(
        np.std(each, ddof=1)
    )
    assert by.loc["1", "n"] == 10 and pd.isna(by.loc["mean", "n"])


def test_risks_of_two_folds_are_not_compared():
    table = pd.DataFrame({"patient_id": list("abcdef"), "fold": [1, 1, 1, 2, 2, 2], "event": [1, 1, 0, 1, 0, 1]})
    table = table.assign(time=[1.0, 2, 3, 1, 2, 3], risk=[-7.0, -8, -9, 3, 2, 1])
    task = SimpleNamespace(kind="survival")
    assert target_metrics(task, table) == {"n": 6, "events": 4, "c_harrell": 1, "c_uno": 1}
    by = target_metrics_table(task, table.sample(frac=1, random_state=0)).set_index("fold")
    assert by["events"].dropna().tolist() == [2, 2, 4] and by.loc["mean", "c_harrell"] == 1
