"""The validator against files broken on purpose, one for each thing QuPath's reader minds or passes over."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box

from lrmil_cli.errors import InputError
from lrmil_cli.qupath.frame import qupath_frame
from lrmil_cli.qupath.roi import read_roi
from lrmil_cli.qupath.rules import inspect, overlapping, require_good, say
from tests.unit.qupath.test_geojson import Style, table, text


def square(x=0, y=0, side=100, **properties):
    """A tile as QuPath wants it, but for ``properties``; those that are ... are left out."""
    own = {"objectType": "tile", "measurements": {"A": 0.5 + x / 1e4}, **properties}
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {k: v for k, v in own.items() if v is not ...},
    }


def shaped(kind, coordinates, **more):
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates, **more},
        "properties": {"objectType": "annotation"},
    }


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


RING = [[0, 0], [9, 0], [9, 9], [0, 0]]
UUID = "6d4a1f0e-4e0b-5a53-9c63-6a0f3c1b7a10"

GOOD = {
    "a collection": collection(square(), square(200)),
    "an array": [square(), square(100)],
    "one feature": square(),
    "a bare geometry": {"type": "Polygon", "coordinates": [RING]},
    "unknown keys": {**collection(square()), "lrmil": {"x": None}},
    "ids": collection({**square(), "id": UUID}, {**square(200), "id": UUID.replace("6d", "6e")}),
    "a class": collection(square(classification={"name": "Tumor", "color": [200, 0, 0]})),
    "a class as text": collection(square(classification="Tumor")),
    "no class": collection(square(classification=None)),
    "a derived class": collection(square(classification={"names": ["Tumor", "Positive"], "color": [1, 2, 3]})),
    "a class of before 0.4": collection(square(classification={"name": "Tumor", "colorRGB": -3670016})),
    "measurements of before 0.4": collection(square(measurements=[{"name": "A", "value": 1}])),
    "a hole": collection(
        shaped("Polygon", [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]], [[1, 1], [2, 1], [2, 2], [1, 1]]])
    ),
    "two parts": collection(shaped("MultiPolygon", [[RING], [[[20, 20], [29, 20], [29, 29], [20, 20]]]])),
    "a point and a line": collection(shaped("Point", [1, 2]), shaped("LineString", [[1, 2], [3, 4]])),
    "no properties": {k: v for k, v in square().items() if k != "properties"},
}

FATAL = {
    "a type at the top that is null": ({"type": None, "features": [square()]}, "type at the top"),
    "a feature that is null": (collection(square(), None), "not a JSON object"),
    "id null": ({**square(), "id": None}, "id is null"),
    "geometry null": ({**square(), "geometry": None}, "no geometry"),
    "no geometry": ({"type": "Feature", "properties": {}}, "no geometry"),
    "an unknown geometry": (shaped("Circle", [1, 2]), "geometry of type Circle"),
    "an unclosed ring": (shaped("Polygon", [RING[:3]]), "not closed"),
    "a hole that is not closed": (shaped("Polygon", [RING, RING[:3]]), "not closed"),
    "a ring too few": (shaped("Polygon", RING), "coordinates that are not"),
    "words for a number": (shaped("Polygon", [[["zero", 0], *RING[1:]]]), "coordinates that are not"),
    "null for a number": (shaped("Polygon", [[[None, 0], *RING[1:]]]), "coordinates that are not"),
    "no coordinates": (shaped("Polygon", None), "coordinates that are not"),
    "a GeometryCollection": (
        {**square(), "geometry": {"type": "GeometryCollection", "geometries": []}},
        "0.6 and later",
    ),
    "one part": (shaped("MultiPolygon", [[RING]]), "0.5 refuses"),
    "a ring that crosses itself": (shaped("Polygon", [[[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]]), "self-intersection"),
    "a hole outside": (
        shaped("Polygon", [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]], [[20, 20], [21, 20], [21, 21], [20, 20]]]),
        "hole lies outside",
    ),
    "parts that overlap": (shaped("MultiPolygon", [[RING], [[[5, 2], [15, 2], [15, 9], [5, 2]]]]), "invalid outline"),
    "properties null": ({**square(), "properties": None}, "properties are null"),
    "objectType null": (square(objectType=None), "objectType is null"),
    "name null": (square(name=None), "name is null"),
    "a hex colour": (square(color="#ff0000"), "color is not three"),
    "a class without colour": (square(classification={"name": "X"}), "without name or color"),
    "a class without name": (square(classification={"color": [1, 2, 3]}), "without name or color"),
    "a hex class colour": (square(classification={"name": "X", "color": "#ff0000"}), "class colour"),
    "one number for a class colour": (square(classification={"name": "X", "color": -255}), "class colour"),
    "a class colour of two numbers": (square(classification={"name": "X", "color": [255, 0]}), "class colour"),
    "a class that is a list": (square(classification=["X"]), "neither text nor"),
    "text for a measurement": (square(measurements={"A": "high"}), "a measurement that is text"),
    "a list of numbers for measurements": (square(measurements=[1, 2]), "not of name and value"),
}

SILENT = {
    "no known type at the top": ({"features": [square()]}, "finds no objects"),
    "text": ("x", "finds no objects"),
    "null": (None, "finds no objects"),
    "features that are no list": ({"type": "FeatureCollection", "features": {}}, "no objects"),
    "a class colour over 255": (square(classification={"name": "X", "color": [256, 0, 0]}), "another colour"),
    "an object of type root": ({**square(), "id": "PathRootObject", "properties": {}}, "cannot add"),
    "another plane": (shaped("Polygon", [RING], plane={"z": 1}), "another plane"),
    "no objects": (collection(), "no objects"),
    "an id that is no UUID": ({**square(), "id": "tile-1"}, "no UUID"),
    "an id twice": (collection({**square(), "id": UUID}, {**square(200), "id": UUID.upper()}), "stands twice"),
    "Tile": (square(objectType="Tile"), "'Tile' is unknown"),
    "TILE": (square(objectType="TILE"), "'TILE' is unknown"),
    "an empty outline": (shaped("Polygon", [[]]), "empty outline"),
    "no area": (shaped("Polygon", [[[0, 0], [1, 1], [2, 2], [0, 0]]]), "without area"),
    "a tile that is no rectangle": (
        {**square(), "geometry": {"type": "Polygon", "coordinates": [RING]}},
        "not an upright rectangle",
    ),
    "NaN": (square(measurements={"A": float("nan")}), "not a finite number"),
    "NaN as text": (square(measurements={"A": "NaN"}), "not a finite number"),
    "a measurement null": (square(measurements={"A": None}), "drops it"),
    "a measurement true": (square(measurements={"A": True}), "drops it"),
    "a tile without the measurement": (collection(square(), square(200, measurements={})), "that others have"),
    "overlapping tiles": (collection(square(), square(99)), "overlap"),
    "Class probability": (square(measurements={"Class probability": 1}), "no map"),
    "a class with a colon": (square(classification={"name": "a: b", "color": [1, 2, 3]}), "colon"),
    "a blank class name": (square(classification=" x"), "blanks"),
    "fractions for a class colour": (square(classification={"name": "X", "color": [1.0, 0.5, 0.0]}), "black"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_qupath_takes_is_good(name):
    v = inspect(json.loads(json.dumps(GOOD[name])))
    assert v.opens and not v.silent, (v.fatal, v.silent)
    require_good(GOOD[name], None, "x")


@pytest.mark.parametrize("name", FATAL)
def test_what_makes_qupath_import_nothing_is_fatal(name):
    document, says = FATAL[name]
    v = inspect(document)
    assert not v.opens and says in say(v.fatal)[0], v
    with pytest.raises(InputError, match="x: QuPath would not show this"):
        require_good(document, None, "x")


@pytest.mark.parametrize("name", SILENT)
def test_what_qupath_shows_otherwise_is_silent_but_told(name):
    document, says = SILENT[name]
    v = inspect(document)
    assert v.opens and any(says in s for s in say(v.silent)), v
    with pytest.raises(InputError):
        require_good(document, None, "x")


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 300)
    | st.floats()
    | st.sampled_from(["", "tile", "Polygon", "objectType", UUID]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "name", "color", "objectType", "z"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value, path=()):
    """The paths of all nodes of a JSON document."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_a_document_with_anything_anywhere_is_judged_and_never_crashes(tmp_path_factory, data):
    document = {"top": json.loads(json.dumps(data.draw(st.sampled_from(list(GOOD.values())))))}
    *way, last = data.draw(st.sampled_from([p for p in places(document) if p]))
    node = document
    for key in way:
        node = node[key]
    node[last] = data.draw(ANY_JSON)
    v = inspect(document["top"], (1000, 1000))
    assert isinstance(v.opens, bool) and all(say(found) or not found for found in (v.fatal, v.silent, v.notes))
    path = tmp_path_factory.getbasetemp() / "anything.geojson"
    path.write_text(json.dumps(document["top"]))
    slide = {"id": "s", "width": 1000, "height": 1000}
    try:
        region, _ = read_roi(path, slide, qupath_frame(slide))
        assert 0 < region.area.area <= 1e6
    except InputError as e:
        assert "\n" not in str(e)


def test_findings_are_counted_and_name_the_first_feature():
    v = inspect(collection(square(), square(200, name=None), square(400, name=None), square(600, name=None)))
    assert say(v.fatal) == ["feature 2: name is null or no text (and 2 more)"]


def test_the_summary_of_a_document():
    header, rows = table(np.linspace(0.1, 1, 20))
    tiles, regions = (
        json.loads(text(header, rows)),
        json.loads(text(header, rows, "regions", style=Style("regions", top=0.1))),
    )
    v = inspect([*tiles["features"], *regions["features"]], (3000, 2000))
    assert (
        v.opens
        and not v.silent
        and v.objects == {"tile": 20, "annotation": 1}
        and v.classes == {"LRMIL attention top 10 %": 1}
    )
    assert v.measurements["LRMIL attention (0-1)"] == [20, 0.1, 1]
    assert any("image of 2000 x 2000" in s for s in inspect(tiles, (2000, 2000)).silent)
    flat = inspect(json.loads(text(*table(np.full(4, 0.25)))))
    assert any("one flat colour" in n for n in flat.notes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=12
    )
)
def test_overlap_is_what_pairs_of_rectangles_say(quads):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in quads])
    pairs = {
        (i, j) for i in range(len(boxes)) for j in range(i) if box(*boxes[i]).intersection(box(*boxes[j])).area > 0
    }
    found = overlapping(boxes)
    assert (found is None) == (not pairs)
    assert found is None or (max(found), min(found)) in pairs
