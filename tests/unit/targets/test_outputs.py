"""What the numbers of heads mean, against slow versions and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_cli.errors import UsageError
from lrmil_cli.targets import answers, outputs
from lrmil_cli.targets.survival import hazard_offset
from lrmil_cli.targets.task import Task, make_task, task_of

NLL, COX, NUMBER = Task("survival", "nll"), Task("survival", "cox"), Task("regression", "huber")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.floats(-3, 3)), min_size=1, max_size=15))
def test_breslow_counts_events_over_those_at_risk(rows):
    times, events, risks = (np.array(v) for v in zip(*rows))
    borders = np.array([2.0, 5.0, 9.0])
    slow = [
        sum(
            sum(e and t == at for t, e, _ in rows) / sum(np.exp(r) for t, _, r in rows if t >= at)
            for at in {t for t, e, _ in rows if e}
            if at < border
        )
        for border in borders
    ]
    np.testing.assert_allclose(outputs.breslow(risks, times.astype(float), events, borders), slow)


def test_without_covariates_the_curve_of_cox_is_that_of_nelson_and_aalen():
    lifelines = pytest.importorskip("lifelines", reason="the extra survival")
    rng = np.random.default_rng(0)
    times, events = np.round(rng.exponential(10, 60), 3), rng.random(60) < 0.7
    fitted = lifelines.NelsonAalenFitter(nelson_aalen_smoothing=False).fit(times, events)
    borders = np.array([3.0, 8.0, 15.0])
    np.testing.assert_allclose(
        outputs.breslow(np.zeros(60), times, events, borders), fitted.cumulative_hazard_at_times(borders - 1e-9)
    )


def test_what_heads_say_of_survival_together():
    heads = [
        {"borders": [1.0, 2.0, 4.0], "offset": [0.0] * 4, "cut": -2.0},
        {"borders": [1.0, 3.0, 8.0], "offset": [0.0, 0.0, 1.0, 0.0], "cut": -2.4},
    ]
    times = outputs.known_times(heads)
    assert len(times) == 3 and times[0] == 1 and times[-1] == 4  # the last border that both have
    assert outputs.known_times(heads[:1]).tolist() == [1, 2, 4]
    logits = np.array([[0.0, 0.0, -1.0, 0.0]])
    says = [outputs.said(NLL, o, logits) for o in heads]
    np.testing.assert_allclose(says[1][0], [0.5, 0.25, 0.125, 0.0625])  # the offset of the third interval is added
    answer = outputs.survival_answer(NLL, heads, says, np.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(answer.of_heads[1], -(0.5 + 0.25 + 0.125 + 0.0625))
    np.testing.assert_allclose(answer.risk, answer.of_heads.mean(0))
    second = [0.5, 0.375, 0.25 - 0.125 / 5]  # by straight lines between 1, 3 and 8
    np.testing.assert_allclose(answer.survival[0], (says[0][0, :3] + second) / 2)
    assert answer.cut == pytest.approx(-2.2) and answer.group.tolist() == ["high"] and answer.median[0] == 1.0


def test_cox_risks_stand_over_the_mean_of_the_training_slides():
    head = {"borders": [1.0, 2.0], "baseline": [0.1, 0.5], "centre": 3.0, "cut": 0.0}
    says = outputs.said(COX, head, np.array([[3.0], [4.0]]))
    assert outputs.risk(COX, head, says).tolist() == [0.0, 1.0]
    np.testing.assert_allclose(outputs.curve(COX, head, says)[1], np.exp(-np.e * np.array([0.1, 0.5])))
    answer = outputs.survival_answer(COX, [head], [says], np.array([1.0, 2.0]))
    assert answer.group.tolist() == ["low", "high"] and np.isnan(answer.median[0]) and answer.median[1] < 2


def test_the_hazards_of_the_training_slides_are_events_over_those_at_risk():
    times, events = [1, 1, 2, 3, 3, 5], [1, 0, 1, 1, 0, 0]
    offset = hazard_offset(times, events, np.array([2.0, 3.0]))  # intervals: two, one and three slides
    np.testing.assert_allclose(offset, np.log([1.5 / 5.5, 1.5 / 3.5, 1.5 / 2.5]))


def test_a_task_is_kept_by_what_belongs_to_it():
    assert Task().as_json() == {"kind": "classification", "loss": ""} and task_of({}) == Task()
    for task in (make_task("regression", label="ki67"), make_task("survival", "cox", time="months", risk_set=9)):
        assert task_of({"target": task.as_json()}) == task
    assert "risk_set" not in make_task("survival").as_json() and "time" not in make_task("regression").as_json()
    for wrong in (("grading",), ("survival", "huber"), ("classification", "nll")):
        with pytest.raises(UsageError, match="choose|loss of their head"):
            make_task(*wrong)
    with pytest.raises(UsageError, match="--intervals 1"):
        make_task("survival", intervals=1)


def test_answers_in_words():
    classes = {"predicted": "tumor", "probabilities": {"tumor": 0.934, "normal": 0.066}}
    assert (answers.answer_text(classes), answers.sureness(classes)) == ("tumor", "probability 0.93")
    number = {"target": NUMBER.as_json(), "predicted": 12.3456, "spread": 0.52, "folds": [12.0, 12.7]}
    assert (answers.answer_text(number), answers.sureness(number)) == ("12.35", "sd over heads 0.52")
    survival = {"target": NLL.as_json(), "predicted": "high", "risk": -1.0, "times": [6.0], "survival": [0.7]}
    assert answers.answer_text(survival) == "high risk" and answers.sureness(survival) == "survival 0.70 at 6"
    assert answers.sureness(survival | {"median": 4.321}) == "median survival 4.321"
    assert [answers.sort_value(r) for r in (classes, number, survival)] == [0.934, 12.3456, -1.0]
