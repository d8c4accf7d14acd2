"""``lrmil demo``: the chain on its own slides, and figures that can be checked against its own files."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from shapely.geometry import Point, shape

from lrmil_cli.files.tables import read_table
from tests.unit.qupath.test_geojson import check_contract


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    from lrmil_cli.app import run

    folder = tmp_path_factory.mktemp("demo")
    assert run(["demo", str(folder), "--slides", "24", "--seed", "0", "--quiet"]) == 0
    return folder, json.loads((folder / "summary.json").read_text())


def test_summary_has_what_it_promises(demo):
    folder, s = demo
    assert {"teacher", "lr_only", "distilled", "attention_auc", "tiles", "seconds", "seed"} <= set(s)
    assert s["seed"] == 0 and s["slides"] == 24 and s["tiles"]["hr"] > 6 * s["tiles"]["lr"]
    for name in ("teacher", "lr_only", "distilled"):
        assert 0 <= s[name]["accuracy"] <= 1 and 0 <= s[name]["auc"] <= 1
    assert s["teacher"]["auc"] >= 0.8  # at 20x the cue is plain


def test_the_three_are_judged_on_the_same_unseen_slides(demo):
    folder, s = demo
    manifest = pd.read_csv(folder / "cohort" / "slides.csv")
    test = sorted(manifest.loc[manifest["split"] == "test", "slide_id"])
    for name, file in (
        ("teacher", "teacher/predictions.csv"),
        ("lr_only", "model.lr-only.predictions.csv"),
        ("distilled", "model.predictions.csv"),
    ):
        _, rows = read_table(folder / file, "predictions")
        assert sorted(rows["slide_id"]) == test
        assert s[name]["accuracy"] == pytest.approx((rows["predicted"] == rows["label"]).mean())
        pairs = [
            (p, n)
            for p in rows.loc[rows["label"] == "tumor", "prob_tumor"]
            for n in rows.loc[rows["label"] == "normal", "prob_tumor"]
        ]
        assert s[name]["auc"] == pytest.approx(np.mean([(p > n) + 0.5 * (p == n) for p, n in pairs]))


def test_attention_auc_is_what_points_in_polygons_say(demo):
    """The same figure by sampling points, without the code that computed it."""
    folder, s = demo
    manifest = pd.read_csv(folder / "cohort" / "slides.csv")
    hits, scores = [], []
    for slide_id in manifest.loc[(manifest["split"] == "test") & (manifest["label"] == "tumor"), "slide_id"]:
        lesion = [
            shape(f["geometry"])
            for f in json.loads((folder / "cohort" / "truth" / f"{slide_id}.geojson").read_text())["features"]
        ]
        rows = pd.read_csv(folder / "results" / f"{slide_id}.attention.csv", comment="#")
        for _, r in rows.iterrows():
            grid = [
                Point(r.x + r.width * (i + 0.5) / 24, r.y + r.height * (j + 0.5) / 24)
                for i in range(24)
                for j in range(24)
            ]
            hits.append(np.mean([any(g.contains(p) for g in lesion) for p in grid]) >= 0.25)
            scores.append(r.attention)
    hits, scores = np.array(hits), np.array(scores)
    wins = [(a > b) + 0.5 * (a == b) for a in scores[hits] for b in scores[~hits]]
    assert s["attention_auc"] == pytest.approx(np.mean(wins), abs=0.03)  # a tile or two may lie on the threshold


def test_the_demo_is_a_run(demo, lrmil):
    folder, s = demo
    said = lrmil("run", "--config", folder / "run.toml", "-o", folder, "--epochs", "99")
    assert said.code == 2 and "other settings (epochs)" in said.err
    log = (folder / "log.txt").read_text(encoding="utf-8")
    names = ("tile-lr", "tile-hr", "match", "train-teacher", "distill-encoder", "distill-student", "predict")
    assert s["seconds"].keys() == {*names, "export-geojson", "report", "total"}
    assert all(f"step {i} of 9: {name}" in log for i, name in enumerate(names, 1))


def test_demo_leaves_an_overlay_for_qupath_and_a_picture(demo):
    folder, _ = demo
    (picture,) = folder.glob("*.overlay.png")
    heatmap = folder / "results" / picture.name.replace(".overlay.png", ".heatmap.geojson.gz")
    check_contract(gzip.decompress(heatmap.read_bytes()).decode(), 2560, 2560)
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 50_000
