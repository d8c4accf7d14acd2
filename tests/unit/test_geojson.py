"""The contract of QuPath's reader: one bad feature and nothing is imported, so every rule is checked here."""

import json
import uuid

import geojson as geojson_library
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import shape

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.qupath.geojson import RAW, SCALED, check_name, heatmap, is_constant, origin_offset, parse_image_size
from lrmil_cli.slides.grid import make_grid, tile_boxes


def table(attention, cols=5, slide_mpp=0.5, width=3000, height=2000, bounds=None, mpp=2.0):
    grid = make_grid(width, height, slide_mpp, mpp, 128)
    n = np.arange(len(attention))
    rows = pd.DataFrame({**tile_boxes(grid, n % cols, n // cols), "attention": attention, "percentile": 50.0})
    slide = {"id": "s", "path": "dir/s.svs", "width": width, "height": height, "mpp": slide_mpp, "fingerprint": "f"}
    if bounds:
        slide["bounds"] = bounds
    return {"slide": slide, "history": [{"digest": "d"}], "prediction": {"predicted": "x"}}, rows


def check_contract(text, width, height):
    """Section 4 of QuPath's rules: what its importer needs of every feature."""
    def no_constant(name):
        raise AssertionError(f"{name} in JSON")

    doc = json.loads(text, parse_constant=no_constant)
    assert doc["type"] == "FeatureCollection" and "null" not in json.dumps(doc["features"])
    names, ids, areas = None, set(), []
    for f in doc["features"]:
        assert f["type"] == "Feature" and str(uuid.UUID(f["id"])) == f["id"] and f["id"] not in ids
        ids.add(f["id"])
        (ring,) = f["geometry"]["coordinates"]
        assert f["geometry"]["type"] == "Polygon" and len(ring) == 5 and ring[0] == ring[-1]
        assert all(isinstance(v, int) for p in ring for v in p)
        xs, ys = {p[0] for p in ring}, {p[1] for p in ring}
        assert len(xs) == len(ys) == 2 and min(xs) >= 0 and min(ys) >= 0 and max(xs) <= width and max(ys) <= height
        assert all(a[0] == b[0] or a[1] == b[1] for a, b in zip(ring, ring[1:]))
        assert f["properties"]["objectType"] == "tile" and set(f["properties"]) == {"objectType", "measurements"}
        measured = f["properties"]["measurements"]
        assert list(measured)[0] == SCALED and (names is None or list(measured) == names)
        names = list(measured)
        assert all(isinstance(v, (int, float)) and np.isfinite(v) for v in measured.values())
        areas.append(shape(f["geometry"]))
    from shapely import unary_union

    assert unary_union(areas).area == pytest.approx(sum(a.area for a in areas))  # no two tiles overlap
    assert geojson_library.loads(text).is_valid
    return doc


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=20), st.floats(0.2, 0.6), st.integers(1, 5))
def test_any_attention_table_meets_the_contract(values, slide_mpp, cols):
    header, rows = table(np.array(values), cols, slide_mpp, width=9000, height=30000)
    doc = check_contract(heatmap(header, rows), 9000, 30000)
    assert len(doc["features"]) == len(values)
    got = [f["properties"]["measurements"][RAW] for f in doc["features"]]
    np.testing.assert_allclose(got, values, rtol=1e-6)
    if max(values) > 0:
        assert max(f["properties"]["measurements"][SCALED] for f in doc["features"]) == 1


def test_edge_tiles_are_cut_at_the_slide():
    header, rows = table(np.ones(6) / 6, cols=6, width=3000, height=500)
    doc = check_contract(heatmap(header, rows), 3000, 500)
    assert doc["features"][5]["geometry"]["coordinates"][0][2] == [3000, 500]


def test_ids_are_the_same_every_time_and_provenance_is_on_top():
    header, rows = table(np.array([0.2, 0.8]))
    a, b = heatmap(header, rows), heatmap(header, rows)
    assert a == b and json.loads(a)["lrmil"]["slide"] == "s.svs" and json.loads(a)["lrmil"]["offset"] == [0, 0]


def test_class_scores_become_measurements():
    header, rows = table(np.array([0.5, 0.5]))
    rows["score_tumor"] = [1.5, -2.0]
    doc = check_contract(heatmap(header, rows), 3000, 2000)
    assert doc["features"][1]["properties"]["measurements"]["LRMIL score tumor"] == -2.0


def test_bounds_are_subtracted_as_qupath_crops():
    header, rows = table(np.ones(4) / 4, cols=2, bounds=[0, 0, 2000, 1500])
    rows["x"] += 1000
    header["slide"]["bounds"] = [900, 0, 2000, 1500]
    cropped = json.loads(heatmap(header, rows))
    assert cropped["lrmil"]["offset"] == [900, 0]
    assert cropped["features"][0]["geometry"]["coordinates"][0][0] == [100, 0]
    full = json.loads(heatmap(header, rows, origin="full"))
    assert full["features"][0]["geometry"]["coordinates"][0][0] == [1000, 0]
    assert json.loads(heatmap(header, rows, image_size=(3000, 2000)))["lrmil"]["offset"] == [0, 0]
    with pytest.raises(InputError, match="--image-size"):
        heatmap(header, rows, image_size=(1, 1))


def test_bounds_that_are_not_there():
    with pytest.raises(InputError, match="no OpenSlide bounds"):
        origin_offset({"id": "s", "width": 1, "height": 1}, "bounds")
    with pytest.raises(UsageError, match="auto, bounds or full"):
        origin_offset({}, "corner")


def test_values_and_tiles_that_qupath_would_refuse_are_refused_first():
    header, rows = table(np.array([0.5, np.nan]))
    with pytest.raises(InputError, match="not finite"):
        heatmap(header, rows)
    header, rows = table(np.array([0.5, 0.5]))
    with pytest.raises(InputError, match="overlap"):
        heatmap(header, rows.assign(x=[0, 100]))
    with pytest.raises(InputError, match="off the slide"):
        heatmap(header, rows.assign(x=[0, 5000]))
    with pytest.raises(InputError, match="no tiles"):
        heatmap(header, rows.iloc[:0])


def test_names_sizes_and_flat_maps():
    for good in ("a.geojson", "a.heatmap.geojson.gz", "A.GEOJSON", "a.json"):
        check_name(good)
    for bad in ("a.gz", "a.txt", "a"):
        with pytest.raises(UsageError, match="QuPath opens"):
            check_name(bad)
    assert parse_image_size("100x200") == (100, 200)
    with pytest.raises(UsageError):
        parse_image_size("100")
    assert is_constant(table(np.full(3, 0.1))[1]) and not is_constant(table(np.array([0.1]))[1])
