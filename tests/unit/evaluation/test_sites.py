"""Figures by site and by column, and the probe that asks whether features tell the site."""

import numpy as np
import pytest

from lrmil_cli.evaluation.metrics import METRIC_FUNCTIONS
from lrmil_cli.evaluation.scores import Cases
from lrmil_cli.evaluation.site_probe import probe, probes
from lrmil_cli.evaluation.subgroups import MOST, subgroups


def test_groups_are_judged_as_if_they_were_alone():
    rng = np.random.default_rng(0)
    n = 120
    labels, p = rng.integers(0, 2, n), rng.dirichlet([1, 1], n)
    site, patients = rng.choice(["a", "b", ""], n, p=[0.5, 0.4, 0.1]), rng.integers(0, 40, n).astype(str)
    sets = p > 0.3
    found = subgroups(Cases(labels, p, patients), site.tolist(), ["x", "y"], sets=sets, draws=50)
    assert [g.name for g in found] == ["a", "b", ""]
    for g in found:
        own = site == g.name
        assert (g.n, g.patients) == (own.sum(), len(set(patients[own]))) and sum(g.counts) == g.n
        for name, interval in g.metrics.items():
            assert interval.value == pytest.approx(METRIC_FUNCTIONS[name](labels[own], p[own]))
            assert interval.low <= interval.value <= interval.high
        assert g.covered == pytest.approx(np.mean([sets[i, labels[i]] for i in np.flatnonzero(own)]))
    many = subgroups(Cases(labels, p, patients), [str(i % 40) for i in range(n)], ["x", "y"], draws=0)
    assert len(many) == MOST + 1 and many[-1].name == f"{40 - MOST} others" and sum(g.n for g in many) == n


def made(rng, patients=60, strength=3.0):
    """Slides of patients of three sites; the site moves the features, the label does a little."""
    who = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    site, label = (who % 3), rng.integers(0, 2, patients)[who]
    x = rng.normal(size=(len(who), 30))
    x[:, 0] += strength * (site == 0)
    x[:, 1] += strength * (site == 1)
    x[:, 2] += 1.5 * label
    # What all slides of a patient share and no other patient has must not help.
    x[:, 5:] += 3 * rng.normal(size=(patients, 25))[who]
    return x, np.array(["A", "B", "C"])[site], np.array(["n", "t"])[label], who.astype(str)


def test_the_probe_finds_a_site_that_is_there_and_none_that_is_not():
    x, site, label, who = made(np.random.default_rng(1))
    found = probes(x, site.tolist(), label.tolist(), who.tolist())
    assert found["site"]["auc"]["value"] > 0.8 and found["site"]["auc"]["low"] > 0.7 and found["site"]["classes"] == 3
    assert 0.5 < found["label"]["auc"]["value"] < 0.95
    values = []
    for seed in range(6):
        x, site, _, who = made(np.random.default_rng(seed), strength=0.0)
        values.append(probe(x, site.tolist(), who.tolist())["auc"]["value"])
    assert abs(np.mean(values) - 0.5) < 0.06  # patients are not torn: their own looks tell nothing


def test_small_sites_are_left_out_and_one_site_is_none():
    x, site, label, who = made(np.random.default_rng(2))
    few = np.where((site == "C") & (who.astype(int) > 12), "A", site)
    found = probe(x, few.tolist(), who.tolist())
    assert found["classes"] == 2 and found["slides"] == (few != "C").sum()
    assert "two are needed" in probe(x[:4], ["A", "B", "A", "B"], ["1", "2", "3", "4"])["reason"]
    one = [None if s == "B" else "A" for s in site]
    assert probes(x, one, label.tolist(), who.tolist()) is None
