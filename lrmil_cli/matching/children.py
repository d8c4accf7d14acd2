"""Finer tiles that lie in coarser ones, straight from a slide: what a prediction needs of matching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lrmil_cli.errors import NoTissueError
from lrmil_cli.matching.pairs import MIN_INSIDE
from lrmil_cli.slides.grid import inside_share, make_grid, match_tiles
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import TileSettings, TissueMap, find_tiles


@dataclass(frozen=True)
class Children:
    """Finer tiles of a slide that lie in coarser ones.

    Attributes:
        tiles: columns of the tile table; level: of the pyramid, to read them from.
        parent: int64 [N], row of the coarser tile that each lies in; cell: int64 [N], its cell there, row-major.
    """

    tiles: dict[str, np.ndarray]
    level: int
    parent: np.ndarray
    cell: np.ndarray


def find_children(
    slide: Slide,
    low: dict[str, np.ndarray],
    settings: TileSettings,
    ratio: int,
    tissue: TissueMap | None,
    min_inside: float = MIN_INSIDE,
    *,
    chosen: bool = False,
) -> Children:
    """The pairs that `tile` and `match` would give, straight from the slide; none where none has tissue enough.

    Args:
        low: columns ``col, row`` of the coarser tiles; settings: of the finer ones, ``ratio`` of them along a side.
        tissue: of the slide, where it was looked for by the same settings before.
        min_inside: share of a tile that must lie on the slide.
        chosen: the user chose where the coarser tiles lie (:func:`lrmil_cli.slides.tiles.find_tiles`).

    Raises:
        InputError: the slide is damaged, or too coarse.
    """
    try:
        tiles, level, _ = find_tiles(slide, settings, tissue=tissue, chosen=chosen)
    except NoTissueError:  # its rule for tissue may be the stricter one
        nothing = np.empty(0, np.int64)
        return Children(dict.fromkeys(("x", "y", "width", "height", "col", "row"), nothing), 0, nothing, nothing)
    parent, cell = match_tiles(low["col"], low["row"], tiles["col"], tiles["row"], ratio)
    grid = make_grid(slide.width, slide.height, slide.mpp, settings.mpp, settings.tile_px)
    keep = np.flatnonzero((parent >= 0) & (inside_share(grid, tiles["col"], tiles["row"]) >= min_inside))
    return Children({k: v[keep] for k, v in tiles.items()}, level, parent[keep], cell[keep])
