"""How QuPath 0.5 to 0.7 reads a GeoJSON document: which features it finds, and what object it makes of each."""

from __future__ import annotations

from typing import Any

#: QuPath 0.2 kept the type in the id, 0.3 under another name.
LEGACY_IDS = {
    "PathTileObject": "tile",
    "PathCellObject": "cell",
    "TMACoreObject": "tmaCore",
    "PathDetectionObject": "detection",
    "PathRootObject": "root",
    "PathAnnotationObject": "annotation",
}
OBJECT_TYPES = ("annotation", "tile", "detection", "cell", "tmaCore", "root")
GEOMETRIES = ("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection")


def features_of(document: Any) -> list[Any] | None:
    """The features of a document as QuPath finds them; None where it finds no objects at all (qupath/README 1.1)."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        return None
    kind = document.get("type")
    if kind == "FeatureCollection":
        return document["features"] if isinstance(document.get("features"), list) else None
    if kind == "Feature":
        return [document]
    return [{"type": "Feature", "geometry": document, "properties": {}}] if kind in GEOMETRIES else None


def object_type(feature: dict[str, Any]) -> str:
    """The type QuPath gives a feature, or the text it does not know; ``annotation`` where nothing says."""
    properties = feature.get("properties")
    for key in ("objectType", "object_type", "type"):
        if isinstance(properties, dict) and key in properties:
            return str(properties[key]).replace("tma_core", "tmaCore")
    return LEGACY_IDS.get(str(feature.get("id")), "annotation")


def class_name(classification: Any) -> str | None:
    """The name of a classification in any form QuPath has written: text, ``name``, ``names``; None where there is
    none."""
    if isinstance(classification, str):
        return classification or None
    if not isinstance(classification, dict):
        return None
    names = classification.get("names")
    if isinstance(names, list):
        return ": ".join(map(str, names)) or None
    name = classification.get("name")
    return str(name) if name else None
