"""Parts of a slide that the user chose: which tiles lie in them, by area."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: Share of a tile that must lie inside the chosen regions, unless the user says another.
MIN_INSIDE = 0.5


@dataclass(frozen=True)
class Region:
    """Regions of interest of one slide.

    Attributes:
        area: shapely polygon or multipolygon in level-0 px.
        min_inside: share of a tile that must lie inside it.
        about: where it came from, for headers; ``digest`` in it covers area and ``min_inside``.
    """

    area: Any
    min_inside: float
    about: dict[str, Any]

    @property
    def digest(self) -> str:
        return self.about["digest"]


def inside_shares(area: Any, x: np.ndarray, y: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Share, float64 [N] in 0..1, of N rectangles in level-0 px that lies inside ``area`` (shapely), exact by area."""
    import shapely

    left, top = np.asarray(x, np.float64), np.asarray(y, np.float64)
    right, bottom = left + width, top + height
    shares = np.zeros(left.shape)
    low, high, begin, end = area.bounds[0], area.bounds[2], area.bounds[1], area.bounds[3]
    near = np.flatnonzero((left < high) & (right > low) & (top < end) & (bottom > begin))
    # An outline of many thousand points is cut into the rows of the grid first, so that each tile meets a short piece
    # of it.
    for row in np.unique(top[near]):
        own = near[top[near] == row]
        strip = shapely.intersection(area, shapely.box(low - 1, row, high + 1, bottom[own].max()))
        if strip.is_empty:
            continue
        shapely.prepare(strip)
        tiles = shapely.box(left[own], top[own], right[own], bottom[own])
        full = shapely.covers(strip, tiles)
        shares[own[full]] = 1.0
        edge = own[~full]
        cut = shapely.intersection(tiles[~full], strip)
        shares[edge] = shapely.area(cut) / shapely.area(tiles[~full])
    return np.clip(shares, 0.0, 1.0)
