"""What QuPath makes of the properties of a feature: type, name, colour, class and measurements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lrmil_cli.qupath.gson import Refused, as_number, as_text, as_whole, double, scalar_whole
from lrmil_cli.qupath.objects import KNOWN_TYPES, class_name, class_parts, type_key
from lrmil_cli.qupath.verdict import Verdict

#: Further texts for a number that QuPath knows in measurements.
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def check_properties(v: Verdict, feature: dict[str, Any], number: int) -> list[str]:
    """Judge the properties of a feature; the names of the measurements that QuPath will see."""
    properties = feature.get("properties", {})
    if not isinstance(properties, dict):
        v.refuse("properties are null or no object", number)
        return []
    for key in (type_key(properties), "name"):
        if key in properties and _refused(as_text, properties[key]):
            v.refuse(f"{key} is null or no text", number)
    kind = properties.get(type_key(properties))
    if isinstance(kind, str) and kind not in KNOWN_TYPES:
        v.shown_otherwise(f"objectType {kind[:40]!r} is unknown; QuPath makes an annotation of it", number)
    if kind == "tile" and properties.get("metadata"):
        v.note("metadata on a tile: a warning each in QuPath 0.5", number)
    if "color" in properties:
        _check_colour(v, properties["color"], number)
    _check_class(v, properties.get("classification"), number)
    return _check_measurements(v, properties.get("measurements"), number)


def _refused(read: Callable[[Any], Any], value: Any) -> bool:
    try:
        read(value)
    except Refused:
        return True
    return False


def _check_colour(v: Verdict, colour: Any, number: int) -> None:
    """The colour of an object: one whole number, or a list of three; another list, an object or null is passed over."""
    if colour is None or isinstance(colour, dict) or (isinstance(colour, list) and len(colour) != 3):
        v.note("color is not three numbers; QuPath passes over it", number)
    elif any(_refused(as_whole, part) for part in (colour if isinstance(colour, list) else [colour])):
        v.refuse("color is not three numbers from 0 to 255", number)


# ---- classes -------------------------------------------------------------------------
def _check_class(v: Verdict, classification: Any, number: int) -> None:
    if classification is None:
        return
    if not isinstance(classification, (str, dict)):
        v.refuse("the classification is neither text nor an object", number)
        return
    if isinstance(classification, dict) and not _reads_class(v, classification, number):
        return
    parts = class_parts(classification)
    if parts is None:
        return
    joined = isinstance(classification, dict) and classification.get("name") is None
    if any("\n" in part for part in parts):
        v.refuse("a class name with a line break", number)
    elif not any(part.strip() for part in parts) or (joined and not all(part.strip() for part in parts)):
        v.refuse("a class name that is empty or blank", number)
    elif joined and any(":" in part for part in parts):
        v.refuse("a colon in one of the names of a class", number)
    elif not joined and ":" in parts[0]:
        v.shown_otherwise(f"the class name {parts[0][:40]!r} has a colon; QuPath splits it there", number)
    elif any(part != part.strip() for part in parts):
        v.shown_otherwise("a class name with blanks at its ends; QuPath cuts them off", number)
    name = class_name(classification)
    if name is not None:
        v.classes[name] = v.classes.get(name, 0) + 1


def _reads_class(v: Verdict, own: dict[str, Any], number: int) -> bool:
    """Whether QuPath can read the object of a class; of before 0.4, with ``colorRGB`` or ``parentClass``, too."""
    if not own:
        return True
    names = own.get("names")
    texts = [own.get("name"), *(names if isinstance(names, list) else [])]
    if any(isinstance(text, (list, dict)) for text in texts):
        v.refuse("a class name that is no text", number)
    elif "colorRGB" in own or "parentClass" in own:
        parent = own.get("parentClass")
        if own.get("colorRGB") is not None and _refused(scalar_whole, own["colorRGB"]):
            v.refuse("colorRGB of a class is no whole number", number)
        elif parent is not None and not isinstance(parent, dict):
            v.refuse("parentClass of a class is no object", number)
        else:
            return parent is None or _reads_class(v, {"colorRGB": None, **parent}, number)
    elif not {"name", "names"} & set(own) or "color" not in own:
        v.refuse("a classification without name or color", number)
    elif own.get("name") is None and names is not None and (not isinstance(names, list) or None in names):
        v.refuse("names of a class are no list of texts", number)
    else:
        return _reads_class_colour(v, own["color"], number)
    return False


def _reads_class_colour(v: Verdict, colour: Any, number: int) -> bool:
    if colour is None or colour == []:
        return True
    if not isinstance(colour, list) or len(colour) not in (1, 3, 4) or any(_refused(scalar_whole, n) for n in colour):
        v.refuse("a class colour that is not three numbers from 0 to 255", number)
        return False
    if any(isinstance(n, float) and n % 1 for n in colour):
        v.shown_otherwise("a class colour of fractions; QuPath takes it for black", number)
    elif len(colour) > 1 and not all(0 <= scalar_whole(n) <= 255 for n in colour):
        v.shown_otherwise("a class colour out of 0 to 255; QuPath makes another colour of it", number)
    elif len(colour) == 4:
        v.note("a class colour of four numbers; the last is how opaque it is", number)
    return True


# ---- measurements --------------------------------------------------------------------
def _check_measurements(v: Verdict, measurements: Any, number: int) -> list[str]:
    """QuPath takes an object, or a list of name and value (before 0.4), and passes over anything else."""
    if isinstance(measurements, list):
        found = _listed(measurements)
        if found is None:
            v.refuse("measurements are a list, but not of name and value", number)
            return []
        measurements = found
    if not isinstance(measurements, dict):
        return []
    names = []
    for name, value in measurements.items():
        if name.strip().lower() == "class probability":
            v.shown_otherwise("the measurement name 'Class probability' is QuPath's own and gives no map", number)
        if type(value) not in (int, float, str):
            v.shown_otherwise("a measurement that is null, a truth value or a list; QuPath drops it", number)
            continue
        try:
            own = _value(value)
        except Refused:
            v.refuse("a measurement that is text", number)
            continue
        if not math.isfinite(own):
            text = "a measurement that is not a finite number; zoomed out, QuPath paints such tiles in any colour"
            v.shown_otherwise(text, number)
            continue
        if isinstance(value, str):
            v.note("a measurement that is text; QuPath takes it for a number", number)
        names.append(name)
        seen = v.measurements.setdefault(name, [0, own, own])
        seen[:] = [seen[0] + 1, min(seen[1], own), max(seen[2], own)]
    return names


def _value(value: Any) -> float:
    """A measurement as a number. Raises: Refused."""
    if not isinstance(value, str):
        return as_number(value)
    return _SPECIAL[value.lower()] if value.lower() in _SPECIAL else double(value)


def _listed(measurements: list[Any]) -> dict[str, float] | None:
    try:
        return {as_text(m["name"]): as_number(m["value"]) for m in measurements if isinstance(m, dict) or _no(m)}
    except (Refused, KeyError):
        return None


def _no(value: Any) -> bool:
    raise Refused(f"no object: {str(value)[:40]}")
