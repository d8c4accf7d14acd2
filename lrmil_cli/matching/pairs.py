"""Pairs of LR and HR tiles: making the table, and checking that two tables belong together.

HR tiles of our own lie on the LR grid, so that pairing is integer arithmetic. Those of other tools lie anywhere: an HR
tile belongs to the LR tile that holds its centre, and how far it lies off its cell is kept in mind.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.files.foreign import ForeignTiles, level0, origin
from lrmil_cli.slide_places import find_slide
from lrmil_cli.slides.grid import (
    inside_share,
    loose_ratio,
    make_grid,
    match_boxes,
    match_tiles,
    split_ratio,
    tile_boxes,
)
from lrmil_cli.slides.slide import open_slide, reopening

if TYPE_CHECKING:
    import pandas as pd

#: An HR tile counts as a child only if at least this share of it lies inside the slide (matching/README 2).
MIN_INSIDE = 0.5
#: In HR sides: a tile further off its cell (its centre, along x or y) teaches stage 1 what its neighbours show.
MAX_OFFSET = 0.25
#: In HR sides: grids that lie off each other by less are as good as one.
ALIGNED = 0.05


def match_tables(
    lr_header: dict[str, Any], lr: pd.DataFrame, hr_header: dict[str, Any], hr: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Pair the tiles of one slide.

    Returns:
        rows with the columns of the pairs table, in HR order; and the counts
        ``ratio, lr, hr, pairs, orphans, outside, matched, unmatched, incomplete, scale_error_px``.

    Raises:
        InputError: tables of different slides, swapped, of a ratio that is no whole number, or without any pair.
    """
    check_same_slide(lr_header, hr_header)
    lr_set, hr_set = lr_header["settings"], hr_header["settings"]
    ratio = split_ratio(lr_set["tile_px"], lr_set["mpp"], hr_set["tile_px"], hr_set["mpp"])
    hr_col, hr_row = hr["col"].to_numpy(), hr["row"].to_numpy()
    parent, cell = match_tiles(lr["col"].to_numpy(), lr["row"].to_numpy(), hr_col, hr_row, ratio)
    slide = hr_header["slide"]
    grid = make_grid(slide["width"], slide["height"], slide["mpp"], hr_set["mpp"], hr_set["tile_px"])
    inside = inside_share(grid, hr_col, hr_row) >= MIN_INSIDE
    keep = np.flatnonzero((parent >= 0) & inside)
    if not keep.size:
        raise InputError(
            f"slide {slide['id']}: no HR tile lies in a kept LR tile; "
            "were the two tables tiled with the same tissue settings?"
        )
    rows = _rows(lr, hr["x"].to_numpy(), hr["y"].to_numpy(), parent, cell, keep, ratio)
    rows["hr_tissue"] = hr["tissue"].to_numpy()[keep]
    counts: dict[str, float] = dict(_counts(len(lr), parent, inside, cell, ratio))
    counts["scale_error_px"] = scale_error(rows, lr_header, hr_header, ratio)
    return rows, {"ratio": ratio, "counts": counts}


def match_foreign(
    lr_header: dict[str, Any], lr: pd.DataFrame, tiles: ForeignTiles, table: str | Path = "the LR table"
) -> tuple[pd.DataFrame, dict[str, Any], dict[str, Any]]:
    """Pair the LR tiles of a slide with HR tiles that another tool cut.

    Args:
        table: what ``lr_header`` was read from, for messages.

    Returns:
        rows and counts as :func:`match_tables`, with ``straddling`` (tiles that stick out of their LR tile), ``shared``
        (tiles in a cell that has another), ``misaligned`` (off by more than :data:`MAX_OFFSET`) and ``offset`` (median,
        in HR sides) in place of ``scale_error_px``; and a header for the HR tiles, with what later steps read of a tile
        table's.

    Raises:
        InputError: tiles of another slide, of no known or no fitting size, or without any pair.
    """
    slide, lr_set = lr_header["slide"], lr_header["settings"]
    coords, side = level0(tiles, slide["mpp"], lambda: _downsamples(slide, table))
    if side is None:
        raise InputError(
            f"{tiles.path}: {tiles.tool} feature files do not say how large a tile is; match its coordinate file "
            "(the folder `patches`) instead, the features are found by the same row"
        )
    _check_place(tiles, coords, slide)
    step = lr_set["tile_px"] * lr_set["mpp"] / slide["mpp"]
    ratio = loose_ratio(step, side)
    if ratio is None:
        raise InputError(f"{tiles.path}: {_misfit(lr_set['mpp'], step, side)}")
    x, y = coords.T
    parent, cell, offset = match_boxes(lr["col"].to_numpy(), lr["row"].to_numpy(), step, x, y, side, ratio)
    inside = _inside(x, slide["width"], side) * _inside(y, slide["height"], side) >= MIN_INSIDE
    keep = np.flatnonzero((parent >= 0) & inside)
    if not keep.size:
        raise InputError(
            f"{tiles.path}: none of its tiles lies in an LR tile of slide {slide['id']}; is it of another slide?"
        )
    rows = _rows(lr, x, y, parent, cell, keep, ratio)
    # Where the tile begins and ends inside its LR tile.
    place = np.stack([cell[keep] % ratio, cell[keep] // ratio], 1)
    start = offset[keep] + (place + 0.5) * step / ratio - side / 2
    off, spare = np.abs(offset[keep]).max(axis=1) / side, max(1.0, ALIGNED * side)
    counts: dict[str, float] = dict(_counts(len(lr), parent, inside, cell, ratio))
    counts |= {
        "straddling": int(((start < -spare) | (start + side > step + spare)).any(axis=1).sum()),
        "shared": len(keep) - len(np.unique(parent[keep] * ratio**2 + cell[keep])),
        "misaligned": int((off > MAX_OFFSET).sum()),
        "offset": round(float(np.median(off)), 3),
    }
    tile_px = tiles.tile_px or lr_set["tile_px"]  # where it is not said, stage 1 reads HR tiles as large as LR tiles
    settings = {
        "mpp": side * slide["mpp"] / tile_px,
        "tile_px": tile_px,
        "side_level0_px": side,
        "made_by": tiles.made_by,
        "overlap": tiles.overlap,
        "allow_upsample": True,
    }
    header = {
        "kind": "tiles",
        "version": lr_header["version"],
        "slide": slide,
        "settings": settings,
        "history": [origin(tiles)],
    }
    return rows, {"ratio": ratio, "counts": counts}, header


def _rows(
    lr: pd.DataFrame, x: np.ndarray, y: np.ndarray, parent: np.ndarray, cell: np.ndarray, keep: np.ndarray, ratio: int
) -> pd.DataFrame:
    """The rows of a pairs table: of the HR tiles with corners ``x, y`` those in ``keep``."""
    import pandas as pd

    of = parent[keep]
    return pd.DataFrame(
        {
            "lr_index": of,
            "hr_index": keep,
            "lr_x": lr["x"].to_numpy()[of],
            "lr_y": lr["y"].to_numpy()[of],
            "hr_x": x[keep],
            "hr_y": y[keep],
            "cell_row": cell[keep] // ratio,
            "cell_col": cell[keep] % ratio,
        }
    )


def _counts(n_lr: int, parent: np.ndarray, inside: np.ndarray, cell: np.ndarray, ratio: int) -> dict[str, int]:
    """What became of all LR and HR tiles. A cell counts once, however many tiles lie in it."""
    keep = (parent >= 0) & inside
    taken = np.zeros((n_lr, ratio**2), bool)
    taken[parent[keep], cell[keep]] = True
    filled = taken.sum(1)
    return {
        "lr": n_lr,
        "hr": len(parent),
        "pairs": int(keep.sum()),
        "orphans": int((parent < 0).sum()),
        "outside": int(((parent >= 0) & ~inside).sum()),
        "matched": int((filled > 0).sum()),
        "unmatched": int((filled == 0).sum()),
        "incomplete": int(((filled > 0) & (filled < ratio**2)).sum()),
    }


def _inside(start: np.ndarray, length: int, side: float) -> np.ndarray:
    """Share of each tile that lies inside the slide, along one axis."""
    return np.clip(np.minimum(start + side, length) - np.maximum(start, 0), 0, None) / side


def _downsamples(slide: dict[str, Any], table: str | Path) -> list[float]:
    path = find_slide(slide, table)
    with open_slide(path, slide_id=slide["id"], slide_mpp=slide["mpp"], **reopening(slide)) as opened:
        return [level.downsample for level in opened.levels]


def _check_place(tiles: ForeignTiles, coords: np.ndarray, slide: dict[str, Any]) -> None:
    """A file of another tool has no fingerprint; size and corners must at least be possible on this slide.

    Raises:
        InputError: they are not.
    """
    own = (slide["width"], slide["height"])
    if tiles.size and any(abs(a - b) > 0.01 * b for a, b in zip(tiles.size, own)):
        raise InputError(
            f"{tiles.path}: of a slide of {tiles.size[0]:.0f} x {tiles.size[1]:.0f} px, "
            f"but {slide['id']} has {own[0]} x {own[1]}; match files of one slide"
        )
    if (coords >= own).any():
        raise InputError(
            f"{tiles.path}: tiles lie beyond the {own[0]} x {own[1]} px of slide {slide['id']}; "
            "match files of one slide"
        )


def _misfit(mpp: float, step: float, side: float) -> str:
    """Why two sides do not fit, and the ``--mpp`` of the LR side that would."""
    if step < 1.5 * side:
        return (
            f"its tiles ({side:.0f} level-0 px) are not smaller than the LR tiles ({step:.0f} px); "
            "are the two swapped? (the order is LR HR)"
        )
    best = max(2, round(step / side))
    return (
        f"an LR tile ({step:.0f} level-0 px) holds {step / side:.4g} of its tiles ({side:.0f} px) along a side; "
        f"this must be a whole number to within 2 %: tile the LR side with --mpp {mpp * best * side / step:.4g}"
    )


def check_same_slide(lr_header: dict[str, Any], hr_header: dict[str, Any]) -> None:
    """Both tables must be of one file at one scale.

    Raises:
        InputError: they are not.
    """
    a, b = lr_header["slide"], hr_header["slide"]
    if a["fingerprint"] != b["fingerprint"]:
        raise InputError(
            f"the LR table is of slide {a['id']} and the HR table of {b['id']}, or the file changed in between; "
            "match tables of one slide"
        )
    if abs(a["mpp"] - b["mpp"]) > 1e-6 * a["mpp"]:
        raise InputError(
            f"slide {a['id']} was tiled with two scales ({a['mpp']:g} and {b['mpp']:g} um/px); "
            "tile both with one --slide-mpp"
        )


def scale_error(rows: pd.DataFrame, lr_header: dict[str, Any], hr_header: dict[str, Any], ratio: int) -> float:
    """The scale check: how far (level-0 px) HR corners lie from where their cell of the LR tile says, at most.

    Both corners are rounded from real numbers, so up to 1 px is rounding; more means that the grids drifted apart.
    """
    side = hr_header["settings"]["tile_px"] * hr_header["settings"]["mpp"] / hr_header["slide"]["mpp"]
    dx = rows["hr_x"] - (rows["lr_x"] + rows["cell_col"] * side)
    dy = rows["hr_y"] - (rows["lr_y"] + rows["cell_row"] * side)
    error = float(np.abs(np.concatenate([dx, dy])).max())
    if error > 1.001:
        raise InputError(
            f"slide {lr_header['slide']['id']}: HR tiles lie up to {error:.1f} px off the LR grid; "
            "tile both resolutions again with this version of lrmil"
        )
    return round(error, 3)


def boxes_of(x: np.ndarray, y: np.ndarray, header: dict[str, Any]) -> np.ndarray:
    """Level-0 rectangles int64 [N, 4] (x, y, width, height) of tiles with corners ``x, y``.

    They lie on the grid of ``header``, or have the side it gives where they lie on no grid of ours.
    """
    slide, settings = header["slide"], header["settings"]
    if "side_level0_px" in settings:
        side = np.full(len(x), round(settings["side_level0_px"]), np.int64)
        return np.stack([np.asarray(x, np.int64), np.asarray(y, np.int64), side, side], axis=1)
    grid = make_grid(slide["width"], slide["height"], slide["mpp"], settings["mpp"], settings["tile_px"])
    col, row = (np.rint(np.asarray(v) / grid.step).astype(np.int64) for v in (x, y))
    boxes = tile_boxes(grid, col, row)
    return np.stack([boxes[k] for k in ("x", "y", "width", "height")], axis=1)


def cell_offsets(hr_boxes: np.ndarray, lr_boxes: np.ndarray, cell: np.ndarray, ratio: int) -> np.ndarray:
    """How far (in HR sides, along x or y) the centre of each HR tile lies off the centre of its cell, float64 [N].

    Args:
        hr_boxes: int64 [N, 4]; lr_boxes: int64 [N, 4], of each tile's LR tile; cell: int64 [N].
    """
    place = np.stack([cell % ratio, cell // ratio], axis=1) + 0.5
    off = hr_boxes[:, :2] + hr_boxes[:, 2:] / 2 - lr_boxes[:, :2] - place * lr_boxes[:, 2:] / ratio
    return np.abs(off / hr_boxes[:, 2:]).max(axis=1)
