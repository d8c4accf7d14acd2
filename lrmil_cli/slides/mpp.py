"""The scale of a slide: micrometres per pixel from its metadata, checked for sense."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lrmil_cli.errors import InputError, NoScaleError
from lrmil_cli.units import Mpp

MIN_MPP, MAX_MPP = Mpp(0.05), Mpp(20.0)
#: x and y may differ by this share before a slide counts as anisotropic.
MAX_ANISOTROPY = 0.02


@dataclass(frozen=True)
class Scale:
    """Level-0 micrometres per pixel and where it came from: ``metadata``, ``option`` or ``manifest``."""

    mpp: Mpp
    source: str


def parse_number(value: object) -> float | None:
    """A number as scanners write them ("0.499", "0,4990", 0.25), or None."""
    try:
        number = float(str(value).strip().replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def resolve_mpp(
    mpp_x: object,
    mpp_y: object,
    *,
    where: str,
    option: float | None = None,
    manifest: float | None = None,
    objective: object = None,
) -> Scale:
    """The scale to use for a slide: the option wins over the manifest, which wins over the metadata.

    Raises:
        NoScaleError: none of them gives a usable value; InputError: the one given makes no sense.
    """
    for value, source in ((option, "option"), (manifest, "manifest")):
        if value is not None:
            if not MIN_MPP <= value <= MAX_MPP:
                raise InputError(f"{where}: mpp {value:g} from the {source} is outside {MIN_MPP} to {MAX_MPP:g} um/px")
            return Scale(Mpp(float(value)), source)
    x, y = parse_number(mpp_x), parse_number(mpp_y)
    power = parse_number(objective)
    hint = (
        f"give it with --slide-mpp (the objective is {power:g}x, often {10 / power:g} um/px)"
        if power
        else "give it with --slide-mpp or in the manifest's mpp column (20x is often 0.5, 40x often 0.25)"
    )
    if x is None or y is None:
        raise NoScaleError(f"{where}: the slide does not say its mpp (um per pixel); {hint}")
    if not (MIN_MPP <= x <= MAX_MPP and MIN_MPP <= y <= MAX_MPP):
        raise NoScaleError(
            f"{where}: mpp {x:.4g} x {y:.4g} in the metadata makes no sense (a screen resolution?); {hint}"
        )
    if abs(x - y) > MAX_ANISOTROPY * max(x, y):
        raise NoScaleError(f"{where}: pixels are not square (mpp {x:.4g} x {y:.4g}); {hint}")
    return Scale(Mpp((x + y) / 2), "metadata")
