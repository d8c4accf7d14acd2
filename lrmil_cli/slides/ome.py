"""What the XML of OME-TIFF and of Leica says of the images of a file: names, channels, planes, pixel sizes."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from lrmil_cli.slides.mpp import parse_number
from lrmil_cli.units import Mpp

_UM_PER_UNIT = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


@dataclass(frozen=True)
class OmeImage:
    """One ``Image`` of OME-XML.

    Attributes:
        samples: of all channels together (SizeC); channels: their names, one a ``Channel``.
        depth, times: SizeZ and SizeT; z_first: whether focal planes follow each other before times do.
        first_ifd: number of its first page, where the XML names one.
        mpp_x, mpp_y: um per pixel, None where it does not say.
    """

    name: str
    samples: int
    channels: tuple[str, ...]
    depth: int
    times: int
    z_first: bool
    first_ifd: int | None
    mpp_x: Mpp | None
    mpp_y: Mpp | None

    @property
    def planes(self) -> int:
        return self.depth * self.times

    def pages(self, samples_a_page: int) -> int:
        """How many pages it takes."""
        return max(1, self.samples // max(1, samples_a_page)) * self.planes

    def middle(self, count: int) -> int:
        """Which of ``count`` planes to read: the middle focal plane of the first time."""
        step = 1 if self.z_first else self.times
        return min(self.depth // 2 * step, count - 1)


def ome_images(xml: str | None) -> list[OmeImage]:
    """The images of OME-XML, in its order; none where it cannot be read."""
    if not xml or "<!DOCTYPE" in xml:  # OME-XML never has one; entities could be used to fill the memory
        return []
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError):
        return []
    images = []
    for image in (e for e in root.iter() if _name(e) == "Image"):
        pixels = next((e for e in image if _name(e) == "Pixels"), None)
        if pixels is None:
            continue
        data = next((e for e in pixels if _name(e) == "TiffData"), None)
        ifd = None if data is None else data.get("IFD")
        images.append(
            OmeImage(
                image.get("Name", ""),
                _count(pixels, "SizeC"),
                tuple(e.get("Name", "") for e in pixels if _name(e) == "Channel"),
                _count(pixels, "SizeZ"),
                _count(pixels, "SizeT"),
                "TZ" not in pixels.get("DimensionOrder", "XYCZT"),
                int(ifd) if ifd is not None and ifd.isdecimal() else None,
                _mpp(pixels, "X"),
                _mpp(pixels, "Y"),
            )
        )
    return images


def scn_mpp(xml: str) -> tuple[Mpp | None, Mpp | None]:
    """um per pixel along x and y of the first image of Leica's XML that is no macro; (None, None) where it has none."""
    if "<!DOCTYPE" in xml:
        return None, None
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError):
        return None, None
    found: list[tuple[float, float]] = []
    for image in (e for e in root.iter() if _name(e) == "image"):
        parts = {_name(e): e for e in image}
        if "view" in parts and "pixels" in parts:
            # The view is in nm; the macro has the fewest pixels a nm.
            sizes = [
                (parse_number(parts["view"].get(f"size{k}")), parse_number(parts["pixels"].get(f"size{k}")))
                for k in "XY"
            ]
            x, y = (nm / px / 1000 if nm and px else math.inf for nm, px in sizes)
            found.append((x, y))
    best = min(found, default=(math.inf, math.inf))
    return (Mpp(best[0]), Mpp(best[1])) if max(best) < math.inf else (None, None)


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _count(pixels: ElementTree.Element, key: str) -> int:
    number = parse_number(pixels.get(key))
    return max(1, min(int(number), 1_000_000)) if number else 1


def _mpp(pixels: ElementTree.Element, axis: str) -> Mpp | None:
    number = parse_number(pixels.get(f"PhysicalSize{axis}"))
    unit = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if number is None or unit is None else Mpp(number * unit)
