"""No gain is claimed that another seed could undo."""

import pytest

from lrmil_cli.evaluation.receipt_page import headline


def receipt(gain, low, high, sd):
    interval = lambda v, a, b: {"value": v, "low": a, "high": b, "undefined": 0}
    model = {"metrics": {"auc": {**interval(0.8, 0.7, 0.9), "reason": ""}}}
    spread = {"auc": {"mean": gain, "sd": sd, "of_seeds": []}}
    return {
        "models": {"distilled": model, "lr_only": model},
        "preset": "lrmil",
        "cost": {},
        "differences": [{"a": "distilled", "b": "lr_only", "auc": interval(gain, low, high)}],
        "seeds": sd and {"count": 3, "models": {"distilled": spread}, "differences": {"lr_only": spread}},
    }


@pytest.mark.parametrize(
    ("gain", "low", "high", "sd", "says"),
    [
        (0.05, 0.01, 0.09, 0.02, "has AUC 0.050 higher (better)."),
        (0.05, 0.01, 0.09, None, "has AUC 0.050 higher (better)."),
        (0.05, 0.01, 0.09, 0.06, "AUC 0.050 higher (no more than another seed changes, sd 0.060: no gain is claimed)."),
        (-0.05, -0.09, -0.01, 0.06, "0.050 lower (no more than another seed"),
        (0.05, -0.01, 0.09, 0.06, "these patients tell no metric apart (AUC)."),
    ],
)
def test_the_headline(gain, low, high, sd, says):
    assert says in headline(receipt(gain, low, high, sd))
