"""What QuPath 0.5 to 0.7 makes of a GeoJSON document, checked without QuPath.

Its reader takes a document whole or not at all, so one bad feature loses the rest; other mistakes it passes over in
silence. Both are told apart here: ``fatal`` is what makes QuPath import nothing, ``silent`` is what it imports as
something else than was meant. What we write has neither. The rules: qupath/README 1.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.files.header import is_positive
from lrmil_cli.qupath.files import Document
from lrmil_cli.qupath.gson import Refused, as_text, depth
from lrmil_cli.qupath.objects import LEGACY_IDS, features_of, object_type, passed_over, with_children
from lrmil_cli.qupath.outlines import Bounds, check_outline
from lrmil_cli.qupath.properties import check_properties
from lrmil_cli.qupath.verdict import SINCE_06, Verdict, say

__all__ = ["Verdict", "describe_geojson", "inspect", "overlapping", "require_good", "say"]

MANY_TILES = 200_000
#: Lists and objects in one another that the reader of 0.6 and later goes into.
DEEPEST = 255
UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")


def inspect(document: Any, image: tuple[int, int] | None = None) -> Verdict:
    """Check a parsed document against the rules of QuPath's reader.

    Args:
        image: width and height of the image as QuPath shows it, where known.
    """
    v = Verdict()
    try:
        features = features_of(document)
    except Refused:
        v.refuse("a type at the top that is null or no text")
        return v
    if not features:
        v.shown_otherwise(_why_nothing(document))
    elif ignored := isinstance(document, list) and passed_over(document):
        v.note(f"{ignored} parts of the list are neither features nor geometries; QuPath passes over them")
    ids: set[str] = set()
    boxes: list[Bounds] = []
    tile_names: list[tuple[int, frozenset[str]]] = []
    for number, top in enumerate(features, 1):
        for feature in with_children(top):
            if not isinstance(feature, dict):
                v.refuse("not a JSON object", number)
                continue
            kind, bounds, is_box, names = _check_feature(v, feature, number, ids)
            if image and bounds and (min(bounds[:2]) < 0 or bounds[2] > image[0] or bounds[3] > image[1]):
                text = f"reaches out of the image of {image[0]} x {image[1]} px; is --origin right?"
                v.shown_otherwise(text, number)
            if kind == "tile":
                tile_names.append((number, frozenset(names)))
                if is_box and bounds:
                    boxes.append(bounds)
                else:
                    v.shown_otherwise("a tile that is not an upright rectangle", number)
    _check_tiles(v, boxes, tile_names)
    return v


def _why_nothing(document: Any) -> str:
    kind = document.get("type") if isinstance(document, dict) else None
    if isinstance(document, list) or kind == "FeatureCollection":
        return "it holds no objects"
    return "no FeatureCollection, Feature, array of features or geometry at the top: QuPath finds no objects"


def _check_feature(
    v: Verdict, feature: dict[str, Any], number: int, ids: set[str]
) -> tuple[str, Bounds | None, bool, list[str]]:
    """Judge one object: its type, bounds, whether it is an upright rectangle, and its measurements."""
    _check_id(v, feature, number, ids)
    bounds, is_box = check_outline(v, feature.get("geometry"), number)
    if feature.get("nucleusGeometry", {}) != {}:
        check_outline(v, feature["nucleusGeometry"], number)
    names = check_properties(v, feature, number)
    kind = object_type(feature)
    v.objects[kind] = v.objects.get(kind, 0) + 1
    if kind == "root":
        v.shown_otherwise("an object of type root, which QuPath cannot add to an image", number)
    return kind, bounds, is_box, names


def describe_geojson(documents: list[Document], where: str, misnamed: str | None = None) -> dict[str, Any]:
    """What QuPath will make of the documents of one file, as plain JSON types.

    Args:
        misnamed: why QuPath cannot open the file for its name, if so.

    Raises:
        InputError: JSON of something else.
    """
    if documents and where.lower().endswith((".json", ".json.gz")) and not _is_geojson(documents[0].value):
        raise InputError(f"{where}: JSON, but neither a file of the chain nor GeoJSON")
    own = documents[0].value.get("lrmil") if documents and isinstance(documents[0].value, dict) else None
    made = own if isinstance(own, dict) else {}
    v = Verdict()
    if misnamed:
        v.refuse(misnamed)
    if not documents:
        v.shown_otherwise("the zip holds no GeoJSON that QuPath can read")
    for document in documents:
        found = inspect(document.value, _image_size(made.get("image")))
        if depth(document.value) > DEEPEST:
            found.refuse(f"more than {DEEPEST} lists or objects in one another (0.6 and later refuse it)", 0, SINCE_06)
        for text in document.notes:
            found.note(text)
        if found.opens or len(documents) == 1:
            v.add(found)
        else:  # of a zip it takes what it can read
            v.note(f"QuPath passes over {document.name}: {say(found.fatal)[0]}")
    return {
        "kind": "geojson",
        "opens": v.opens,
        "opens_in": v.opens_in,
        "fatal": say(v.fatal),
        "silent": say(v.silent),
        "notes": say(v.notes),
        "objects": v.objects,
        "measurements": v.measurements,
        "classes": v.classes,
        "lrmil": made,
    }


def _is_geojson(document: Any) -> bool:
    """Whether QuPath finds anything in a document, or would if nothing were wrong with its type."""
    try:
        return bool(features_of(document)) or document == [] or _why_nothing(document) == "it holds no objects"
    except Refused:
        return True


def _image_size(said: Any) -> tuple[int, int] | None:
    """Width and height, where a file says them."""
    return (said[0], said[1]) if isinstance(said, list) and len(said) == 2 and all(map(is_positive, said)) else None


def require_good(document: Any, image: tuple[int, int] | None, where: str) -> None:
    """Refuse a document that QuPath would not show as it is meant.

    Raises:
        InputError: naming the first thing that is wrong.
    """
    v = inspect(document, image)
    wrong = say(v.fatal) + say(v.silent)
    if wrong:
        raise InputError(f"{where}: QuPath would not show this as it is meant: {wrong[0]}")


def _check_id(v: Verdict, feature: dict[str, Any], number: int, ids: set[str]) -> None:
    if "id" not in feature:
        return
    try:
        own = as_text(feature["id"])
    except Refused:
        v.refuse("the id is null or no text", number)
        return
    if not UUID.fullmatch(own):
        if own not in LEGACY_IDS:
            v.shown_otherwise("the id is no UUID; QuPath draws a random one", number)
    elif own.lower() in ids:
        v.shown_otherwise("the id stands twice in the file", number)
    else:
        ids.add(own.lower())


# ---- tiles together ----------------------------------------------------------------
def _check_tiles(v: Verdict, boxes: list[Any], names: list[tuple[int, frozenset[str]]]) -> None:
    every = frozenset().union(*(n for _, n in names))
    for number, own in names:
        if own != every:
            text = "a tile without a measurement that others have; zoomed out, QuPath paints it in any colour"
            v.shown_otherwise(text, number)
    if names and not every:
        v.note("the tiles have no measurement, so there is no map to show")
    pair = overlapping(np.array(boxes, np.float64).reshape(-1, 4))
    if pair is not None:
        v.shown_otherwise("tiles overlap; zoomed out, QuPath paints them in random order")
    if len(names) > MANY_TILES:
        v.note(f"{len(names)} tiles make QuPath slow; a coarser grid shows the same")
    for name, (count, low, high) in v.measurements.items():
        if count > 1 and low == high and v.objects.get("tile"):
            v.note(f"{name!r} is {low:g} everywhere: one flat colour")


def overlapping(box: np.ndarray) -> tuple[int, int] | None:
    """Two of the rectangles [N, 4] (left, top, right, bottom) that share area, or None; edges may touch."""
    if len(box) < 2:
        return None
    order = np.lexsort((box[:, 0], box[:, 1]))
    own = box[order]
    first = np.flatnonzero(np.r_[True, own[1:, 1] != own[:-1, 1]])
    # Rows of a grid: within a row nobody reaches the next, and no row reaches the row below. This proves most tables.
    apart = (own[1:, 0] >= own[:-1, 2]) | (own[1:, 1] != own[:-1, 1])
    lowest = np.maximum.reduceat(own[:, 3], first)
    if apart.all() and (lowest[:-1] <= own[first[1:], 1]).all():
        return None
    import shapely

    shapes = shapely.box(*box.T)
    a, b = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    a, b = a[a < b], b[a < b]
    width = np.minimum(box[a, 2], box[b, 2]) - np.maximum(box[a, 0], box[b, 0])
    height = np.minimum(box[a, 3], box[b, 3]) - np.maximum(box[a, 1], box[b, 1])
    hit = np.flatnonzero((width > 0) & (height > 0))
    return (int(a[hit[0]]), int(b[hit[0]])) if len(hit) else None
