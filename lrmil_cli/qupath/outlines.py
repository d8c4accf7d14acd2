"""What QuPath makes of the geometry of a feature: which shapes its reader refuses, mends, or shows otherwise."""

from __future__ import annotations

import math
from typing import Any

from lrmil_cli.qupath.gson import Refused, as_flag, as_number, as_text, scalar_whole
from lrmil_cli.qupath.verdict import ONLY_05, SINCE_06, Verdict

Bounds = tuple[float, float, float, float]
Point = tuple[float, float]
#: How deeply the positions of each type of geometry are nested.
DEPTH = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}
#: 0.6 and later round to this grid (px), and refuse what cannot be rounded.
GRID_PX = 0.01
#: What that rounding makes of an infinite coordinate.
_FARTHEST = 2.0**63 * GRID_PX
#: 0.5 keeps 32-bit floats.
_LARGEST_05 = 3.4e38
_PLANE_KEYS = ("c", "z", "t")


def check_outline(v: Verdict, geometry: Any, number: int) -> tuple[Bounds | None, bool]:
    """Judge a geometry.

    Returns:
        bounds (left, top, right, bottom) or None, and whether it is one upright rectangle.
    """
    if not isinstance(geometry, dict):
        v.refuse("no geometry", number)
        return None, False
    _check_extras(v, geometry, number)
    try:
        kind = as_text(geometry.get("type"))
    except Refused:
        kind = str(geometry.get("type"))
    if kind == "GeometryCollection":
        return _check_collection(v, geometry, number), False
    if kind not in DEPTH:
        v.refuse(f"geometry of type {kind[:40]}", number)
        return None, False
    try:
        places = _places(geometry.get("coordinates"), DEPTH[kind])
    except Refused:
        v.refuse(f"coordinates that are not those of a {kind}", number)
        return None, False
    if kind == "MultiPolygon" and len(places) == 1:
        v.refuse("a MultiPolygon of one part (0.5 refuses it)", number, ONLY_05)
    points = flatten(places, DEPTH[kind])
    if not points:
        v.shown_otherwise("an empty outline", number)
        return None, False
    if not all(type(n) in (int, float) for n in flatten(geometry["coordinates"], DEPTH[kind] + 1)):
        v.note("coordinates that are text; QuPath takes them for numbers", number)
    xs, ys = zip(*points)
    bounds = (min(xs), min(ys), max(xs), max(ys))
    if not all(map(math.isfinite, bounds)):
        v.shown_otherwise("a coordinate that is not a finite number", number)
    elif max(map(abs, bounds)) > _LARGEST_05:
        v.refuse("a coordinate too large for QuPath 0.5", number, ONLY_05)
    return bounds, _check_parts(v, kind, places, number)


def _check_parts(v: Verdict, kind: str, places: Any, number: int) -> bool:
    """Lines and rings; whether it is one upright rectangle."""
    if kind in ("LineString", "MultiLineString"):
        if any(len(line) == 1 for line in (places if kind == "MultiLineString" else [places])):
            v.refuse("a line of one point", number)
        return False
    if kind not in ("Polygon", "MultiPolygon"):
        return False
    parts = [places] if kind == "Polygon" else places
    rings = [ring for part in parts for ring in part]
    if any(ring and (ring[0] != ring[-1] or len(ring) < 3) for ring in rings):
        v.refuse("a ring that is not closed", number)
    elif any(part and not part[0] and any(part[1:]) for part in parts):
        v.refuse("holes in an empty outline", number)
    elif len(rings) == 1 and _is_box(rings[0]):
        return True
    else:
        _check_area(v, parts, number)
    return False


def _check_extras(v: Verdict, geometry: dict[str, Any], number: int) -> None:
    """``plane`` and ``isEllipse``, which QuPath writes beside the coordinates."""
    if "isEllipse" in geometry:
        try:
            as_flag(geometry["isEllipse"])
        except Refused:
            v.refuse("isEllipse is null, a list or an object", number)
    if "plane" not in geometry:
        return
    plane = geometry["plane"]
    if not isinstance(plane, dict) or not set(plane) <= set(_PLANE_KEYS):
        v.refuse("plane is not an object of c, z and t", number)
        return
    try:
        if any([scalar_whole(plane[key]) for key in plane if key != "c"]):
            v.shown_otherwise("it lies in another plane than z = 0, t = 0, and slides have one", number)
        scalar_whole(plane.get("c", 0))
    except Refused:
        v.refuse("plane holds something else than whole numbers", number)


def _check_collection(v: Verdict, geometry: dict[str, Any], number: int) -> Bounds | None:
    v.refuse("a GeometryCollection (0.6 and later refuse it)", number, SINCE_06)
    inner = geometry.get("geometries")
    if not isinstance(inner, list) or not all(isinstance(part, dict) for part in inner):
        v.refuse("a GeometryCollection without geometries", number)
        return None
    found = [bounds for part in inner if (bounds := check_outline(v, part, number)[0])]
    if not found:
        return None
    left, top, right, bottom = zip(*found)
    return min(left), min(top), max(right), max(bottom)


def _places(value: Any, depth: int) -> Any:
    """Coordinates nested ``depth`` deep with each position as (x, y). Raises: Refused."""
    if not isinstance(value, list):
        raise Refused("no list")
    if depth:
        return [_places(inner, depth - 1) for inner in value]
    if len(value) < 2:
        raise Refused("a position of less than two numbers")
    x, y, *_ = [as_number(n) for n in value[:3]]  # the height is read and thrown away
    if math.isnan(x) or math.isnan(y):
        raise Refused("no number")
    return (x, y)


def flatten(value: Any, depth: int) -> list[Any]:
    """The items of lists nested ``depth`` deep."""
    items = [value]
    for _ in range(depth):
        items = [inner for item in items for inner in item]
    return items


def _is_box(ring: list[Point]) -> bool:
    """Five positions around an upright rectangle of some size, in either direction."""
    if len(ring) != 5:
        return False
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = ring[:4]
    upright = (ay == by and bx == cx and cy == dy and dx == ax) or (ax == bx and by == cy and cx == dx and dy == ay)
    return upright and ax != cx and ay != cy


def _check_area(v: Verdict, parts: list[list[list[Point]]], number: int) -> None:
    """The rounding of 0.6 and later: the geometry library of both worlds has one algorithm for it."""
    import shapely

    def ring(points: list[Point]) -> list[Point]:
        near = [(min(max(x, -_FARTHEST), _FARTHEST), min(max(y, -_FARTHEST), _FARTHEST)) for x, y in points]
        return near if len(near) > 3 else [*near, near[0]]  # three points are two and the first again

    polygons = [shapely.Polygon(ring(part[0]), [ring(h) for h in part[1:] if h]) for part in parts if part and part[0]]
    shape = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
    if shape.convex_hull.area == 0:  # the area of a bow tie is zero as well
        v.shown_otherwise("an outline without area", number)
        return
    reason = "" if shape.is_valid else shapely.is_valid_reason(shape).split("[")[0].lower()
    try:
        rounded = shapely.set_precision(shape, GRID_PX)
    except shapely.GEOSException:
        v.refuse(f"an invalid outline, {reason or 'rounded'} (0.6 and later refuse it)", number, SINCE_06)
        return
    if rounded.is_empty:
        v.shown_otherwise(f"an outline smaller than {GRID_PX} px", number)
    elif reason:
        v.note(f"an invalid outline, {reason}; QuPath mends it", number)
