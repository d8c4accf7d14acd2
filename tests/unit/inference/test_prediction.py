"""What all predictors share: the ensemble, the estimate, percentiles."""

import numpy as np
import pytest

from lrmil_cli.inference.prediction import ensemble, expected_seconds
from lrmil_cli.inference.record import attention_rows, percentiles


def test_fold_heads_are_averaged_by_probability_and_attention_sums_to_one():
    logits = np.log(np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)) + np.array([[0.0], [50.0]], np.float32)
    attention = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]], np.float32)
    per_fold, mean, rows = ensemble({}, logits, attention, np.stack([np.zeros((2, 3)), np.ones((2, 3))]))
    assert per_fold == pytest.approx(np.array([[0.9, 0.1], [0.2, 0.8]]), abs=1e-5)
    assert mean == pytest.approx([0.3, 0.35, 0.35]) and mean.sum() == pytest.approx(1, abs=1e-12)
    assert rows.tolist() == np.full((2, 3), 0.5).tolist()
    assert ensemble({}, logits, attention, None)[2] is None


def test_percentiles_share_the_rank_of_ties():
    assert percentiles(np.array([0.1, 0.4, 0.1, 0.2])).tolist() == pytest.approx([100 / 6, 100, 100 / 6, 200 / 3])
    assert percentiles(np.array([1.0])).tolist() == [100.0]
    rows = attention_rows(np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([0.25, 0.75]))
    assert (
        rows["x"].tolist() == [1, 5] and rows["height"].tolist() == [4, 8] and rows["percentile"].tolist() == [0, 100]
    )


def test_the_second_batch_sets_the_rate_and_a_few_tiles_are_all_looked_at(monkeypatch):
    from lrmil_cli.inference import prediction

    now, seen = [0.0], []
    monkeypatch.setattr(prediction.time, "perf_counter", lambda: now[0])

    def encode(some):
        seen.append(len(some))
        now[0] += len(some) * (10 if len(seen) == 1 else 2)

    boxes = np.arange(400).reshape(100, 4)
    assert expected_seconds(boxes, 4, 1.0, encode) == (100, 1 + 200) and seen == [4, 4]
    seen.clear()
    assert expected_seconds(boxes[:3], 4, 0.0, encode) == (3, 30) and seen == [3]
