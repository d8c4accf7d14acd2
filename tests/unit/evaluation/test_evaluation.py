"""Metrics against scikit-learn and by hand, the bootstrap's promises, patients, curves, the page."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.bootstrap import Interval, interval, paired, resamples
from lrmil_cli.evaluation.metrics import METRIC_FUNCTIONS, METRICS, auc, evaluate, one_auc
from lrmil_cli.evaluation.page import Heading, Picture, Table, Text, to_html, to_markdown
from lrmil_cli.evaluation.scores import (
    Cases,
    at_level,
    differences,
    macro_roc,
    majority,
    metric_table,
    per_class,
    reliability,
)


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


# ---- metrics -----------------------------------------------------------------------
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


# ---- bootstrap ---------------------------------------------------------------------
def test_interval_is_the_same_for_the_same_seed_and_any_order_of_slides():
    labels, p = make(40, 2, 0)
    patients = np.array([f"p{i // 2}" for i in range(40)])
    first = interval(METRIC_FUNCTIONS["auc"], labels, p, patients, draws=200)
    assert first == interval(METRIC_FUNCTIONS["auc"], labels, p, patients, draws=200)
    assert first.low < first.value < first.high
    turned = np.random.default_rng(1).permutation(40)
    assert interval(METRIC_FUNCTIONS["auc"], labels[turned], p[turned], patients[turned], draws=200) == first
    other = interval(METRIC_FUNCTIONS["auc"], labels, p, patients, draws=200, seed=1)
    assert (other.low, other.high) != (first.low, first.high) and other.value == first.value


def test_patients_are_drawn_whole_and_as_many_as_there_are():
    patients = np.array(["a", "b", "c", "a", "b", "a"])  # 3, 2 and 1 slides
    seen = set()
    for index in resamples(patients, 200, 0):
        times = {p: np.bincount(index, minlength=6)[patients == p] for p in "abc"}
        assert all(len(set(t)) == 1 for t in times.values())
        assert sum(t[0] for t in times.values()) == 3
        seen.add(tuple(int(t[0]) for t in times.values()))
    assert len(seen) == 10  # all ways of drawing 3 of 3 with replacement


def test_more_slides_of_the_same_patients_do_not_narrow_the_interval():
    labels, p = make(60, 2, 2)
    patients = np.array([f"p{i:02d}" for i in range(60)])
    width = lambda v: v.high - v.low  # noqa: E731
    for name in ("auc", "accuracy", "brier"):
        once = interval(METRIC_FUNCTIONS[name], labels, p, patients, draws=400)
        many = [np.repeat(a, 9, axis=0) for a in (labels, p, patients)]
        again = interval(METRIC_FUNCTIONS[name], *many, draws=400)
        assert (again.value, again.low, again.high) == pytest.approx((once.value, once.low, once.high))
        as_if_independent = interval(METRIC_FUNCTIONS[name], many[0], many[1], np.arange(540), draws=400)
        assert width(as_if_independent) == pytest.approx(width(once) / 3, rel=0.2)


def test_interval_of_the_accuracy_is_that_of_a_binomial():
    labels, p = np.ones(400, int), np.tile([0.2, 0.8], (400, 1))
    p[:100] = [0.9, 0.1]  # 300 of 400 right
    got = interval(METRIC_FUNCTIONS["accuracy"], labels, p, np.arange(400), draws=4000)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert got.value == 0.75 and (got.low, got.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.005)
    narrow = interval(METRIC_FUNCTIONS["accuracy"], labels, p, np.arange(400), draws=4000, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * half / 1.96, abs=0.005)


def test_resamples_that_lack_a_class_are_left_out_and_counted():
    labels, p = np.array([0] * 9 + [1]), make(10, 2, 3)[1]
    patients = np.arange(10)
    lacking = sum(len(set(labels[i])) < 2 for i in resamples(patients, 500, 0))
    got = interval(METRIC_FUNCTIONS["auc"], labels, p, patients, draws=500)
    assert got.undefined == lacking and 100 < lacking < 300  # (9/10)^10 = 35 %
    assert got.low is not None
    assert interval(METRIC_FUNCTIONS["auc"], labels * 0, p, patients, draws=50) == Interval(None, None, None, 50)


@pytest.mark.parametrize(
    ("labels", "patients", "draws"), [([1, 0], ["a", "a"], 100), ([1], ["a"], 100), ([1, 0], ["a", "b"], 0)]
)
def test_one_patient_or_no_draws_give_a_value_without_interval(labels, patients, draws):
    p = np.array([[0.2, 0.8], [0.7, 0.3]])[: len(labels)]
    assert interval(METRIC_FUNCTIONS["accuracy"], labels, p, patients, draws=draws) == Interval(1.0, None, None, 0)


def test_a_model_does_not_differ_from_itself_and_differences_turn_with_the_order():
    labels, p = make(50, 3, 4)
    q, patients = make(50, 3, 5)[1], np.array([f"p{i // 3}" for i in range(50)])
    for name in METRICS:
        assert paired(METRIC_FUNCTIONS[name], labels, p, p, patients, draws=100) == Interval(0.0, 0.0, 0.0, 0)
        ab, ba = (paired(METRIC_FUNCTIONS[name], labels, *pair, patients, draws=300) for pair in ((p, q), (q, p)))
        assert ab.value == pytest.approx(METRIC_FUNCTIONS[name](labels, p) - METRIC_FUNCTIONS[name](labels, q))
        assert (ab.value, ab.low, ab.high) == pytest.approx((-ba.value, -ba.high, -ba.low))


def test_pairing_sees_a_small_difference_that_two_intervals_do_not():
    labels, p = make(150, 2, 6)
    better = p.copy()
    wrong = np.flatnonzero(p.argmax(1) != labels)
    better[wrong[::2]] = p[wrong[::2]][:, ::-1]  # every second mistake put right
    patients = np.arange(150)
    difference = differences(labels, better, p, patients, metrics=["accuracy"], draws=500)["accuracy"]
    assert difference.value == pytest.approx(len(wrong[::2]) / 150) and difference.low > 0


# ---- level, folds, classes ---------------------------------------------------------
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


def test_reliability_by_hand():
    bins = reliability(np.array([0, 0, 1, 1], bool), np.array([0.1, 0.2, 0.7, 0.9]))
    assert (
        bins.n.tolist() == [2, 2] and bins.predicted == pytest.approx([0.15, 0.8]) and bins.observed.tolist() == [0, 1]
    )
    alike = reliability(np.array([0, 1, 1, 1], bool), np.full(4, 0.6))  # one value, one bin
    assert (alike.n.tolist(), alike.predicted.tolist(), alike.observed.tolist()) == ([4], [0.6], [0.75])
    assert reliability(np.array([True]), np.array([0.5])).n.tolist() == [1]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 200), seed=st.integers(0, 1000))
def test_reliability_keeps_every_case(n, seed):
    rng = np.random.default_rng(seed)
    p, hit = np.round(rng.random(n), 1), rng.random(n) < 0.5
    bins = reliability(hit, p)
    assert bins.n.sum() == n and (bins.n > 0).all()
    assert bins.predicted @ bins.n == pytest.approx(p.sum()) and bins.observed @ bins.n == pytest.approx(hit.sum())


# ---- page --------------------------------------------------------------------------
NASTY = '<script>alert("1")</script> & | `code` [x](http://evil) *b* _i_ a_b $m$ \\'
PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)


class Outline(HTMLParser):
    """Tags, attributes and text of a page; fails where tags are not nested."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_html_is_one_page_that_loads_nothing_and_shows_text_as_it_is():
    blocks = [
        Heading(NASTY),
        Text(NASTY),
        Table([NASTY, "n"], [[NASTY, "0.5 (0.1 to 0.9)"]], NASTY),
        Picture(PNG, NASTY, "x.png"),
        Heading("deep", 9),
    ]
    page = to_html(NASTY, blocks)
    outline = Outline(page)
    tags = [t for t, _ in outline.seen]
    assert not {"script", "link", "iframe", "a", "object"} & set(tags) and tags.count("h1") == 1 and "h6" in tags
    assert sum(w == NASTY for w in outline.words) == 7  # title, h1, heading, paragraph, header, cell, note
    images = [a for t, a in outline.seen if t == "img"]
    assert images[0]["src"].startswith("data:image/png;base64,") and images[0]["alt"] == NASTY
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)|url\(|@import", page)
    assert ("html", {"lang": "en"}) in outline.seen and ("meta", {"charset": "utf-8"}) in outline.seen
    assert ("td", {"class": "number"}) in outline.seen and ("th", {"scope": "row"}) in outline.seen
    assert "prefers-color-scheme: dark" in page and "@media print" in page and "overflow-x: auto" in page
    to_html("\udcff.svs", [Text("\udcff")]).encode("utf-8")  # a file name that is no UTF-8


def test_markdown_shows_text_as_it_is():
    blocks = [
        Text(NASTY),
        Text("1. no list"),
        Text("# no heading"),
        Text("- no list"),
        Text("0.5 is guessing"),
        Table([NASTY, "n"], [[NASTY, "-0.5"], ["two\nlines", "undefined"]], "# note"),
        Picture(PNG, "a picture", "my file.png"),
    ]
    text = to_markdown(NASTY, blocks)
    page = MarkdownIt().enable("table").render(text)
    outline = Outline(page)
    tags = [t for t, _ in outline.seen]
    assert not {"script", "a", "ul", "ol", "em", "strong", "code"} & set(tags), tags
    assert tags.count("h1") == 1 and tags.count("td") == 4 and tags.count("th") == 2
    assert sum(w == NASTY for w in outline.words) == 4  # title, paragraph, header, cell
    assert ("img", {"src": "my%20file.png", "alt": "a picture"}) in outline.seen
    assert "0.5 is guessing" in text and "| -0.5 |" in text and "two lines" in text
