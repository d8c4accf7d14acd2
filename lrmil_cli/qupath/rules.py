"""What QuPath 0.5 to 0.7 makes of a GeoJSON document, checked without QuPath.

Its reader takes a document whole or not at all, so one bad feature loses the rest; other mistakes it passes over in
silence. Both are told apart here: ``fatal`` is what makes QuPath import nothing, ``silent`` is what it imports as
something else than was meant. What we write has neither. The rules: qupath/README 1.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.files.header import is_positive
from lrmil_cli.qupath.objects import GEOMETRIES, LEGACY_IDS, OBJECT_TYPES, class_name, features_of, object_type

MANY_TILES = 200_000
UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_DEPTH = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}
_NO_VALUE = ("NaN", "Infinity", "-Infinity")


@dataclass
class Verdict:
    """What QuPath will make of a document.

    Attributes:
        fatal, silent, notes: sentence -> (how many features, number of the first, from 1; 0 for the document).
        objects: type -> count; classes: name -> count; measurements: name -> [count, lowest, highest].
    """

    fatal: dict[str, list[int]] = field(default_factory=dict)
    silent: dict[str, list[int]] = field(default_factory=dict)
    notes: dict[str, list[int]] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    measurements: dict[str, list[float]] = field(default_factory=dict)

    @property
    def opens(self) -> bool:
        return not self.fatal


def say(found: dict[str, list[int]]) -> list[str]:
    """Findings as sentences: ``feature 12: the ring is not closed (and 34 more)``."""
    return [
        text if not first else f"feature {first}: {text}" + (f" (and {n - 1} more)" if n > 1 else "")
        for text, (n, first) in found.items()
    ]


def _add(found: dict[str, list[int]], text: str, number: int = 0) -> None:
    found.setdefault(text, [0, number])[0] += 1


def inspect(document: Any, image: tuple[int, int] | None = None) -> Verdict:
    """Check a parsed document against the rules of QuPath's reader.

    Args:
        image: width and height of the image as QuPath shows it, where known.
    """
    v = Verdict()
    features = features_of(document)
    if features is None:
        nothing = "no FeatureCollection, Feature, array of features or geometry at the top: QuPath finds no objects"
        _add(v.fatal, nothing)
        return v
    if not features:
        _add(v.silent, "it holds no objects")
    ids: set[str] = set()
    boxes, tile_names = [], []
    for number, feature in enumerate(features, 1):
        if not isinstance(feature, dict):
            _add(v.fatal, "not a JSON object", number)
            continue
        _check_id(v, feature, number, ids)
        bounds, is_box = _check_geometry(v, feature.get("geometry"), number)
        names = _check_properties(v, feature, number)
        kind = object_type(feature)
        kind = kind if kind in OBJECT_TYPES else "annotation"
        v.objects[kind] = v.objects.get(kind, 0) + 1
        if image and bounds and (min(bounds[:2]) < 0 or bounds[2] > image[0] or bounds[3] > image[1]):
            _add(v.silent, f"reaches out of the image of {image[0]} x {image[1]} px; is --origin right?", number)
        if kind == "tile":
            tile_names.append((number, frozenset(names)))
            if is_box:
                boxes.append(bounds)
            else:
                _add(v.silent, "a tile that is not an upright rectangle", number)
    _check_tiles(v, boxes, tile_names)
    return v


def describe_geojson(documents: list[Any], where: str) -> dict[str, Any]:
    """What QuPath will make of the documents of one file, as plain JSON types.

    Raises:
        InputError: JSON of something else.
    """
    if where.lower().endswith((".json", ".json.gz")) and features_of(documents[0]) is None:
        raise InputError(f"{where}: JSON, but neither a file of the chain nor GeoJSON")
    own = documents[0].get("lrmil") if isinstance(documents[0], dict) else None
    made = own if isinstance(own, dict) else {}
    whole = documents[0] if len(documents) == 1 else [f for d in documents for f in features_of(d) or []]
    v = inspect(whole, _image_size(made.get("image")))
    return {
        "kind": "geojson",
        "opens": v.opens,
        "fatal": say(v.fatal),
        "silent": say(v.silent),
        "notes": say(v.notes),
        "objects": v.objects,
        "measurements": v.measurements,
        "classes": v.classes,
        "lrmil": made,
    }


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
    own = feature["id"]
    if own is None or isinstance(own, (list, dict)):
        _add(v.fatal, "the id is null or no text", number)
    elif not UUID.fullmatch(str(own)):
        if str(own) not in LEGACY_IDS:
            _add(v.silent, "the id is no UUID; QuPath draws a random one", number)
    elif str(own).lower() in ids:
        _add(v.silent, "the id stands twice in the file", number)
    else:
        ids.add(str(own).lower())


# ---- geometry ----------------------------------------------------------------------
def _check_geometry(v: Verdict, geometry: Any, number: int) -> tuple[tuple[float, ...] | None, bool]:
    """Bounds (left, top, right, bottom) or None, and whether it is one upright rectangle."""
    if not isinstance(geometry, dict):
        _add(v.fatal, "no geometry", number)
        return None, False
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        _add(v.fatal, "a GeometryCollection (0.6 and later refuse it)", number)
        return None, False
    if kind not in GEOMETRIES:
        _add(v.fatal, f"geometry of type {str(kind)[:40]}", number)
        return None, False
    positions = _positions(geometry.get("coordinates"), _DEPTH[kind])
    if positions is None:
        _add(v.fatal, f"coordinates that are not those of a {kind}", number)
        return None, False
    if not positions:
        _add(v.silent, "an empty outline", number)
        return None, False
    xs, ys = zip(*((p[0], p[1]) for p in positions))
    bounds = (min(xs), min(ys), max(xs), max(ys))
    if kind not in ("Polygon", "MultiPolygon"):
        return bounds, False
    parts = [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]
    if kind == "MultiPolygon" and len(parts) == 1:
        _add(v.fatal, "a MultiPolygon of one part (0.5 refuses it)", number)
    rings = [ring for part in parts for ring in part]
    if any(ring and (ring[0][:2] != ring[-1][:2] or len(ring) < 4) for ring in rings):
        _add(v.fatal, "a ring that is not closed", number)
        return bounds, False
    if len(rings) == 1 and _is_box(rings[0]):
        return bounds, True
    _check_polygons(v, kind, parts, number)
    return bounds, False


def _positions(value: Any, depth: int) -> list[Any] | None:
    """All positions of nested coordinates, or None where they are not finite numbers nested ``depth`` deep."""
    if not isinstance(value, list):
        return None
    if depth == 0:
        fits = len(value) in (2, 3) and all(type(n) in (int, float) and math.isfinite(n) for n in value)
        return [value] if fits else None
    found = []
    for part in value:
        inner = _positions(part, depth - 1)
        if inner is None:
            return None
        found += inner
    return found


def _is_box(ring: list[Any]) -> bool:
    """Five positions around an upright rectangle of some size, in either direction."""
    if len(ring) != 5:
        return False
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = (p[:2] for p in ring[:4])
    upright = (ay == by and bx == cx and cy == dy and dx == ax) or (ax == bx and by == cy and cx == dx and dy == ay)
    return upright and ax != cx and ay != cy


def _check_polygons(v: Verdict, kind: str, parts: list[Any], number: int) -> None:
    import shapely

    try:
        polygons = [
            shapely.Polygon([p[:2] for p in part[0]], [[p[:2] for p in hole] for hole in part[1:]])
            for part in parts
            if part and part[0]
        ]
    except (ValueError, shapely.GEOSException):
        _add(v.fatal, "rings that make no polygon", number)
        return
    shape = polygons[0] if kind == "Polygon" and polygons else shapely.MultiPolygon(polygons)
    if shape.convex_hull.area == 0:  # the area of a bow tie is zero as well
        _add(v.silent, "an outline without area", number)
    elif not shape.is_valid:
        reason = shapely.is_valid_reason(shape).split("[")[0].lower()
        _add(v.fatal, f"an invalid outline, {reason} (0.6 and later refuse it)", number)


# ---- properties --------------------------------------------------------------------
def _check_properties(v: Verdict, feature: dict[str, Any], number: int) -> list[str]:
    """Names of the measurements that QuPath will see."""
    properties = feature.get("properties", {})
    if not isinstance(properties, dict):
        _add(v.fatal, "properties are null or no object", number)
        return []
    for key in ("objectType", "object_type", "type", "name"):
        if key in properties and not isinstance(properties[key], (str, int, float)):
            _add(v.fatal, f"{key} is null or no text", number)
    kind = object_type(feature)
    if kind not in OBJECT_TYPES:
        _add(v.silent, f"objectType {kind[:40]!r} is unknown; QuPath makes an annotation of it", number)
    if kind == "tile" and properties.get("metadata"):
        _add(v.notes, "metadata on a tile: a warning each in QuPath 0.5", number)
    if "color" in properties and not _is_colour(properties["color"]) and type(properties["color"]) is not int:
        _add(v.fatal, "color is not three numbers from 0 to 255", number)
    _check_class(v, properties.get("classification"), number)
    return _check_measurements(v, properties.get("measurements"), number)


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(n) is int and 0 <= n <= 255 for n in value)


def _is_fractions(value: Any) -> bool:
    """Whether a colour is three numbers that are not all whole, as other tools write it."""
    numbers = isinstance(value, list) and len(value) == 3 and all(type(n) in (int, float) for n in value)
    return numbers and any(type(n) is float for n in value)


def _check_class(v: Verdict, classification: Any, number: int) -> None:
    if classification is None:
        return
    if not isinstance(classification, (str, dict)):
        _add(v.fatal, "the classification is neither text nor an object", number)
        return
    name = class_name(classification)
    if isinstance(classification, dict) and classification and not {"colorRGB", "parentClass"} & set(classification):
        colour = classification.get("color")
        if colour is None or name is None:
            _add(v.fatal, "a classification without name or color", number)
        elif _is_fractions(colour):
            _add(v.silent, "a class colour of fractions; QuPath takes it for black", number)
        elif not _is_colour(colour):
            _add(v.fatal, "a class colour that is not three numbers from 0 to 255", number)
    if name is None:
        return
    v.classes[name] = v.classes.get(name, 0) + 1
    # Joined names are QuPath's own way to write a derived class.
    joined = classification.get("names") if isinstance(classification, dict) else None
    parts = joined if isinstance(joined, list) else [name]
    if any(":" in str(p) or "\n" in str(p) or str(p) != str(p).strip() or not str(p) for p in parts):
        _add(v.silent, f"the class name {name[:40]!r} has a colon, a line break or blanks at its ends", number)


def _check_measurements(v: Verdict, measurements: Any, number: int) -> list[str]:
    if isinstance(measurements, list):  # before 0.4
        if not all(isinstance(m, dict) and isinstance(m.get("name"), str) and "value" in m for m in measurements):
            _add(v.fatal, "measurements are a list, but not of name and value", number)
            return []
        measurements = {m["name"]: m["value"] for m in measurements}
    if not isinstance(measurements, dict):
        return []
    names = []
    for name, value in measurements.items():
        if isinstance(value, str) and value not in _NO_VALUE:
            _add(v.fatal, "a measurement that is text", number)
        elif isinstance(value, str) or (type(value) is float and not math.isfinite(value)):
            text = "a measurement that is not a finite number; zoomed out, QuPath paints such tiles in any colour"
            _add(v.silent, text, number)
        elif type(value) not in (int, float):
            _add(v.silent, "a measurement that is null, a truth value or a list; QuPath drops it", number)
        else:
            names.append(name)
            seen = v.measurements.setdefault(name, [0, value, value])
            seen[:] = [seen[0] + 1, min(seen[1], value), max(seen[2], value)]
        if name == "Class probability":
            _add(v.silent, "the measurement name 'Class probability' is QuPath's own and gives no map", number)
    return names


# ---- tiles together ----------------------------------------------------------------
def _check_tiles(v: Verdict, boxes: list[Any], names: list[tuple[int, frozenset[str]]]) -> None:
    every = frozenset().union(*(n for _, n in names))
    for number, own in names:
        if own != every:
            text = "a tile without a measurement that others have; zoomed out, QuPath paints it in any colour"
            _add(v.silent, text, number)
    if names and not every:
        _add(v.notes, "the tiles have no measurement, so there is no map to show")
    pair = overlapping(np.array(boxes, np.float64).reshape(-1, 4))
    if pair is not None:
        _add(v.silent, "tiles overlap; zoomed out, QuPath paints them in random order")
    if len(names) > MANY_TILES:
        _add(v.notes, f"{len(names)} tiles make QuPath slow; a coarser grid shows the same")
    for name, (count, low, high) in v.measurements.items():
        if count > 1 and low == high and v.objects.get("tile"):
            _add(v.notes, f"{name!r} is {low:g} everywhere: one flat colour")


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
