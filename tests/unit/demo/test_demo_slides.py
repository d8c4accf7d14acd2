"""The painted slides: their lesion is where they say, the same seed gives the same bytes."""

import json

import geojson
import numpy as np
import pytest

from lrmil_cli.demo import slides
from lrmil_cli.demo.paint import NESTED, layout, render_slide
from lrmil_cli.demo.pretraining_tiles import RECIPE_NAMES, render_tiles
from lrmil_cli.demo.severity import plan_severity
from lrmil_cli.demo.slides import lesion_geojson, make_slide, plan_cohort
from lrmil_cli.slides.slide import open_slide


def test_same_seed_same_bytes_and_another_seed_another_slide(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_slide(tmp_path / f"{name}.svs", seed=seed, positive=True, size_px=1024)
    a, b, c = ((tmp_path / f"{n}.svs").read_bytes() for n in "abc")
    assert a == b != c


def test_slides_open_with_scale_pyramid_and_outlines_inside(tmp_path):
    outlines = make_slide(tmp_path / "s.svs", seed=1, positive=True, size_px=1536)
    with open_slide(tmp_path / "s.svs") as slide:
        assert (slide.width, slide.height, slide.mpp, slide.vendor) == (1536, 1536, 0.5, "aperio")
        assert [l.downsample for l in slide.levels] == [1, 4, 16]
    assert outlines and all(((0 <= o) & (o <= 1536)).all() and (o[0] == o[-1]).all() for o in outlines)
    assert make_slide(tmp_path / "n.svs", seed=1, positive=False, size_px=1536) == []
    text = lesion_geojson(outlines)
    doc = json.loads(text)
    assert geojson.loads(text).is_valid and len(doc["features"]) == len(outlines)
    assert doc["features"][0]["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "Lesion", "color": [200, 0, 0]},
    }


def test_the_lesion_is_told_by_texture_at_20x_and_not_by_colour():
    inside, outside, shade = [], [], []
    for seed in range(3):
        rgb, lesion = render_slide(seed, True, 1536)
        grey = rgb.mean(2)
        cells = lambda m: [grey[y * 4 : y * 4 + 32, x * 4 : x * 4 + 32] for y, x in np.argwhere(m)[::97]]  # noqa: B023
        dark = [p for p in cells(lesion) if p.mean() < 150]
        benign = [p for p in cells(~lesion) if p.mean() < 150]
        inside += [p.std() for p in dark]
        outside += [p.std() for p in benign]
        shade.append(np.mean([p.mean() for p in dark]) - np.mean([p.mean() for p in benign]))
    assert np.mean(inside) > 1.1 * np.mean(outside)
    assert abs(np.mean(shade)) < 12


def test_tiles_for_pretraining_come_with_their_recipe():
    rng = np.random.default_rng(0)
    for shrink in (1.0, 2.3):
        tiles, recipes = render_tiles(rng, shrink)
        assert (
            tiles.shape[1:] == (128, 128, 3)
            and recipes.shape == (len(tiles), len(RECIPE_NAMES))
            and np.isfinite(recipes).all()
        )


def test_cohorts_split_by_patient_and_label():
    rows = plan_cohort(60, 0)
    of = {}
    for r in rows:
        of.setdefault(r["patient_id"], set()).add(r["split"])
    assert all(len(s) == 1 for s in of.values())
    for split, n in (("train", 30), ("val", 10), ("test", 20)):
        own = [r["label"] for r in rows if r["split"] == split]
        assert len(own) == n and abs(own.count("tumor") - n / 2) <= 1


@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
def test_a_severity_is_the_lesions_share_of_as_many_nests_everywhere(share):
    tissue, lesion = [], []
    for seed in range(3):
        lay, own = layout(np.random.default_rng([seed, 1]), 384, share)
        tissue.append((lay.tissue > 0.5).sum())
        lesion.append(own.sum())
        assert (lay.inside[own] > 0.5).all() and (lay.inside[~own] < 0.5).all()
    assert np.array(lesion) / tissue == pytest.approx(share * NESTED, rel=0.05, abs=0.002)


def test_patients_of_a_severity_and_what_it_sets():
    for seed in range(3):
        rows, numbers = plan_severity(60, seed, "survival"), plan_severity(60, seed, "regression")
        assert len(rows) == 60 and [r["share"] for r in rows] == [r["share"] for r in numbers]  # the same pixels
        of = {}
        for r in rows:
            of.setdefault(r["patient_id"], set()).add((r["split"], r["time"], r["event"], r["share"]))
        assert all(len(own) == 1 for own in of.values()) and len(of) == 50
        parts = {s: [r for r in rows if r["split"] == s] for s in ("train", "val", "test")}
        assert [len(p) / 60 for p in parts.values()] == pytest.approx([0.5, 0.17, 0.33], abs=0.06)
        assert all(0.35 < np.mean([r["share"] for r in p]) < 0.65 for p in parts.values())
        assert sum(r["event"] for r in parts["train"]) >= 10 and 0.25 < 1 - np.mean([r["event"] for r in rows]) < 0.45
        assert all(r["severity"] == pytest.approx(100 * NESTED * r["share"], abs=0.051) for r in numbers)
        time, event, share = (np.array([r[k] for r in rows], float) for k in ("time", "event", "share"))
        pairs = [(share[i] > share[j]) for i in range(60) for j in range(60) if event[i] and time[i] < time[j]]
        assert 0.87 < np.mean(pairs) < 0.97


def test_a_cohort_keeps_its_severity_out_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "_cohort_slide", lambda *a: None)
    text = slides.make_cohort(tmp_path, 18, 0, 1, "survival").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "slide,slide_id,time,event,patient_id,split"
    truth = (tmp_path / "truth" / "severity.csv").read_text(encoding="utf-8").splitlines()
    assert truth[0] == "slide_id,patient_id,share" and len(truth) == 19
