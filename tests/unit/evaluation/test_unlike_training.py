"""Slides unlike those of training: against slow versions of the definitions, and over made cohorts."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.unlike_training import (
    AXES,
    describe_training,
    spread_of,
    training_features,
    unlike_text,
)


def made(rng, slides, width=12, shift=0.0):
    """Features of slides: each has a mean of its own, its tiles scatter around it."""
    scale = np.linspace(3, 0.3, width)
    return [rng.normal(shift, scale) + rng.normal(0, scale / 2, (rng.integers(20, 60), width)) for _ in range(slides)]


def folds(n, k=5):
    out = [np.arange(n)[f::k].tolist() for f in range(k)]
    return [([i for i in range(n) if i not in own], own) for own in out]


def test_distance_is_that_of_mahalanobis_by_ledoit_and_wolf():
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(20, 6))
    fit = LedoitWolf().fit(x)  # of 6 directions 5 stand alone, so that nothing is averaged
    assert spread_of(x).distance(new) == pytest.approx(np.sqrt(fit.mahalanobis(new) / 6), rel=1e-4)


def test_directions_beyond_those_kept_have_their_mean_variance():
    rng = np.random.default_rng(1)
    x = rng.normal(0, np.linspace(2, 0.5, AXES + 20), (400, AXES + 20))
    values, vectors = np.linalg.eigh(LedoitWolf().fit(x).covariance_)
    values[:-AXES] = values[:-AXES].mean()
    new = rng.normal(size=(9, AXES + 20)) - x.mean(0)
    expected = np.sqrt(((new @ vectors) ** 2 / values).mean(1))
    assert spread_of(x).distance(new + x.mean(0)) == pytest.approx(expected, rel=1e-4)
    still = np.ones((12, 3))
    assert spread_of(still).distance(still).tolist() == [0] * 12 and spread_of(still).distance(still + 1).min() > 1e3


def test_new_slides_of_the_cohort_are_seldom_flagged_and_others_mostly():
    """Over made cohorts: one of two bounds at 1 % each is crossed by about 1 to 3 % of new slides."""
    new, far, odd = [], [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        slides = made(rng, 200)
        about = describe_training(lambda i, slides=slides: slides[i], folds(200))
        known = training_features({"training_features": about}, "m")
        assert (known.slides, known.held_out) == (200, 200)
        new += [known.judge(s)["unlike"] for s in made(rng, 100)]
        far += [known.judge(s)["by"] for s in made(rng, 20, shift=6.0)]
        # Half of the tiles are of another kind, so placed that the mean of the slide stays where it is.
        half = [np.concatenate([s, 2 * s.mean(0) - s - 9, s + 9]) for s in made(rng, 20)]
        odd += [known.judge(s)["by"] for s in half]
    assert 0.002 < np.mean(new) < 0.035
    assert all("slide" in by for by in far) and np.mean(["tiles" in by for by in odd]) > 0.9


def test_few_slides_give_no_bound_and_damage_is_said():
    rng = np.random.default_rng(2)
    slides = made(rng, 12)
    about = describe_training(lambda i: slides[i], folds(9, 3))
    assert "9 training and 9 held-out" in about["reason"]
    assert training_features({"training_features": about}, "m") is None and training_features({}, "m") is None
    about = describe_training(lambda i: slides[i], folds(12, 3))
    # Of 12 slides the farthest is the bound: none of them is beyond it.
    known = training_features({"training_features": about}, "m")
    assert not any(known.judge(s)["unlike"] for s in slides)
    for damage in ({"slide": {**about["slide"], "axes": "AAAA"}}, {"tile_bound": "x"}, {"tile": None}):
        with pytest.raises(InputError, match="training slides is damaged"):
            training_features({"training_features": {**about, **damage}}, "m")


def test_words():
    found = {"unlike": True, "by": ["slide", "tiles"], "distance": 2.0, "bound": 1.5,
             "tiles_beyond": 0.4, "tiles_bound": 0.05}  # fmt: skip
    assert "2 away, held-out slides within 1.5; 40% of its tiles" in unlike_text(found)
    assert unlike_text({**found, "unlike": False}) is None and unlike_text(None) is None
