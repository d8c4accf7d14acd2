"""The contract of QuPath's reader: one bad feature and nothing is imported, so every rule is checked here."""

import gzip
import hashlib
import json
import tracemalloc
import uuid

import geojson as geojson_library
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box, shape

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.qupath.files import check_name, read_provenance, write_chunks
from lrmil_cli.qupath.frame import parse_image_size, qupath_frame
from lrmil_cli.qupath.geojson import NAMESPACE, RAW, SCALED, Style, check_style, make_document, output_paths
from lrmil_cli.qupath.regions import COLORMAPS, band_colours, choose_band
from lrmil_cli.slides.grid import make_grid, tile_boxes


def table(attention, cols=5, slide_mpp=0.5, width=3000, height=2000, bounds=None, mpp=2.0, cells=None):
    """An attention table: tiles in raster order of ``cols`` columns, or of the grid ``cells`` (col, row)."""
    grid = make_grid(width, height, slide_mpp, mpp, 128)
    n = np.arange(len(attention))
    col, row = (n % cols, n // cols) if cells is None else np.array(cells).T
    attention = np.asarray(attention, float)
    percentile = 100 * np.argsort(np.argsort(attention, kind="stable")) / max(1, len(attention) - 1)
    rows = pd.DataFrame({**tile_boxes(grid, col, row), "attention": attention, "percentile": percentile})
    slide = {"id": "s", "path": "dir/s.svs", "width": width, "height": height, "mpp": slide_mpp, "fingerprint": "f"}
    if bounds:
        slide["bounds"] = bounds
    return {"slide": slide, "history": [{"command": "predict", "digest": "d"}], "prediction": {"predicted": "x"}}, rows


def text(header, rows, kind="tiles", **options):
    return "".join(make_document(header, rows, kind, **options).pieces)


def check_contract(text, width, height):
    """What QuPath's importer needs of every feature (qupath/README 1)."""

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


# ---- tiles -------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=20), st.floats(0.2, 0.6), st.integers(1, 5)
)
def test_any_attention_table_meets_the_contract(values, slide_mpp, cols):
    header, rows = table(np.array(values), cols, slide_mpp, width=9000, height=30000)
    doc = check_contract(text(header, rows), 9000, 30000)
    assert len(doc["features"]) == len(values)
    got = [f["properties"]["measurements"][RAW] for f in doc["features"]]
    np.testing.assert_allclose(got, values, rtol=1e-6)
    if max(values) > 0:
        assert max(f["properties"]["measurements"][SCALED] for f in doc["features"]) == 1


def test_edge_tiles_are_cut_at_the_slide():
    header, rows = table(np.ones(6) / 6, cols=6, width=3000, height=500)
    doc = check_contract(text(header, rows), 3000, 500)
    assert doc["features"][5]["geometry"]["coordinates"][0][2] == [3000, 500]


def test_ids_are_uuid5_of_slide_model_and_box_and_provenance_is_on_top():
    header, rows = table(np.array([0.2, 0.8]))
    a, b = json.loads(text(header, rows)), json.loads(text(header, rows))
    assert a["features"] == b["features"]
    assert a["features"][1]["id"] == str(uuid.uuid5(NAMESPACE, "f|d|512|0|512|512"))
    about = a["lrmil"]
    assert (about["slide"], about["offset"], about["image"], about["origin"]) == (
        "s.svs",
        [0, 0],
        [3000, 2000],
        "qupath",
    )
    assert [h["command"] for h in about["history"]] == ["predict", "export-geojson"] and "null" not in json.dumps(about)
    other = text({**header, "history": [{"digest": "another model"}]}, rows)
    assert {f["id"] for f in json.loads(other)["features"]}.isdisjoint(f["id"] for f in a["features"])


def test_class_scores_become_measurements():
    header, rows = table(np.array([0.5, 0.25]))
    rows['score_100 % sure "x"'] = [1.5, -2.0]
    doc = check_contract(text(header, rows), 3000, 2000)
    assert doc["features"][1]["properties"]["measurements"] == {
        SCALED: 0.5,
        RAW: 0.25,
        "LRMIL attention percentile": 0,
        'LRMIL score 100 % sure "x"': -2.0,
    }


def test_values_and_tiles_that_qupath_would_refuse_are_refused_first():
    header, rows = table(np.array([0.5, np.nan]))
    with pytest.raises(InputError, match="not finite"):
        text(header, rows)
    header, rows = table(np.array([0.5, 0.5]))
    with pytest.raises(InputError, match="overlap"):
        text(header, rows.assign(x=[0, 100]))
    with pytest.raises(InputError, match="off the slide"):
        text(header, rows.assign(x=[0, 5000]))
    with pytest.raises(InputError, match="no tiles"):
        text(header, rows.iloc[:0])


def test_flat_and_very_many_tiles_are_said():
    header, rows = table(np.full(4, 0.25))
    assert "one flat colour" in make_document(header, rows, "tiles").warnings[0]
    assert not make_document(*table([0.5]), "tiles").warnings
    many = pd.DataFrame(
        {
            "x": np.arange(200_001) * 4,
            "y": 0,
            "width": 4,
            "height": 4,
            "attention": np.arange(200_001.0),
            "percentile": 0.0,
        }
    )
    header["slide"].update(width=800_004, height=4)
    assert "QuPath slow" in make_document(header, many, "tiles").warnings[0]


def test_many_tiles_stay_in_little_memory(tmp_path):
    """30,000 tiles are 10 MB of text and would be some 75 MB of dicts."""
    n = np.arange(30_000)
    header, _ = table([1.0])
    header["slide"].update(width=400 * 512, height=75 * 512)
    rows = pd.DataFrame(
        {
            "x": n % 400 * 512,
            "y": n // 400 * 512,
            "width": 512,
            "height": 512,
            "attention": (n % 977 + 1.0) / 1e8,
            "percentile": n / 300,
        }
    )
    tracemalloc.start()
    write_chunks(tmp_path / "big.geojson.gz", make_document(header, rows, "tiles").pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6, f"{peak / 1e6:.0f} MB"
    whole = gzip.decompress((tmp_path / "big.geojson.gz").read_bytes())
    assert whole.count(b'"objectType":"tile"') == 30_000 and len(whole) > 9e6


# ---- coordinates -------------------------------------------------------------------
def test_bounds_are_subtracted_as_qupath_crops():
    header, rows = table(np.ones(4) / 4, cols=2)
    rows["x"] += 1000
    header["slide"]["bounds"] = [900, 0, 2000, 1500]
    cropped = check_contract(text(header, rows), 2000, 1500)
    assert cropped["lrmil"]["offset"] == [900, 0] and cropped["lrmil"]["image"] == [2000, 1500]
    assert cropped["features"][0]["geometry"]["coordinates"][0][0] == [100, 0]
    full = json.loads(text(header, rows, origin="full"))
    assert full["features"][0]["geometry"]["coordinates"][0][0] == [1000, 0] and full["lrmil"]["offset"] == [0, 0]
    assert json.loads(text(header, rows, image_size=(3000, 2000)))["lrmil"]["offset"] == [0, 0]
    assert json.loads(text(header, rows, image_size=(2000, 1500)))["lrmil"]["offset"] == [900, 0]
    assert [f["id"] for f in full["features"]] == [f["id"] for f in cropped["features"]]  # the same tiles of the slide


def test_tiles_across_the_bounds_are_cut_and_those_outside_are_left_out_and_said():
    header, rows = table(np.arange(1, 6) / 15, cols=5)
    header["slide"]["bounds"] = [600, 100, 1000, 300]  # tile 0 ends at 512, tile 1 begins there, tile 4 begins at 2048
    document = make_document(header, rows, "tiles")
    doc = check_contract("".join(document.pieces), 1000, 300)
    corners = [f["geometry"]["coordinates"][0] for f in doc["features"]]
    assert [(c[0], c[2]) for c in corners] == [([0, 0], [424, 300]), ([424, 0], [936, 300]), ([936, 0], [1000, 300])]
    assert document.warnings[0].startswith("2 tiles lie outside")
    assert (
        doc["features"][0]["properties"]["measurements"][SCALED] == 0.4
    )  # scaled by the slide's highest, left out or not
    header["slide"]["bounds"] = [0, 1500, 100, 100]
    with pytest.raises(InputError, match="all tiles lie outside"):
        make_document(header, rows, "tiles")


def test_frames():
    plain = {"id": "s", "width": 3000, "height": 2000}
    mirax = {**plain, "bounds": [900, 10, 2000, 1500]}
    assert qupath_frame(plain).offset == [0, 0] and qupath_frame(mirax).offset == [900, 10]
    assert qupath_frame(mirax, "full").offset == [0, 0] and qupath_frame(mirax, "bounds").offset == [900, 10]
    assert qupath_frame(mirax, "auto", (3000, 2000)).offset == [0, 0] and qupath_frame(
        mirax, "auto", (2000, 1500)
    ).offset == [900, 10]
    with pytest.raises(InputError, match="no OpenSlide bounds"):
        qupath_frame(plain, "bounds")
    with pytest.raises(UsageError, match="auto, bounds or full"):
        qupath_frame(plain, "corner")
    for slide, origin, size in (
        (mirax, "auto", (2000, 3000)),
        (mirax, "full", (2000, 1500)),
        (mirax, "bounds", (3000, 2000)),
        (plain, "auto", (1, 1)),
    ):
        with pytest.raises(InputError, match="--image-size"):
            qupath_frame(slide, origin, size)
    assert parse_image_size("100x200") == (100, 200) and parse_image_size(None) is None
    for bad in ("100", "axb", "1x2x3", "-1x2"):
        with pytest.raises(UsageError):
            parse_image_size(bad)


# ---- regions -----------------------------------------------------------------------
def test_a_ring_of_tiles_is_one_polygon_with_a_hole_and_few_corners():
    """Eight tiles around one that is lower: an outline of four corners, a hole of four."""
    header, rows = table([9, 9, 9, 9, 1, 9, 9, 9, 9], cols=3)
    doc = json.loads(text(header, rows, "regions", style=Style("regions", threshold=0.5)))
    (f,) = doc["features"]
    shell, hole = f["geometry"]["coordinates"]
    assert sorted(map(tuple, shell[1:])) == [(0, 0), (0, 1536), (1536, 0), (1536, 1536)]
    assert sorted(map(tuple, hole[1:])) == [(512, 512), (512, 1024), (1024, 512), (1024, 1024)]
    p = f["properties"]
    assert (
        p["objectType"] == "annotation"
        and p["isLocked"] is True
        and p["classification"]["name"] == "LRMIL attention at least 0.5"
    )
    assert p["measurements"] == {
        "LRMIL region attention share": 72.0,
        "LRMIL region highest (0-1)": 1.0,
        "LRMIL region tiles": 8,
    }


def test_regions_of_the_top_share_by_hand():
    header, rows = table([5, 4, 1, 1, 1, 1, 1, 1, 1, 3], cols=5)
    doc = json.loads(text(header, rows, "regions", style=Style("regions", top=0.3)))
    assert [f["properties"]["measurements"]["LRMIL region tiles"] for f in doc["features"]] == [2, 1]
    assert shape(doc["features"][0]["geometry"]).equals(box(0, 0, 1024, 512))
    assert shape(doc["features"][1]["geometry"]).equals(box(2048, 512, 2560, 1024))
    # ties with the last tile counted belong to it
    doc = json.loads(text(*table([2, 1, 1, 1], cols=4), "regions", style=Style("regions", top=0.5)))
    assert doc["features"][0]["properties"]["measurements"]["LRMIL region tiles"] == 4


def test_tiles_that_touch_at_a_corner_stay_two_polygons_and_slivers_go():
    header, rows = table([9, 8], cells=[(0, 0), (1, 1)])
    assert len(json.loads(text(header, rows, "regions", style=Style("regions", top=1.0)))["features"]) == 2
    header, rows = table(
        [9, 8, 7], cells=[(0, 0), (2, 0), (5, 3)], width=2570, height=2000
    )  # the last tile has 10 of 512 px
    doc = json.loads(text(header, rows, "regions", style=Style("regions", top=1.0)))
    assert [f["geometry"]["coordinates"][0][0] for f in doc["features"]] != [] and len(doc["features"]) == 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.integers(1, 9), st.floats(0.21, 0.6))
def test_bands_are_valid_apart_and_cover_their_tiles_exactly(values, cols, slide_mpp):
    from scipy.stats import rankdata

    header, rows = table(np.array(values) + 1.0, cols, slide_mpp, width=20_000, height=200_000)
    rows["percentile"] = (rankdata(values) - 1) / (len(values) - 1) * 100
    doc = json.loads(
        text(header, rows, "regions", style=Style("regions")) if (rows["percentile"] > 50).any() else '{"features": []}'
    )
    shapes = [shape(f["geometry"]) for f in doc["features"]]
    assert all(s.is_valid and s.geom_type == "Polygon" for s in shapes)
    assert all(geojson_library.loads(json.dumps(f)).is_valid for f in doc["features"])
    assert len({f["id"] for f in doc["features"]}) == len(shapes)
    by_class = {}
    for f, s in zip(doc["features"], shapes):
        by_class.setdefault(f["properties"]["classification"]["name"], []).append(s)
    for name, low, high in (
        ("LRMIL attention 50-75 %", 50, 75),
        ("LRMIL attention 75-90 %", 75, 90),
        ("LRMIL attention 90-100 %", 90, 100),
    ):
        own = rows[(rows["percentile"] > low) & (rows["percentile"] <= high)]
        tiles = [box(x, y, x + w, y + h) for x, y, w, h in own[["x", "y", "width", "height"]].to_numpy()]
        from shapely import unary_union

        assert unary_union(by_class.get(name, [])).symmetric_difference(unary_union(tiles)).area == 0
    assert unary_union(shapes).area == pytest.approx(sum(s.area for s in shapes))
    for s in shapes:  # no point in the middle of an edge
        for ring in (s.exterior, *s.interiors):
            p = np.array(ring.coords)[:-1]
            a, b = p - np.roll(p, 1, 0), np.roll(p, -1, 0) - p
            assert (a[:, 0] * b[:, 1] != a[:, 1] * b[:, 0]).all()


def test_regions_are_geojson_and_their_properties_go_through_its_package_untouched():
    """A part with a hole and one without; and what the package says of a ring that is open."""
    header, rows = table([9, 9, 9, 9, 1, 9, 9, 9, 9, 2, 3, 4, 5, 6, 7], cols=3, height=3000)
    document = text(header, rows, "regions", style=Style("regions", threshold=0.5))
    read, plain = geojson_library.loads(document), json.loads(document)
    assert read.is_valid and isinstance(read, geojson_library.FeatureCollection)
    assert [len(f["geometry"]["coordinates"]) for f in plain["features"]] == [2, 1]
    for f, g in zip(read["features"], plain["features"]):
        assert isinstance(f, geojson_library.Feature) and isinstance(f["geometry"], geojson_library.Polygon)
        assert json.loads(geojson_library.dumps(f)) == g and f["properties"] == g["properties"]
    plain["features"][0]["geometry"]["coordinates"][0].pop()
    assert not geojson_library.loads(json.dumps(plain)).is_valid


def test_regions_are_cropped_with_the_slide():
    header, rows = table([1.0], cells=[(1, 1)])
    header["slide"]["bounds"] = [500, 600, 1000, 1000]
    (f,) = json.loads(text(header, rows, "regions", style=Style("regions", top=1.0)))["features"]
    assert shape(f["geometry"]).equals(box(12, 0, 524, 424))


def test_colours_and_classes():
    for name in COLORMAPS:
        colours = band_colours(3, name)
        assert band_colours(1, name) == [colours[2]]
        assert all(isinstance(v, int) and 0 <= v <= 255 for c in colours for v in c)
        lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colours]
        assert lightness == sorted(lightness) and lightness[2] - lightness[0] > 30  # told apart without any hue
    assert choose_band(0.05, None).name == "LRMIL attention top 5 %"


def test_options_that_do_not_fit():
    for style, says in (
        (Style("squares"), "tiles, regions, both"),
        (Style("tiles", top=0.1), "--style regions"),
        (Style("regions", top=1.5), "at most"),
        (Style("regions", top=0.1, threshold=0.1), "not both"),
        (Style("regions", threshold=0.0), "over 0"),
        (Style(colormap="jet"), "colour-blind"),
    ):
        with pytest.raises(UsageError, match=says):
            check_style(style)
    assert output_paths("a.heatmap.geojson.gz", "both") == {
        "tiles": "a.heatmap.geojson.gz",
        "regions": "a.regions.geojson.gz",
    }
    assert output_paths("d.x/A.JSON", "both")["regions"] == "d.x/A.regions.JSON" and output_paths("-", "regions") == {
        "regions": "-"
    }
    with pytest.raises(UsageError, match="two files"):
        output_paths("-", "both")


# ---- files -------------------------------------------------------------------------
def test_names():
    for good in ("a.geojson", "a.heatmap.geojson.gz", "A.GEOJSON", "a.json"):
        check_name(good)
    for bad in ("a.gz", "a.txt", "a", "a.geojson.zip"):
        with pytest.raises(UsageError, match="QuPath opens"):
            check_name(bad)


def test_gzipped_files_are_whole_repeatable_and_carry_their_provenance(tmp_path):
    header, rows = table(np.linspace(0.1, 1, 12))
    document = make_document(header, rows, "tiles")
    pieces = list(document.pieces)
    for name in ("a.geojson", "a.geojson.gz", "b.geojson.gz"):
        write_chunks(tmp_path / name, pieces)
        assert read_provenance(tmp_path / name) == document.about
    packed = (tmp_path / "a.geojson.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "a.geojson").read_bytes() == "".join(pieces).encode()
    assert hashlib.sha256(packed).digest() == hashlib.sha256((tmp_path / "b.geojson.gz").read_bytes()).digest()
    (tmp_path / "other.geojson").write_text('{"type":"FeatureCollection","features":[]}')
    with pytest.raises(InputError, match="not a GeoJSON file made by lrmil"):
        read_provenance(tmp_path / "other.geojson")


def test_a_mistake_in_the_making_leaves_no_file_and_nothing_on_stdout(tmp_path, capsys):
    def pieces():
        yield '{"type":'
        raise InputError("broken")

    for name in (tmp_path / "a.geojson", tmp_path / "a.geojson.gz", "-"):
        with pytest.raises(InputError):
            write_chunks(name, pieces())
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""
