"""Where teacher and student disagree most."""

import numpy as np
import pandas as pd

from lrmil_cli.distill.disagreement import MOST, farthest_apart
from lrmil_cli.targets.task import Task

IDS = [f"s{n}" for n in range(6)]


def tables(first, second, column):
    return pd.DataFrame({"slide_id": IDS * 2, "fold": [1] * 6 + [2] * 6, column: [*first, *second]})


def test_the_slides_whose_answers_are_farthest_apart_come_first_and_none_twice():
    both = [0.9, 0.5, 0.1, 0.6, 0.3, 0.2]
    teacher = tables(both, both, "prob_a")
    student = tables([0.1, 0.5, 0.9, 0.5, 0.3, 0.9], [0.0, 0.4, 0.1, 0.6, 0.3, 0.2], "prob_a")
    found = farthest_apart(*(t.assign(prob_b=1 - t["prob_a"]) for t in (teacher, student)), Task(), set(IDS[:5]))
    assert [(a.slide_id, a.fold) for a in found] == [("s0", 2), ("s2", 1), ("s1", 2), ("s3", 1)] and len(found) == MOST
    assert [round(a.distance, 6) for a in found] == [0.9, 0.8, 0.1, 0.1]
    assert (found[0].teacher, found[0].student) == ("a 0.90", "b 1.00")


def test_numbers_differ_by_their_own_unit_and_risks_by_their_ranks_in_the_fold():
    own, theirs = np.arange(12.0), np.arange(12.0)
    own[3] += 40
    found = farthest_apart(
        *(tables(v[:6], v[6:], "predicted") for v in (theirs, own)), Task("regression", "huber"), IDS
    )
    assert (found[0].slide_id, found[0].distance, found[0].student) == ("s3", 40.0, "43")
    risks = [tables(v[:6], v[6:], "risk").assign(group="low") for v in (theirs, -100 * own)]
    found = farthest_apart(*risks, Task("survival", "cox"), IDS)
    assert {a.slide_id for a in found[:2]} == {"s0", "s5"} and found[0].distance == 5 / 6
