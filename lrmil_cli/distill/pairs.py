"""Pairs of LR and HR tiles: making the table, and checking that two tables belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.slides.grid import inside_share, make_grid, match_tiles, split_ratio, tile_boxes

if TYPE_CHECKING:
    import pandas as pd

#: An HR tile counts as a child only if at least this share of it lies inside the slide (method 2.4).
MIN_INSIDE = 0.5


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
    import pandas as pd

    check_same_slide(lr_header, hr_header)
    lr_set, hr_set = lr_header["settings"], hr_header["settings"]
    ratio = split_ratio(lr_set["tile_px"], lr_set["mpp"], hr_set["tile_px"], hr_set["mpp"])
    parent, cell = match_tiles(lr["col"], lr["row"], hr["col"], hr["row"], ratio)
    slide = hr_header["slide"]
    grid = make_grid(slide["width"], slide["height"], slide["mpp"], hr_set["mpp"], hr_set["tile_px"])
    inside = inside_share(grid, hr["col"].to_numpy(), hr["row"].to_numpy()) >= MIN_INSIDE
    keep = np.flatnonzero((parent >= 0) & inside)
    if not keep.size:
        raise InputError(f"slide {slide['id']}: no HR tile lies in a kept LR tile; were the two tables tiled with the same tissue settings?")
    of = parent[keep]
    rows = pd.DataFrame({
        "lr_index": of, "hr_index": keep,
        "lr_x": lr["x"].to_numpy()[of], "lr_y": lr["y"].to_numpy()[of],
        "hr_x": hr["x"].to_numpy()[keep], "hr_y": hr["y"].to_numpy()[keep],
        "cell_row": cell[keep] // ratio, "cell_col": cell[keep] % ratio,
    })
    children = np.bincount(of, minlength=len(lr))
    counts = {
        "lr": len(lr), "hr": len(hr), "pairs": len(rows),
        "orphans": int((parent < 0).sum()), "outside": int(((parent >= 0) & ~inside).sum()),
        "matched": int((children > 0).sum()), "unmatched": int((children == 0).sum()),
        "incomplete": int(((children > 0) & (children < ratio**2)).sum()),
        "scale_error_px": scale_error(rows, lr_header, hr_header, ratio),
    }
    return rows, {"ratio": ratio, "counts": counts}


def check_same_slide(lr_header: dict[str, Any], hr_header: dict[str, Any]) -> None:
    """Both tables must be of one file at one scale.

    Raises:
        InputError: they are not.
    """
    a, b = lr_header["slide"], hr_header["slide"]
    if a["fingerprint"] != b["fingerprint"]:
        raise InputError(f"the LR table is of slide {a['id']} and the HR table of {b['id']}, or the file changed in between; "
                         "match tables of one slide")
    if abs(a["mpp"] - b["mpp"]) > 1e-6 * a["mpp"]:
        raise InputError(f"slide {a['id']} was tiled with two scales ({a['mpp']:g} and {b['mpp']:g} um/px); tile both with one --slide-mpp")


def scale_error(rows: pd.DataFrame, lr_header: dict[str, Any], hr_header: dict[str, Any], ratio: int) -> float:
    """The scale check: how far (level-0 px) HR corners lie from where their cell of the LR tile says, at most.

    Both corners are rounded from real numbers, so up to 1 px is rounding; more means that the grids drifted apart.
    """
    side = hr_header["settings"]["tile_px"] * hr_header["settings"]["mpp"] / hr_header["slide"]["mpp"]
    dx = rows["hr_x"] - (rows["lr_x"] + rows["cell_col"] * side)
    dy = rows["hr_y"] - (rows["lr_y"] + rows["cell_row"] * side)
    error = float(np.abs(np.concatenate([dx, dy])).max())
    if error > 1.001:
        raise InputError(f"slide {lr_header['slide']['id']}: HR tiles lie up to {error:.1f} px off the LR grid; "
                         "tile both resolutions again with this version of lrmil")
    return round(error, 3)


def boxes_of(x: np.ndarray, y: np.ndarray, header: dict[str, Any]) -> np.ndarray:
    """Level-0 rectangles int64 [N, 4] (x, y, width, height) of tiles with corners ``x, y`` on the grid of ``header``."""
    slide, settings = header["slide"], header["settings"]
    grid = make_grid(slide["width"], slide["height"], slide["mpp"], settings["mpp"], settings["tile_px"])
    boxes = tile_boxes(grid, np.rint(np.asarray(x) / grid.step).astype(np.int64), np.rint(np.asarray(y) / grid.step).astype(np.int64))
    return np.stack([boxes[k] for k in ("x", "y", "width", "height")], axis=1)
