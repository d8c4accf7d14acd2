"""`lrmil info` against what QuPath's own reader does: which versions open a file, and how many objects of each type."""

import csv
import gzip
import json
import zipfile

import pytest

from lrmil_cli.commands.info_files import describe
from lrmil_cli.errors import InputError
from tests.conftest import SHARED

VERDICTS = SHARED / "data" / "qupath" / "verdicts"
ALL, NONE, OLD, NEW = ["0.5", "0.6", "0.7"], [], ["0.5"], ["0.6", "0.7"]
BOX = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
FAR = [[200, 0], [300, 0], [300, 100], [200, 100], [200, 0]]
BOW = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
TRIANGLE = [[0, 0], [10, 0], [10, 10], [0, 0]]


def judged(path):
    """Versions that open a file, and the objects found."""
    try:
        about = describe(str(path), None)
    except InputError:
        return NONE, {}
    return about["opens_in"], about["objects"]


@pytest.mark.skipif(not VERDICTS.exists(), reason="no folder of files that QuPath's reader has judged")
def test_every_file_that_qupath_has_judged_is_judged_alike():
    differ = {}
    with open(VERDICTS / "verdicts.csv", newline="") as fh:
        for row in csv.DictReader(fh):
            opens_in, objects = judged(VERDICTS / "files" / row["file"])
            expected = [
                short for short in ALL for full in row if full.startswith(f"opens_{short}") and row[full] == "1"
            ]
            types = json.loads(row["types_0.7.0"] or "{}")
            roots = int(row["cannot_be_added_0.7.0"])
            if opens_in != expected or ("0.7" in expected and (objects, objects.get("root", 0)) != (types, roots)):
                differ[row["file"]] = (expected, opens_in, types, objects)
    assert not differ


# ---- one small file for each rule ----------------------------------------------------
def feature(geometry=None, kind="annotation", **more):
    geometry = {"type": "Polygon", "coordinates": [BOX]} if geometry is None else geometry
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": kind, **more}}


def shape(kind, coordinates, **more):
    return feature({"type": kind, "coordinates": coordinates, **more})


def polygon(*rings, **more):
    return shape("Polygon", list(rings), **more)


def classed(classification):
    return feature(classification=classification)


def tile(measurements):
    return feature(kind="tile", measurements=measurements)


ONE = {"annotation": 1}
FEATURES = {
    # geometry
    "a closed ring of three points": (polygon([[0, 0], [9, 0], [0, 0]]), ALL),
    "a ring of one point": (polygon([[0, 0]]), NONE),
    "a ring that nearly closes": (polygon([[0, 0], [9, 0], [9, 9], [0.001, 0]]), NONE),
    "a bow tie": (polygon(BOW), OLD),
    "an ellipse like a bow tie": (polygon(BOW, isEllipse=True), OLD),
    "a spike": (polygon([[0, 0], [10, 0], [20, 0], [10, 0], [10, 10], [0, 0]]), ALL),
    "a hole outside": (polygon(BOX, [[x + 300, y] for x, y in TRIANGLE]), OLD),
    "a hole that is the shell": (polygon(BOX, BOX), ALL),
    "holes in nothing": (polygon([], BOX), NONE),
    "an empty ring": (polygon([]), ALL),
    "numbers as text": (polygon([[str(x), str(y)] for x, y in TRIANGLE]), ALL),
    "words": (polygon([["a", "b"]] * 4), NONE),
    "four numbers a position": (polygon([[x, y, 0, 1] for x, y in BOX]), ALL),
    "a height that is null": (shape("Point", [1, 2, None]), NONE),
    "one part": (shape("MultiPolygon", [[BOX]]), NEW),
    "parts side by side": (shape("MultiPolygon", [[BOX], [[[x + 100, y] for x, y in BOX]]]), ALL),
    "a part in a part": (shape("MultiPolygon", [[BOX], [[[x + 20, y + 10] for x, y in TRIANGLE]]]), ALL),
    "parts over each other": (shape("MultiPolygon", [[BOX], [[[x + 50, y + 50] for x, y in BOX]]]), OLD),
    "a part that crosses itself": (shape("MultiPolygon", [[FAR], [BOW]]), OLD),
    "a line of one point": (shape("LineString", [[1, 2]]), NONE),
    "a line that stands still": (shape("LineString", [[1, 2], [1, 2]]), ALL),
    "lines, one of one point": (shape("MultiLineString", [[[1, 2]], [[5, 6], [7, 8]]]), NONE),
    "no points": (shape("MultiPoint", []), ALL),
    "a point of one number": (shape("Point", [1]), NONE),
    "a collection": (
        feature({"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 1]}]}),
        OLD,
    ),
    "a collection of nothing known": (feature({"type": "GeometryCollection", "coordinates": [BOX]}), NONE),
    "very far": (polygon([[0, 0], [1e300, 0], [1e300, 1e300], [0, 1e300], [0, 0]]), NEW),
    "isEllipse null": (polygon(BOX, isEllipse=None), NONE),
    "isEllipse as text": (polygon(BOX, isEllipse="true"), ALL),
    "plane null": (polygon(BOX, plane=None), NONE),
    "plane a number": (polygon(BOX, plane=0), NONE),
    "plane with z alone": (polygon(BOX, plane={"z": 1}), ALL),
    "plane with an unknown key": (polygon(BOX, plane={"z": 0, "slice": 0}), NONE),
    "plane with z null": (polygon(BOX, plane={"z": None}), NONE),
    "nucleus null": ({**feature(), "nucleusGeometry": None}, NONE),
    "nucleus empty": ({**feature(), "nucleusGeometry": {}}, ALL),
    "nucleus not closed": ({**feature(), "nucleusGeometry": {"type": "Polygon", "coordinates": [BOX[:3]]}}, NONE),
    # class
    "class empty": (classed({}), ALL),
    "class with an empty name": (classed({"name": "", "color": [1, 2, 3]}), NONE),
    "class with a blank name": (classed({"name": " ", "color": [1, 2, 3]}), NONE),
    "class with a line break": (classed({"name": "A\nB", "color": [1, 2, 3]}), NONE),
    "class with blanks around": (classed({"name": " X ", "color": [1, 2, 3]}), ALL),
    "class with a true name": (classed({"name": True, "color": [1, 2, 3]}), ALL),
    "class with a list for a name": (classed({"name": ["X"], "color": [1, 2, 3]}), NONE),
    "class of no names": (classed({"names": [], "color": [1, 2, 3]}), ALL),
    "class of an empty name": (classed({"names": ["A", ""], "color": [1, 2, 3]}), NONE),
    "class of null": (classed({"names": ["A", None], "color": [1, 2, 3]}), NONE),
    "class of a name with a colon": (classed({"names": ["A: C"], "color": [1, 2, 3]}), NONE),
    "class of text for names": (classed({"names": "A", "color": [1, 2, 3]}), NONE),
    "class as empty text": (classed(""), NONE),
    "class as a colon": (classed(":"), ALL),
    "class with four colours": (classed({"name": "X", "color": [1, 2, 3, 4]}), ALL),
    "class with two colours": (classed({"name": "X", "color": [1, 2]}), NONE),
    "class without colour": (classed({"name": "X", "color": None}), ALL),
    "class with colours as text": (classed({"name": "X", "color": ["1", "2", "3"]}), ALL),
    "class with colours that are null": (classed({"name": "X", "color": [None] * 3}), NONE),
    "old class without name": (classed({"colorRGB": -5}), ALL),
    "old class with a list": (classed({"name": "X", "colorRGB": [1, 2, 3]}), NONE),
    "old class with a parent of text": (classed({"name": "X", "colorRGB": -5, "parentClass": "P"}), NONE),
    "old class with a parent": (classed({"name": "X", "parentClass": {"name": "P"}}), ALL),
    # the rest
    "colour null": (feature(color=None), ALL),
    "colour of two": (feature(color=[1, 2]), ALL),
    "colour out of range": (feature(color=[300, -5, 1000]), ALL),
    "colour true": (feature(color=True), NONE),
    "colour as text": (feature(color="255"), ALL),
    "colour in hex": (feature(color="#ff0000"), NONE),
    "name a list of one": (feature(name=["a"]), ALL),
    "name a list of none": (feature(name=[]), NONE),
    "id a list of two": ({**feature(), "id": ["a", "b"]}, NONE),
    "a child that is a number": (feature(childObjects=[5]), NONE),
    "a child with a bad class": (feature(childObjects=[classed({"name": "X"})]), NONE),
    "children that are no list": (feature(childObjects={}), ALL),
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_judged_as_by_qupath(tmp_path, name):
    own, opens_in = FEATURES[name]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [own]}))
    assert judged(path) == (opens_in, ONE) or (opens_in == NONE and judged(path)[0] == NONE)


MEASUREMENTS = {
    "text for a number": ({"A": "1.5"}, ALL),
    "text with blanks": ({"A": " 1 "}, ALL),
    "text for not a number": ({"A": "nan"}, ALL),
    "text for infinity": ({"A": "-INF"}, ALL),
    "other text for infinity": ({"A": "INFINITY"}, NONE),
    "hexadecimal": ({"A": "0x10"}, NONE),
    "empty text": ({"A": ""}, NONE),
    "null": ({"A": None}, ALL),
    "true": ({"A": True}, ALL),
    "a number for all": (5, ALL),
    "of before 0.4": ([{"name": "A", "value": "1.5"}], ALL),
    "of before 0.4, in a list": ([{"name": 5, "value": [1]}], ALL),
    "of before 0.4, nan": ([{"name": "A", "value": "nan"}], NONE),
    "of before 0.4, null": ([{"name": "A", "value": None}], NONE),
    "of before 0.4, no value": ([{"name": "A"}], NONE),
    "of before 0.4, no name": ([{"name": None, "value": 1}], NONE),
    "of before 0.4, a number": ([1], NONE),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_are_judged_as_by_qupath(tmp_path, name):
    own, opens_in = MEASUREMENTS[name]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(tile(own)))
    assert judged(path)[0] == opens_in
    if opens_in:
        assert judged(path)[1] == {"tile": 1}


TYPES = {
    **{kind: kind for kind in ("tile", "detection", "cell", "tmaCore", "root", "annotation")},
    "tma_core": "tmaCore",
    "PathTileObject": "tile",
    "PathRootObject": "root",
    "unknown": "annotation",
    "Tile": "annotation",
    "": "annotation",
}


@pytest.mark.parametrize("said", TYPES)
def test_types_are_those_of_qupath(tmp_path, said):
    path = tmp_path / "a.geojson"
    nested = feature(childObjects=[feature(kind=said), feature(kind=["cell"])])
    path.write_text(json.dumps([nested, {"geometry": {}, "properties": {}}, None, [feature(kind="tile")]]))
    expected = {"annotation": 1, "cell": 1}
    for kind in (TYPES[said], "tile"):
        expected[kind] = expected.get(kind, 0) + 1
    assert judged(path) == (ALL, expected)
    about = describe(str(path), None)
    assert any("2 parts of the list" in note for note in about["notes"])
    assert (TYPES[said] == "root") == any("cannot add" in text for text in about["silent"])


GOOD = json.dumps({"type": "FeatureCollection", "features": [feature()]})
TEXTS = {
    "a comment": ("// made by hand\n" + GOOD + "# end", ALL),
    "single quotes": (GOOD.replace('"', "'"), ALL),
    "no quotes": (GOOD.replace('"type"', "type").replace('"annotation"', "annotation"), ALL),
    "a semicolon and an equals sign": (GOOD.replace(", ", "; ").replace(": ", "= "), ALL),
    "an arrow": (GOOD.replace(": ", " => "), ALL),
    "a mark of the byte order": ("\ufeff" + GOOD, ALL),
    "a tab in a text": (json.dumps(feature(name="a?b")).replace("?", "\t"), ALL),
    "a key twice": ('{"type": "X", ' + GOOD[1:], ALL),
    "a comma too many": (GOOD.replace("]}", ",]}"), NONE),
    "a comma too many in an object": (GOOD[:-1] + ",}", NONE),
    "more behind the end": (GOOD + " xyz", NONE),
    "two documents": (GOOD + GOOD, NONE),
    "cut off": (GOOD[:-20], NONE),
    "no JSON": ("<html></html>", NONE),
    "lists in lists": ("[" * 300 + "]" * 300, OLD),
    "lists in lists, fewer": ("[" * 255 + "]" * 255, ALL),
    "nothing": (" \n", ALL),
    "another document": ('{"images": []}', ALL),
    "a type that is null": ('{"type": null}', NONE),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_read_as_qupath_reads_them(tmp_path, name):
    own, opens_in = TEXTS[name]
    path = tmp_path / "a.geojson"
    path.write_text(own, encoding="utf-8")
    empty = name in ("lists in lists", "lists in lists, fewer", "nothing", "another document")
    assert judged(path)[0] == opens_in
    assert not opens_in or judged(path)[1] == ({} if empty else ONE)


def test_letters_that_are_not_utf_8_are_a_note(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_bytes(json.dumps(feature(name="Drüse"), ensure_ascii=False).encode("latin-1"))
    assert judged(path) == (ALL, ONE)
    assert "not UTF-8" in describe(str(path), None)["notes"][0]


def test_a_file_is_opened_by_its_name(tmp_path):
    packed = gzip.compress(GOOD.encode())
    for name, data, opens_in in (
        ("a.geojson.gz", packed, ALL),
        ("A.GeoJson.GZ", packed, ALL),
        ("a.geojson", packed, NONE),
        ("b.geojson.gz", GOOD.encode(), NONE),
        ("a.zip", GOOD.encode(), NONE),
    ):
        (tmp_path / name).write_bytes(data)
        assert judged(tmp_path / name)[0] == opens_in, name
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.geojson", GOOD)
        archive.writestr("b.geojson.gz", packed)
        archive.writestr("bad.geojson", GOOD[:-20])
        archive.writestr("refused.json", json.dumps(feature(name=None)))
        archive.writestr("__MACOSX/._a.geojson", "\0\0")
    assert judged(tmp_path / "b.zip") == (ALL, {"annotation": 2})
    notes = " ".join(describe(str(tmp_path / "b.zip"), None)["notes"])
    assert "bad.geojson: not a JSON document" in notes and "refused.json: feature 1: name is null" in notes
    (tmp_path / "b.zip").rename(tmp_path / "b.geojson")
    assert judged(tmp_path / "b.geojson")[0] == NONE
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("a.txt", GOOD)
    assert judged(tmp_path / "c.zip") == (ALL, {})


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (shape("MultiPolygon", [[BOX]]), "does not import it in every version (it does in 0.6, 0.7)"),
        (feature(name=None), "imports nothing of it: feature 1: name is null"),
        ({"type": "FeatureCollection", "features": []}, "imports nothing of it: it holds no objects"),
    ],
)
def test_what_not_every_version_imports_ends_with_exit_code_3(tmp_path, lrmil, document, says):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(document))
    said = lrmil("info", path)
    assert said.code == 3 and says in said.err and len(said.err.strip().splitlines()) == 1
    record = lrmil("info", path, "--json").records[0]
    assert record["opens"] is (record["opens_in"] == ALL)
