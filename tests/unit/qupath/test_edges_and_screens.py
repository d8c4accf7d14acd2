"""Regions at the edge of the slide, and maps of models that read some tiles only."""

import json

import numpy as np
import pytest
from shapely.geometry import box, shape

from lrmil_cli.errors import InputError
from lrmil_cli.files.tables import read_table
from lrmil_cli.qupath.geojson import Style, read_tiles
from lrmil_cli.qupath.pictures import verdict
from tests.conftest import SHARED
from tests.unit.qupath.test_geojson import check_contract, table, text


# ---- the edge of the slide -------------------------------------------------------------
@pytest.mark.parametrize("left", [1, 100, 511, 512])
@pytest.mark.parametrize("style", [Style("regions", top=0.05), Style("regions", threshold=0.5), Style("regions")])
def test_the_hottest_tile_is_outlined_however_little_the_edge_leaves_of_it(left, style):
    values = np.full(20, 0.01)
    values[9] = 0.8
    header, rows = table(values, 5, width=2048 + left, height=2048)
    doc = json.loads(text(header, rows, "regions", style=style))
    hottest = [f for f in doc["features"] if f["properties"]["measurements"]["LRMIL region highest (0-1)"] == 1]
    assert any(shape(f["geometry"]).covers(box(2048, 512, 2048 + left, 1024)) for f in hottest)
    if style.bands()[0].by != "percentile":
        assert len(doc["features"]) == 1 and doc["features"][0]["geometry"]["coordinates"][0][0] == [2048 + left, 512]


def test_where_no_region_is_the_reason_is_the_true_one():
    header, rows = table([5, 1], cells=[(0, 0), (3, 0)], bounds=[1536, 0, 512, 512])
    with pytest.raises(InputError, match=r"that QuPath shows .* scaled attention of 0.5, the highest has 0.2"):
        text(header, rows, "regions", style=Style("regions", threshold=0.5))
    header, rows = table([1, 1, 1], cols=3)
    with pytest.raises(InputError, match="all tiles have the same attention"):
        text(header, rows.assign(percentile=50.0), "regions", style=Style("regions"))
    header, rows = table([1, 2, 3, 4], cols=4, bounds=[0, 0, 512, 512])
    with pytest.raises(InputError, match="all tiles|outline a share by --top"):
        text(header, rows, "regions", style=Style("regions"))


# ---- screen maps -----------------------------------------------------------------------
def screen_table():
    """Six candidates, of which the screener kept two: nothing is known of the attention of the others."""
    header, rows = table([0, 0.7, 0, 0.3, 0, 0], cols=3)
    read = rows["attention"] > 0
    rows["percentile"] = np.where(read, 100 * (rows["attention"] > 0.5), 0)
    return header, rows.assign(kept=read.astype(float), screening=[0.1, 0.9, 0.2, 0.8, 0.3, 0.1])


def test_a_screen_map_says_what_was_kept_and_nothing_of_attention_where_nobody_looked():
    header, rows = screen_table()
    doc = check_contract(text(header, rows), 3000, 2000, "LRMIL kept (0-1)")
    assert [list(f["properties"]["measurements"].items()) for f in doc["features"]] == [
        [("LRMIL kept (0-1)", kept), ("LRMIL screening (0-1)", score)]
        for kept, score in zip(rows["kept"], rows["screening"])
    ]
    main = json.loads(text(header, rows[["x", "y", "width", "height", "attention", "percentile"]][rows["kept"] > 0]))
    assert {f["id"] for f in main["features"]}.isdisjoint(f["id"] for f in doc["features"])
    same = {json.dumps(f["geometry"]) for f in main["features"]} & {json.dumps(f["geometry"]) for f in doc["features"]}
    assert len(same) == 2


def test_regions_of_a_screen_map_are_of_tiles_that_were_read():
    header, rows = screen_table()
    doc = json.loads(text(header, rows, "regions", style=Style("regions", top=1.0)))
    drawn = [shape(f["geometry"]) for f in doc["features"]]
    assert sorted(s.bounds for s in drawn) == [(0, 512, 512, 1024), (512, 0, 1024, 512)]
    with pytest.raises(InputError, match="no tile of the screen table was read"):
        text(header, rows.assign(kept=0.0), "regions", style=Style("regions"))
    assert len(read_tiles(rows)) == 2 and len(read_tiles(rows.drop(columns="kept"))) == 6


@pytest.mark.skipif(not (SHARED / "data/qupath/sliver").exists(), reason="no table with a hot tile at the slide's edge")
def test_a_table_as_predict_wrote_it_whose_hottest_tile_the_edge_clips():
    header, rows = read_table(SHARED / "data/qupath/sliver/sliver.attention.csv", "attention")
    doc = json.loads(text(header, rows, "regions", style=Style("regions", threshold=0.5)))
    assert [shape(f["geometry"]).bounds for f in doc["features"]] == [(2048, 512, 2148, 1024)]


def test_a_picture_says_that_an_answer_abstains():
    answer = {"predicted": "tumor", "probabilities": {"normal": 0.004, "tumor": 0.996}}
    assert verdict(answer) == "predicted: tumor, probability 1.00"
    assert verdict({**answer, "uncertain": "unlike the training slides"}) == "uncertain: tumor, probability 1.00"
