"""The painted slides: their lesion is where they say, the same seed gives the same bytes."""

import json

import geojson
import numpy as np

from lrmil_cli.demo.paint import RECIPE_NAMES, render_slide, render_tiles
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
        cells = lambda mask: [grey[y * 4 : y * 4 + 32, x * 4 : x * 4 + 32] for y, x in np.argwhere(mask)[::97]]  # noqa: B023
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
