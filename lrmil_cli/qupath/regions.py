"""Outlines of attention: tiles of a band of attention merged into polygons, as locked annotations for QuPath."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lrmil_cli.errors import UsageError

if TYPE_CHECKING:
    from shapely import Polygon

    from lrmil_cli.qupath.frame import Frame

#: Parts and holes smaller than this share of a tile are slivers of tiles cut at the slide's edge.
SLIVER = 0.25
COLORMAPS = ("viridis", "magma", "inferno", "plasma", "cividis", "gray")


@dataclass(frozen=True)
class Band:
    """Tiles from ``low`` (exclusive, but for scaled attention) to ``high`` of ``by`` (percentile, top or scaled), and
    the class they get in QuPath. ``low`` and ``high`` are 0..1; a band of ``top`` counts tiles from the highest down.
    """

    name: str
    by: str
    low: float
    high: float

    def mask(self, scaled: np.ndarray, percentile: np.ndarray) -> np.ndarray:
        """Bool [N] of the tiles in the band."""
        if self.by == "percentile":
            return (percentile > 100 * self.low) & (percentile <= 100 * self.high)
        if self.by == "scaled":
            return scaled >= self.low
        count = max(1, int(np.ceil((1 - self.low) * len(scaled) - 1e-9)))
        # Tiles as high as the last one counted belong as well: nothing tells them apart.
        return scaled >= np.sort(scaled)[-count]


#: Percentiles within the slide, so that every slide has all three whatever the shape of its attention.
BANDS = tuple(
    Band(f"LRMIL attention {low}-{high} %", "percentile", low / 100, high / 100)
    for low, high in ((50, 75), (75, 90), (90, 100))
)


def choose_band(top: float | None, threshold: float | None) -> Band:
    """The one band of ``--top`` (share of the tiles) or ``--threshold`` (scaled attention, 0..1), as one is given."""
    if top is not None:
        return Band(f"LRMIL attention top {100 * top:.6g} %", "top", 1 - top, 1.0)
    assert threshold is not None, "a band has one end or the other"
    return Band(f"LRMIL attention at least {threshold:.6g}", "scaled", threshold, 1.0)


def merge_tiles(box: np.ndarray, tile_area: float) -> list[Polygon]:
    """Rectangles [N, 4] (left, top, right, bottom) that share edges as polygons with their holes, none smaller than
    :data:`SLIVER` of ``tile_area``, in raster order; tiles that touch at a corner only stay apart."""
    import shapely

    if not len(box):
        return []
    merged = shapely.make_valid(shapely.union_all(shapely.box(*_runs(box).T)))
    parts = [p for p in shapely.get_parts(shapely.get_parts(merged)) if p.geom_type == "Polygon"]
    out = []
    for part in parts:
        rings = [r for r in part.interiors if shapely.Polygon(r).area >= SLIVER * tile_area]
        whole = shapely.Polygon(_corners(part.exterior.coords), [_corners(r.coords) for r in rings])
        if whole.area >= SLIVER * tile_area:
            out.append(whole)
    return sorted(out, key=lambda p: (p.bounds[1], p.bounds[0], p.bounds[3], p.bounds[2]))


def _runs(box: np.ndarray) -> np.ndarray:
    """Neighbours of one row joined to one rectangle each: the union of a tenth of the shapes is the same."""
    own = box[np.lexsort((box[:, 0], box[:, 3], box[:, 1]))]
    new = np.r_[True, (own[1:, 0] != own[:-1, 2]) | (own[1:, 1] != own[:-1, 1]) | (own[1:, 3] != own[:-1, 3])]
    first = np.flatnonzero(new)
    last = np.r_[first[1:], len(own)] - 1
    return np.stack([own[first, 0], own[first, 1], own[last, 2], own[first, 3]], 1)


def _corners(ring: Any) -> np.ndarray:
    """A closed ring [n, 2] without the points where its direction does not change."""
    points = np.asarray(ring)[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = points[turns]
    return np.concatenate([kept, kept[:1]])


def region_features(
    box: np.ndarray,
    scaled: np.ndarray,
    raw: np.ndarray,
    percentile: np.ndarray,
    bands: tuple[Band, ...],
    colormap: str,
    frame: Frame,
    namespace: uuid.UUID,
    key: str,
) -> list[dict[str, Any]]:
    """Locked annotations as GeoJSON features, one for each connected part of each band.

    The measurements have names of their own, because the colours of QuPath's map span all objects with a name
    (qupath/README 2.2).

    Args:
        box: int64 [N, 4] in level-0 px; scaled, raw, percentile: [N]; key: what ids are made of besides the outline.
    """
    import geojson
    import shapely

    centres = shapely.points((box[:, 0] + box[:, 2]) / 2, (box[:, 1] + box[:, 3]) / 2)
    tile_area = float(np.median((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])))
    found = []
    for band, colour in zip(bands, band_colours(len(bands), colormap)):
        own = np.flatnonzero(band.mask(scaled, percentile))
        parts = merge_tiles(box[own], tile_area)
        tree = shapely.STRtree(centres[own])
        for part in parts:
            inside = own[tree.query(part, predicate="contains")]
            outline = geojson.Polygon([_moved(ring.coords, frame) for ring in (part.exterior, *part.interiors)])
            properties = {
                "objectType": "annotation",
                "classification": {"name": band.name, "color": colour},
                "isLocked": True,
                "measurements": {
                    "LRMIL region attention share": float(f"{raw[inside].sum():.7g}"),
                    "LRMIL region highest (0-1)": float(f"{scaled[inside].max():.7g}"),
                    "LRMIL region tiles": len(inside),
                },
            }
            own_id = str(uuid.uuid5(namespace, f"{key}|{band.name}|{part.wkt}"))
            found.append(geojson.Feature(own_id, outline, properties))
    return found


def _moved(ring: Any, frame: Frame) -> list[list[int]]:
    """A ring in level-0 px as QuPath counts."""
    return [[int(x) - frame.x, int(y) - frame.y] for x, y in ring]


def check_colormap(name: str) -> None:
    """Only maps that grow evenly in lightness: they read the same to the colour-blind, and in print.

    Raises:
        UsageError: another map.
    """
    if name not in COLORMAPS:
        raise UsageError(f"--colormap {name}: choose one that the colour-blind can read: {', '.join(COLORMAPS)}")


def band_colours(count: int, colormap: str) -> list[list[int]]:
    """Colours of bands from the lowest to the highest, each three numbers 0..255, spread over a colour map without its
    ends."""
    from matplotlib import colormaps

    places = np.linspace(0.85, 0.2, count)[::-1]  # a single band gets the high end
    return [[round(255 * c) for c in colormaps[colormap](float(p))[:3]] for p in places]
