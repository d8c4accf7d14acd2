"""Regions of interest as QuPath and other tools export them: one test a row of what may stand in such a file."""

import gzip
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.affinity import rotate, translate
from shapely.geometry import Point, box, mapping

from lrmil_cli.errors import InputError
from lrmil_cli.qupath.frame import Frame, qupath_frame
from lrmil_cli.qupath.roi import find_roi, read_roi
from lrmil_cli.slides.region import inside_shares

SLIDE = {"id": "s", "path": "s.svs", "width": 4000, "height": 3000, "mpp": 0.5, "fingerprint": "f"}
SQUARE = [[[100, 100], [500, 100], [500, 400], [100, 400], [100, 100]]]
AREA = 400 * 300


def feature(coordinates=SQUARE, kind="Polygon", geometry=None, **properties):
    """An annotation; properties given as ... are left out."""
    own = {"objectType": "annotation", **properties}
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates, **(geometry or {})},
        "properties": {k: v for k, v in own.items() if v is not ...},
    }


@pytest.fixture
def read(tmp_path):
    """Read features (or a whole document) as a file; returns the region's area and the warnings."""

    def call(*features, classes=None, slide=SLIDE, origin="auto", raw=None):
        path = tmp_path / "roi.geojson"
        path.write_text(
            raw if raw is not None else json.dumps({"type": "FeatureCollection", "features": list(features)})
        )
        region, warnings = read_roi(path, slide, qupath_frame(slide, origin), classes)
        return region.area, warnings

    return call


# ---- forms of a file ---------------------------------------------------------------
def test_collection_array_feature_geometry_gz_and_zip_are_all_read(tmp_path):
    f = feature()
    forms = {
        "a.geojson": {"type": "FeatureCollection", "features": [f]},
        "b.json": [f],
        "c.geojson": f,
        "d.geojson": f["geometry"],
    }
    frame = Frame(0, 0, 4000, 3000)
    for name, document in forms.items():
        (tmp_path / name).write_text(
            "\ufeff" + json.dumps(document), encoding="utf-8"
        )  # a byte order mark does no harm
    (tmp_path / "e.geojson.gz").write_bytes(gzip.compress(json.dumps(f).encode()))
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr("x/one.geojson", json.dumps(f))
        archive.writestr("two.json", json.dumps([feature([[[1000, 0], [1100, 0], [1100, 100], [1000, 0]]])]))
        archive.writestr("readme.txt", "no GeoJSON")
    for name in (*forms, "e.geojson.gz", "f.zip"):
        region, warnings = read_roi(tmp_path / name, SLIDE, frame)
        assert region.area.area == AREA + (5000 if name == "f.zip" else 0) and not warnings


def test_what_is_no_geojson_is_refused_with_a_reason(tmp_path, read):
    for raw, says in (
        ("", "no GeoJSON of QuPath"),
        ('{"type":"FeatureCollection","features":[', "truncated"),
        ('{"a":1}\n{"a":2}', "one object a line"),
        ('{"kind":"prediction"}', "no GeoJSON of QuPath"),
        ('{"type":"FeatureCollection","features":[]}', "holds no objects"),
    ):
        with pytest.raises(InputError, match=says):
            read(raw=raw)
    with pytest.raises(InputError, match="no such file"):
        read_roi(tmp_path / "missing.geojson", SLIDE, qupath_frame(SLIDE))
    (tmp_path / "bad.geojson.gz").write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(InputError, match="cannot be read"):
        read_roi(tmp_path / "bad.geojson.gz", SLIDE, qupath_frame(SLIDE))


# ---- types of objects --------------------------------------------------------------
def test_annotations_and_objects_without_a_type_are_used(read):
    assert read(feature())[0].area == AREA and read(feature(objectType=...))[0].area == AREA
    assert read({**feature(objectType=...), "id": "PathAnnotationObject"})[0].area == AREA  # QuPath 0.2
    assert read(feature(objectType=..., object_type="annotation"))[0].area == AREA  # QuPath 0.3


def test_other_objects_are_skipped_with_one_warning_that_counts_them(read):
    far = [[[2000, 2000], [2100, 2000], [2100, 2100], [2000, 2000]]]
    others = [feature(far, objectType=t) for t in ("tile", "tile", "detection", "cell", "tmaCore", "root")]
    others += [
        feature(far, objectType=..., object_type="tile"),
        {**feature(far, objectType=...), "id": "PathDetectionObject"},
    ]
    area, warnings = read(feature(), *others)
    assert area.area == AREA and len(warnings) == 1
    assert all(
        part in warnings[0]
        for part in ("3 of type tile", "2 of type detection", "1 of type cell", "1 of type tmaCore", "1 of type root")
    )
    with pytest.raises(InputError, match="no polygon to use .*only annotations"):
        read(*others)


# ---- geometries --------------------------------------------------------------------
@pytest.mark.parametrize("reverse", [False, True])
def test_holes_are_excluded_whatever_the_direction_of_the_rings(read, reverse):
    hole = [[200, 200], [300, 200], [300, 300], [200, 300], [200, 200]]
    for h in (hole, hole[::-1]):
        assert read(feature([SQUARE[0][::-1] if reverse else SQUARE[0], h]))[0].area == AREA - 100 * 100
    two = [[SQUARE[0], hole], [[[1000, 1000], [1100, 1000], [1100, 1100], [1000, 1100], [1000, 1000]]]]
    assert read(feature(two, "MultiPolygon"))[0].area == AREA - 10000 + 10000


def test_an_ellipse_is_the_polygon_it_comes_as(read):
    circle = Point(1000, 1000).buffer(300, quad_segs=25)
    area, warnings = read(feature(mapping(circle)["coordinates"], geometry={"isEllipse": True}))
    assert area.equals(circle) and not warnings


@pytest.mark.parametrize(
    ("kind", "coordinates"),
    [
        ("Point", [1, 2]),
        ("MultiPoint", [[1, 2], [3, 4]]),
        ("LineString", [[1, 2], [3, 4]]),
        ("MultiLineString", [[[1, 2], [3, 4]]]),
    ],
)
def test_points_and_lines_are_skipped_by_name_and_alone_refused(read, kind, coordinates):
    area, warnings = read(feature(), feature(coordinates, kind, name="ruler"))
    assert area.area == AREA and warnings == [f"feature 2 ('ruler') is a {kind}, which has no area; skipped"]
    with pytest.raises(InputError, match=f"no polygon to use .*{kind}, which has no area"):
        read(feature(coordinates, kind))


@pytest.mark.parametrize(
    "coordinates", [[[]], [], [[[5, 5], [5, 5], [5, 5], [5, 5]]], [[[0, 0], [10, 10], [20, 20], [0, 0]]]]
)
def test_empty_outlines_are_skipped(read, coordinates):
    area, warnings = read(feature(), feature(coordinates))
    assert area.area == AREA and warnings == ["feature 2 has no area; skipped"]


def test_the_polygons_of_a_geometry_collection_are_used(read):
    parts = [
        {"type": "Polygon", "coordinates": SQUARE},
        {"type": "Point", "coordinates": [9, 9]},
        {"type": "LineString", "coordinates": [[0, 0], [9, 9]]},
    ]
    f = {"type": "Feature", "geometry": {"type": "GeometryCollection", "geometries": parts}, "properties": {}}
    assert read(f)[0].area == AREA


def test_crossing_outlines_are_repaired_and_said(read):
    bow_tie = [[[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]]
    area, warnings = read(feature(bow_tie))
    assert area.area == pytest.approx(5000) and warnings == ["feature 1 crosses itself; repaired"]
    sticking_out = [SQUARE[0], [[400, 200], [600, 200], [600, 300], [400, 300], [400, 200]]]
    area, warnings = read(feature(sticking_out))
    assert area.area == pytest.approx(AREA - 100 * 100) and len(warnings) == 1  # a hole adds nothing outside


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "Polygon", "coordinates": [[["a", 0], [1, 1], [2, 0], ["a", 0]]]},
        {"type": "Polygon"},
        {"type": "Circle", "coordinates": []},
        {"type": "Polygon", "coordinates": [[[1e999, 0], [1, 1], [2, 0], [0, 0]]]},
        None,
    ],
)
def test_geometries_that_make_no_sense_are_skipped(read, geometry):
    area, warnings = read(feature(), {"type": "Feature", "geometry": geometry, "properties": None})
    assert area.area == AREA and len(warnings) == 1 and warnings[0].startswith("feature 2")


def test_other_planes_are_skipped(read):
    flat, deep = {"plane": {"c": -1, "z": 0, "t": 0}}, {"plane": {"c": -1, "z": 2, "t": 0}}
    area, warnings = read(
        feature(geometry=flat), feature([[[2000, 0], [2100, 0], [2100, 100], [2000, 0]]], geometry=deep)
    )
    assert area.area == AREA and "plane z=2 t=0" in warnings[0]


# ---- classes and properties --------------------------------------------------------
def test_classes_in_every_form_qupath_has_written(read):
    forms = {
        "Tumor": [
            {"name": "Tumor", "color": [200, 0, 0]},
            "Tumor",
            {"name": "Tumor", "colorRGB": -1},
            {"name": "Tumor"},
        ],
        "Tumor: Positive": [{"names": ["Tumor", "Positive"], "color": [1, 2, 3]}, "Tumor: Positive"],
    }
    for name, classifications in forms.items():
        for c in classifications:
            assert read(feature(classification=c), classes=[name])[0].area == AREA
            with pytest.raises(InputError, match=f"no annotation of class Stroma; there are 1 {name}"):
                read(feature(classification=c), classes=["Stroma"])
    for c in (..., None, {}):
        assert read(feature(classification=c))[0].area == AREA
        with pytest.raises(InputError, match="there are 1 unclassified"):
            read(feature(classification=c), classes=["Tumor"])
    far = [[[2000, 2000], [2100, 2000], [2100, 2100], [2000, 2000]]]
    both = feature(classification="Tumor"), feature(far, classification="Stroma"), feature(far, classification="Other")
    assert read(*both, classes=["Tumor", "Stroma"])[0].area == AREA + 5000


def test_what_else_qupath_writes_is_ignored(read):
    raw = (
        '{"type":"FeatureCollection","features":[{"type":"Feature",'
        '"id":"171af4a4-58f3-42ce-9838-77da41614c94","geometry":{"type":"Polygon","coordinates":'
        f'{SQUARE}}},"properties":{{"objectType":"annotation","name":"Region 1","isLocked":true,"color":[1,2,3],'
        f'"measurements":{{"Area µm^2":"NaN","B":"Infinity","C":NaN}},'
        '"metadata":{"a":"1"},"childObjects":[],"metadata":{"a":"1"}}}]}'
    )
    assert read(raw=raw)[0].area == AREA
    assert read(feature(measurements=[{"name": "a", "value": 1}]))[0].area == AREA
    assert read({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": SQUARE}})[0].area == AREA
    assert read({**feature(), "properties": None})[0].area == AREA


# ---- where it lies -----------------------------------------------------------------
def test_bounds_are_added_back(read):
    slide = {**SLIDE, "bounds": [1000, 500, 2000, 2000]}
    assert read(feature(), slide=slide)[0].bounds == (1100, 600, 1500, 900)
    assert read(feature(), slide=slide, origin="full")[0].bounds == (100, 100, 500, 400)


def test_what_sticks_out_of_the_slide_is_cut_and_what_lies_outside_refused_with_the_likely_cause(read):
    assert read(feature([[[-500, -500], [200, -500], [200, 200], [-500, 200], [-500, -500]]]))[0].area == 200 * 200
    outside = feature([[[5000, 5000], [6000, 5000], [6000, 6000], [5000, 5000]]])
    with pytest.raises(
        InputError,
        match=r"wholly outside slide s \(4000 x 3000 px, regions from x=5000 y=5000\); is the file of another slide",
    ):
        read(outside)
    slide = {**SLIDE, "bounds": [1000, 500, 2000, 2000]}
    with pytest.raises(InputError, match="moved by the slide's bounds .*--origin full"):
        read(feature([[[3500, 100], [3900, 100], [3900, 400], [3500, 100]]]), slide=slide)
    with pytest.raises(InputError, match="--origin bounds"):
        read(outside, slide=slide, origin="full")


def test_the_digest_tells_regions_apart_and_files_that_say_the_same_alike(tmp_path):
    def digest(name, document, min_inside=0.5, origin=Frame(0, 0, 4000, 3000)):
        (tmp_path / name).write_text(json.dumps(document))
        return read_roi(tmp_path / name, SLIDE, origin, None, min_inside)[0].digest

    first = digest("a.geojson", [feature()])
    turned = [[*SQUARE[0][2:4], *SQUARE[0][0:3]]]
    assert first == digest("b.geojson", feature(turned, name="else")) == digest("c.json", feature([SQUARE[0][::-1]]))
    assert (
        len(
            {
                first,
                digest("a.geojson", [feature()], 0.4),
                digest("a.geojson", [feature()], origin=Frame(1, 0, 1, 1)),
                digest("a.geojson", [feature([[*SQUARE[0][:3], [101, 400], SQUARE[0][0]]])]),
            }
        )
        == 4
    )


def test_one_file_for_each_slide_of_a_folder(tmp_path):
    (tmp_path / "a.geojson").write_text("")
    (tmp_path / "b.roi.geojson.gz").write_text("")
    assert find_roi(tmp_path, "a").name == "a.geojson" and find_roi(tmp_path, "b").name == "b.roi.geojson.gz"
    assert find_roi(tmp_path / "a.geojson", "b").name == "a.geojson"
    with pytest.raises(InputError, match="no c.geojson"):
        find_roi(tmp_path, "c")
    (tmp_path / "a.json").write_text("")
    with pytest.raises(InputError, match="a.geojson and a.json"):
        find_roi(tmp_path, "a")


# ---- shares of tiles ---------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.floats(0, 180), st.floats(-60, 60), st.floats(-60, 60), st.floats(17, 40))
def test_shares_are_areas_of_intersections_tile_by_tile(angle, dx, dy, step):
    area = translate(rotate(Point(100, 100).buffer(70, quad_segs=6).difference(box(80, 80, 130, 110)), angle), dx, dy)
    x, y = (a.ravel() * step for a in np.meshgrid(np.arange(12), np.arange(12)))
    expected = [box(a, b, a + step, b + step).intersection(area).area / step**2 for a, b in zip(x, y)]
    np.testing.assert_allclose(inside_shares(area, x, y, np.full(144, step), np.full(144, step)), expected, atol=1e-9)


def test_shares_of_an_outline_of_very_many_points():
    angle = np.linspace(0, 2 * np.pi, 50_000, endpoint=False)
    outline = np.stack([np.cos(angle), np.sin(angle)], 1) * (40_000 + 500 * np.sin(angle[:, None] * 900)) + 50_000
    from shapely import Polygon

    area = Polygon(outline)
    x, y = (a.ravel() for a in np.meshgrid(np.arange(0, 100_000, 1024), np.arange(0, 100_000, 1024)))
    shares = inside_shares(area, x, y, np.full(x.size, 1024), np.full(x.size, 1024))
    assert (shares * 1024**2).sum() == pytest.approx(area.area, rel=1e-9)


def test_objects_under_others_are_regions_too_and_parts_without_a_type_are_skipped_with_a_warning(read):
    child = feature([[[500, 500], [600, 500], [600, 600], [500, 600], [500, 500]]], classification="Tumor")
    area, warnings = read(feature(childObjects=[child]))
    assert area.area == AREA + 10_000 and not warnings
    assert read(feature(childObjects=[child]), classes=["Tumor"])[0].area == 10_000
    untyped = {k: v for k, v in child.items() if k != "type"}
    area, warnings = read(raw=json.dumps([feature(), untyped]))
    assert area.area == AREA and "1 parts say no type that QuPath knows; skipped" in warnings[0]


def test_what_qupath_reads_of_lenient_json_is_read_and_told(read):
    area, warnings = read(raw="// drawn\n" + json.dumps(feature()).replace('"', "'"))
    assert area.area == AREA and "not JSON by the standard" in warnings[0]
