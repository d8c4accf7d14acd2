"""How QuPath 0.5 to 0.7 reads a GeoJSON document: which features it finds, and what object it makes of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lrmil_cli.qupath.gson import Refused, as_text

OBJECT_TYPES = ("annotation", "tile", "detection", "cell", "tmaCore", "root")
#: QuPath 0.2 kept the type in the id.
LEGACY_IDS = {
    "PathTileObject": "tile",
    "PathCellObject": "cell",
    "TMACoreObject": "tmaCore",
    "PathDetectionObject": "detection",
    "PathRootObject": "root",
    "PathAnnotationObject": "annotation",
}
#: What objectType may say -> the type; QuPath makes an annotation of anything else.
KNOWN_TYPES = {
    **{kind: kind for kind in OBJECT_TYPES},
    **LEGACY_IDS,
    "tma_core": "tmaCore",
    "unknown": "annotation",
}
GEOMETRIES = ("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection")


def features_of(document: Any) -> list[Any]:
    """The features of a document as QuPath finds them; what it passes over is left out (qupath/README 1.1).

    Raises:
        Refused: the document, or a part of it, has a type that is no text.
    """
    found: list[Any] = []
    for part in _parts(document):
        kind = as_text(part["type"]) if isinstance(part, dict) and "type" in part else None
        if kind == "FeatureCollection":
            found += part["features"] if isinstance(part.get("features"), list) else []
        elif kind == "Feature":
            found.append(part)
        elif kind in GEOMETRIES:
            found.append({"type": "Feature", "geometry": part, "properties": {}})
    return found


def passed_over(document: Any) -> int:
    """How many parts of a document QuPath passes over, because they say no type that it knows."""
    known = ("FeatureCollection", "Feature", *GEOMETRIES)
    return sum(not isinstance(part, dict) or str(part.get("type")) not in known for part in _parts(document))


def _parts(document: Any) -> Iterator[Any]:
    """What lies in the lists at the top of a document, in its order; the document where it is no list."""
    waiting = [document]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += reversed(part)
        else:
            yield part


def with_children(feature: Any) -> Iterator[Any]:
    """A feature and the objects that lie under it in QuPath's hierarchy, at any depth."""
    yield feature
    properties = feature.get("properties") if isinstance(feature, dict) else None
    if isinstance(properties, dict):
        children = properties.get("childObjects" if "childObjects" in properties else "children")
        for child in children if isinstance(children, list) else []:
            yield from with_children(child)


def type_key(properties: dict[str, Any]) -> str:
    """The property that says the type."""
    return next((key for key in ("objectType", "object_type", "type") if key in properties), "objectType")


def object_type(feature: dict[str, Any]) -> str:
    """The type of the object that QuPath makes of a feature: one of :data:`OBJECT_TYPES`."""
    properties = feature.get("properties")
    said = properties.get(type_key(properties)) if isinstance(properties, dict) else None
    try:
        return KNOWN_TYPES.get(as_text(said), "annotation")
    except Refused:
        pass
    try:
        return LEGACY_IDS.get(as_text(feature.get("id")), "annotation")
    except Refused:
        return "annotation"


def class_parts(classification: Any) -> list[str] | None:
    """The names of a classification as they stand there, in any form QuPath has written: text, ``name``, or ``names``
    of a derived class; None where there is none."""
    if isinstance(classification, str):
        return [classification]
    if not isinstance(classification, dict):
        return None
    name, names = classification.get("name"), classification.get("names")
    if name is None:
        return [_text(part) for part in names] if isinstance(names, list) and names else None
    return [_text(name)]


def class_name(classification: Any) -> str | None:
    """The name that a classification has in QuPath, derived ones as ``A: B``; None where there is none."""
    parts = [part.strip() for text in class_parts(classification) or [] for part in text.split(":")]
    return ": ".join(part for part in parts if part) or None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
