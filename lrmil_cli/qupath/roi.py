"""Regions of interest drawn in QuPath: GeoJSON in, one area in level-0 pixels out (qupath/README 3)."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrmil_cli.errors import InputError
from lrmil_cli.qupath.files import SUFFIXES, read_documents
from lrmil_cli.qupath.frame import Frame
from lrmil_cli.qupath.objects import class_name, features_of, object_type
from lrmil_cli.slides.region import MIN_INSIDE, Region

_SKIPPED_TYPES = ("tile", "detection", "cell", "tmaCore", "root")
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
_ALL_SUFFIXES = (*SUFFIXES, ".zip")


def find_roi(path: str | Path, slide_id: str) -> Path:
    """The file of one slide: ``path`` itself, or ``<slide id>.geojson`` or ``<slide id>.roi.geojson`` (.json, .gz,
    .zip) in a folder.

    Raises:
        InputError: the folder holds none, or more than one.
    """
    folder = Path(path)
    if not folder.is_dir():
        return folder
    found = [
        p
        for middle in ("", ".roi")
        for suffix in _ALL_SUFFIXES
        if (p := folder / f"{slide_id}{middle}{suffix}").exists()
    ]
    if len(found) != 1:
        what = f"holds {found[0].name} and {found[1].name}" if found else f"holds no {slide_id}.geojson"
        raise InputError(f"{path}: the folder {what}; give one file of regions for each slide")
    return found[0]


def read_roi(
    path: str | Path,
    slide: dict[str, Any],
    frame: Frame,
    classes: list[str] | None = None,
    min_inside: float = MIN_INSIDE,
) -> tuple[Region, list[str]]:
    """The annotations of a GeoJSON file that QuPath exported, as one area of the slide.

    Args:
        slide: the ``slide`` entry of a header; frame: how QuPath shows the slide.
        classes: use only annotations of these classes (``Tumor``, or ``Tumor: Positive`` for a derived one).

    Returns:
        the region, and warnings about what was skipped or mended.

    Raises:
        InputError: the file cannot be read, or holds no polygon that lies on the slide.
    """
    import shapely
    from shapely.affinity import translate

    where = str(path)
    skipped: Counter[str] = Counter()
    warnings: list[str] = []
    shapes: list[Any] = []
    names: Counter[str] = Counter()
    for name, document in read_documents(path):
        features = features_of(document)
        if features is None:
            raise InputError(
                f"{name}: no GeoJSON of QuPath (no FeatureCollection, Feature or geometry); "
                "use File > Export objects as GeoJSON"
            )
        for number, feature in enumerate(features, 1):
            for shape, label in _annotation(feature, number, skipped, warnings):
                names[label or "unclassified"] += 1
                if classes is None or label in classes:
                    shapes.append(shape)
    if skipped:
        counts = ", ".join(f"{n} of type {t}" for t, n in sorted(skipped.items()))
        warnings.insert(0, f"skipped {counts}; only annotations are regions")
    if not shapes:
        if names:
            there = ", ".join(f"{n} {c}" for c, n in sorted(names.items()))
            raise InputError(f"{where}: no annotation of class {' or '.join(classes or [])}; there are {there}")
        reason = warnings[0] if warnings else "it holds no objects"
        raise InputError(f"{where}: no polygon to use ({reason}); draw areas in QuPath and export them again")
    drawn = translate(shapely.union_all(shapes), frame.x, frame.y)
    area = polygonal(drawn.intersection(shapely.box(0, 0, slide["width"], slide["height"])))
    if area.area == 0:
        raise InputError(
            f"{where}: the regions lie wholly outside slide {slide['id']} ({slide['width']} x {slide['height']} px, "
            f"regions from x={drawn.bounds[0]:.0f} y={drawn.bounds[1]:.0f}); {_likely_cause(slide, frame)}"
        )
    points = shapely.set_precision(area, 0.01).normalize()
    digest = hashlib.sha256(f"{points.wkt}|{min_inside!r}".encode()).hexdigest()[:32]
    about = {
        "file": str(Path(path).absolute()),
        "digest": digest,
        "classes": classes,
        "regions": len(shapes),
        "offset": frame.offset,
        "min_inside": min_inside,
        "share": round(area.area / (slide["width"] * slide["height"]), 6),
    }
    return Region(area, min_inside, about), warnings


def _likely_cause(slide: dict[str, Any], frame: Frame) -> str:
    other = "is the file of another slide?"
    if not slide.get("bounds"):
        return other
    if frame.offset == [0, 0]:
        return f"they were not moved by its bounds: try --origin bounds, or {other}"
    return f"they were moved by the slide's bounds (x={frame.x}, y={frame.y}): try --origin full, or {other}"


def _annotation(
    feature: Any, number: int, skipped: Counter[str], warnings: list[str]
) -> Iterator[tuple[Any, str | None]]:
    """The polygonal shape and class of one feature; nothing where it is not a usable annotation."""
    if not isinstance(feature, dict):
        warnings.append(f"feature {number} is not an object; skipped")
        return
    given = feature.get("properties")
    properties: dict[str, Any] = given if isinstance(given, dict) else {}
    kind = object_type({**feature, "properties": properties})
    if kind in _SKIPPED_TYPES:
        skipped[kind] += 1
        return
    called = f"feature {number}" + (f" ({properties['name']!r})" if isinstance(properties.get("name"), str) else "")
    geometry = feature.get("geometry")
    if not isinstance(geometry, dict):
        warnings.append(f"{called} has no geometry; skipped")
        return
    if geometry.get("type") in _NO_AREA:
        warnings.append(f"{called} is a {geometry['type']}, which has no area; skipped")
        return
    plane = geometry.get("plane") or feature.get("plane") or properties.get("plane")
    if isinstance(plane, dict) and (plane.get("z") or plane.get("t")):
        warnings.append(
            f"{called} lies in plane z={plane.get('z', 0)} t={plane.get('t', 0)}, and slides have one plane; skipped"
        )
        return
    try:
        shape, mended = to_polygons(geometry)
    except (ValueError, TypeError, KeyError, IndexError) as e:
        warnings.append(f"{called} has a geometry that cannot be read ({' '.join(str(e).split())[:80]}); skipped")
        return
    if shape.area == 0:
        warnings.append(f"{called} has no area; skipped")
        return
    if mended:
        warnings.append(f"{called} crosses itself; repaired")
    yield shape, class_name(properties.get("classification"))


def to_polygons(geometry: dict[str, Any]) -> tuple[Any, bool]:
    """The polygonal part of a GeoJSON geometry (shapely, maybe empty), and whether it had to be repaired.

    Raises:
        ValueError, TypeError, KeyError, IndexError: it is none.
    """
    import shapely

    kind = geometry["type"]
    if kind == "GeometryCollection":
        parts = [to_polygons(g) for g in geometry["geometries"]]
        return shapely.union_all([p for p, _ in parts]), any(mended for _, mended in parts)
    if kind in _NO_AREA:
        return shapely.Polygon(), False
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"type {str(kind)[:40]}")
    nested = [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]
    polygons = [
        shapely.Polygon(_ring(p[0]), [h for h in map(_ring, p[1:]) if len(h) > 2])
        for p in nested
        if p and len(_ring(p[0])) > 2
    ]
    valid = all(p.is_valid for p in polygons) and (len(polygons) < 2 or shapely.MultiPolygon(polygons).is_valid)
    # A hole stays a hole where it sticks out of its shell; the other method would make a new part of what sticks out.
    mended = [
        p if p.is_valid else polygonal(shapely.make_valid(p, method="structure", keep_collapsed=False))
        for p in polygons
    ]
    return shapely.union_all(mended) if mended else shapely.Polygon(), not valid and any(p.area for p in mended)


def _ring(points: list[Any]) -> list[tuple[float, float]]:
    """x, y of each point; a ring that does not close is closed by shapely.

    Raises:
        ValueError: a number that is not finite.
    """
    ring = [(float(p[0]), float(p[1])) for p in points]
    if not all(math.isfinite(v) for p in ring for v in p):
        raise ValueError("a coordinate that is not a finite number")
    return ring


def polygonal(shape: Any) -> Any:
    """The parts of a shapely geometry that have an area."""
    import shapely

    parts = shapely.get_parts(shapely.get_parts([shape]))
    return shapely.union_all([p for p in parts if p.geom_type == "Polygon" and p.area > 0])
