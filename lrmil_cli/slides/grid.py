"""The tile grid and the level rule: pure geometry, no pixels.

The grid is anchored at (0, 0) and steps in real numbers, so that grids of different mpp on one slide never drift
apart (slides/README 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.units import Level0Px, LevelPx, Mpp

#: A level (or the slide itself) may be this much coarser than the mpp asked for and still count as equal to it:
#: scanners call 0.5031 um/px "20x", and a level's real downsample is known to a pixel only.
LEVEL_TOLERANCE = 0.01
#: Level 0 may be this much coarser before reading it counts as enlarging (slides/README 2.3).
UPSAMPLE_TOLERANCE = 0.05
#: Sides of tiles of other tools follow nominal magnifications: "20x" is 0.46 to 0.55 um/px.
RATIO_TOLERANCE = 0.02


@dataclass(frozen=True)
class Grid:
    """All tiles of a slide at one mpp. ``step`` is the side of a tile in level-0 px, a real number.

    Attributes:
        cols, rows: tiles along x and y; the last ones may stick out of the slide.
        width, height: of the slide.
    """

    step: float
    cols: int
    rows: int
    width: Level0Px
    height: Level0Px


def make_grid(width: Level0Px, height: Level0Px, slide_mpp: Mpp, mpp: Mpp, tile_px: LevelPx) -> Grid:
    """The grid of tiles of ``tile_px`` pixels at ``mpp`` over a slide of ``width`` x ``height`` level-0 px."""
    step = tile_px * mpp / slide_mpp
    return Grid(step, _count(width, step), _count(height, step), width, height)


def _count(length: Level0Px, step: float) -> int:
    """Tiles that start inside ``length``; a sliver below half a pixel is rounding, not a tile."""
    return max(1, int(np.ceil((length - 0.5) / step)))


def corners(index: np.ndarray, step: float) -> np.ndarray:
    """Level-0 corner ``round(i * step)`` of grid indices, int64, halves rounded up."""
    return np.floor(np.asarray(index, dtype=np.float64) * step + 0.5).astype(np.int64)


def finer(grid: Grid, pieces: int) -> Grid:
    """The grid whose cells are a ``pieces``-th of a tile wide.

    A power of two: then every ``pieces``-th of its corners is one of the grid's, to the last bit.
    """
    step = grid.step / pieces
    return Grid(step, _count(grid.width, step), _count(grid.height, step), grid.width, grid.height)


def tile_boxes(grid: Grid, col: np.ndarray, row: np.ndarray, span: int = 1) -> dict[str, np.ndarray]:
    """Integer rectangles of tiles of ``span`` x ``span`` cells: ``x, y, width, height`` in level-0 px, each int64 [N].

    Neighbours share an edge exactly: the width is the distance of two rounded corners.
    """
    x, y = corners(col, grid.step), corners(row, grid.step)
    return {
        "x": x,
        "y": y,
        "width": corners(np.asarray(col) + span, grid.step) - x,
        "height": corners(np.asarray(row) + span, grid.step) - y,
    }


def inside_share(grid: Grid, col: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Share of each tile's area that lies inside the slide, float64 [N] in 0..1."""

    def axis(index: np.ndarray, length: Level0Px) -> np.ndarray:
        start = np.asarray(index, dtype=np.float64) * grid.step
        return np.clip(np.minimum(start + grid.step, length) - start, 0, None) / grid.step

    return axis(col, grid.width) * axis(row, grid.height)


def choose_level(
    downsamples: Sequence[float], slide_mpp: Mpp, mpp: Mpp, *, allow_upsample: bool = False, where: str = "slide"
) -> int:
    """The coarsest level that is still as fine as ``mpp`` (level rule: never a coarser level).

    Raises:
        InputError: even level 0 is too coarse and ``allow_upsample`` is off.
    """
    if slide_mpp > mpp * (1 + UPSAMPLE_TOLERANCE) and not allow_upsample:
        raise InputError(
            f"{where}: {mpp:g} um/px was asked for, but the slide has {slide_mpp:.4g} um/px at its finest; "
            f"--allow-upsample enlarges pixels, and where --mpp is an option, {slide_mpp:.3g} or coarser will do"
        )
    fine = [i for i, d in enumerate(downsamples) if slide_mpp * d <= mpp * (1 + LEVEL_TOLERANCE)]
    return max(fine, key=lambda i: downsamples[i], default=0)


def split_ratio(tile_px_lr: LevelPx, mpp_lr: Mpp, tile_px_hr: LevelPx, mpp_hr: Mpp) -> int:
    """HR tiles along one side of an LR tile: ``r = (P_l mpp_l) / (P_h mpp_h)``.

    Raises:
        InputError: r is no whole number of 2 or more.
    """
    r = (tile_px_lr * mpp_lr) / (tile_px_hr * mpp_hr)
    if r < 1.5:
        raise InputError(
            f"the LR tiles ({mpp_lr:g} um/px, {tile_px_lr} px) are not larger than the HR tiles ({mpp_hr:g} um/px, "
            f"{tile_px_hr} px); are the two tables swapped? (the order is LR HR)"
        )
    if abs(r - round(r)) > 1e-6 * r:
        raise InputError(
            f"an LR tile ({mpp_lr:g} um/px, {tile_px_lr} px) holds {r:.4g} HR tiles ({mpp_hr:g} um/px, "
            f"{tile_px_hr} px) along a side; this must be a whole number, choose --mpp so that it is"
        )
    return round(r)


def match_tiles(
    lr_col: np.ndarray, lr_row: np.ndarray, hr_col: np.ndarray, hr_row: np.ndarray, ratio: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pair HR tiles with the LR tile they lie in (slides/README 2.4), by integer arithmetic and one sorted search.

    Args:
        lr_col, lr_row: int [N_l], hr_col, hr_row: int [N_h], grid indices; ratio: r.

    Returns:
        parent: int64 [N_h], row of the LR table, -1 where the LR tile was not kept;
        cell: int64 [N_h], ``cell_row * r + cell_col``, row-major inside the LR tile.

    Raises:
        InputError: an LR tile stands twice in its table.
    """
    lr_col, lr_row, hr_col, hr_row = (np.asarray(a, dtype=np.int64) for a in (lr_col, lr_row, hr_col, hr_row))
    cell = (hr_row % ratio) * ratio + hr_col % ratio
    if not lr_col.size or not hr_col.size:
        return np.full(hr_col.size, -1, np.int64), cell
    stride = 1 + max(lr_col.max(), (hr_col // ratio).max())
    lr_key = lr_row * stride + lr_col
    order = np.argsort(lr_key, kind="stable")
    ordered = lr_key[order]
    if (ordered[1:] == ordered[:-1]).any():
        raise InputError("an LR tile stands twice in its table; run `lrmil tile` again")
    key = (hr_row // ratio) * stride + hr_col // ratio
    at = np.minimum(np.searchsorted(ordered, key), ordered.size - 1)
    return np.where(ordered[at] == key, order[at], -1), cell


def loose_ratio(lr_side: float, hr_side: float) -> int | None:
    """HR tiles along one side of an LR tile for grids that were not made for each other; None where they do not fit.

    Args:
        lr_side, hr_side: in one unit. r must be 2 or more, and a whole number to within :data:`RATIO_TOLERANCE`.
    """
    r = lr_side / hr_side
    return round(r) if r > 1.5 and abs(r - round(r)) <= RATIO_TOLERANCE * round(r) else None


def match_boxes(
    lr_col: np.ndarray, lr_row: np.ndarray, step: float, x: np.ndarray, y: np.ndarray, side: float, ratio: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pair HR tiles of any grid with the LR tile that holds their centre: the one they overlap most.

    Args:
        lr_col, lr_row: int [N_l], grid indices; step: side of an LR tile in level-0 px.
        x, y: [N_h], corners in level-0 px; side: of an HR tile, in level-0 px; ratio: r.

    Returns:
        parent, cell: int64 [N_h], as :func:`match_tiles`; the cell is the one of r x r that holds the centre.
        offset: float64 [N_h, 2], from the centre of that cell to the centre of the tile along x, y, in level-0 px.
    """
    centre = np.stack([np.asarray(x), np.asarray(y)], axis=1) + side / 2
    small = step / ratio
    index = np.floor(centre / small).astype(np.int64)
    parent, cell = match_tiles(lr_col, lr_row, index[:, 0], index[:, 1], ratio)
    # An index below zero would be taken for another row's last column.
    return np.where((index < 0).any(axis=1), -1, parent), cell, centre - (index + 0.5) * small
