"""Which held-out slides are shown where teacher and student disagree."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from lrmil_cli.distill.disagreement import MOST, farthest_apart


def test_the_slides_whose_answers_are_farthest_apart_come_first_and_none_twice():
    ids = [f"s{n}" for n in range(6)]
    theirs = [0.9, 0.5, 0.1, 0.6, 0.3, 0.2]
    rows = pd.DataFrame({"slide_id": ids * 2, "fold": [1] * 6 + [2] * 6, "prob_a": theirs * 2})
    guide = SimpleNamespace(classes=("a", "b"), predictions=lambda: rows.assign(prob_b=1 - rows["prob_a"]))

    def fold(number, own):
        return SimpleNamespace(fold=number, parts={"test": ids}, probabilities=[np.array([p, 1 - p]) for p in own])

    student = SimpleNamespace(
        results=[fold(1, [0.1, 0.5, 0.9, 0.5, 0.3, 0.9]), fold(2, [0.0, 0.4, 0.1, 0.6, 0.3, 0.2])]
    )
    found = farthest_apart(guide, student, ids, [True] * 5 + [False])
    assert [(a.index, a.fold) for a in found] == [(0, 2), (2, 1), (1, 2), (3, 1)] and len(found) == MOST
    assert [round(a.distance, 6) for a in found] == [0.9, 0.8, 0.1, 0.1]
