"""Reading tiles and overviews from the pyramid: rectangles in level-0 px in, arrays of a fixed size out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from lrmil_cli.slides.slide import WHITE, Slide

if TYPE_CHECKING:
    import pandas as pd

#: Pixels that one band of an overview may hold before it is shrunk; bounds the memory on slides without a pyramid.
BAND_PIXELS = 4_000_000


def read_tile(slide: Slide, level: int, x: int, y: int, width: int, height: int, tile_px: int) -> np.ndarray:
    """Pixels of one tile.

    Args:
        level: pyramid level to read, by :func:`lrmil_cli.slides.grid.choose_level`.
        x, y, width, height: the tile in level-0 px; what sticks out of the slide is white.
        tile_px: side of the result.

    Returns:
        uint8 [tile_px, tile_px, 3].

    Raises:
        InputError: the slide is damaged there.
    """
    of = slide.levels[level]
    x0, x1 = round(x / of.downsample_x), round((x + width) / of.downsample_x)
    y0, y1 = round(y / of.downsample_y), round((y + height) / of.downsample_y)
    return resample(slide.read(level, x0, y0, max(1, x1 - x0), max(1, y1 - y0)), tile_px)


def resample(pixels: np.ndarray, tile_px: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [tile_px, tile_px, 3]: area filter when shrinking, cubic for the permitted small enlargement."""
    height, width = pixels.shape[:2]
    if (height, width) == (tile_px, tile_px):
        return pixels
    shrink = height >= tile_px and width >= tile_px
    return cv2.resize(pixels, (tile_px, tile_px), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def iter_batches(
    slide: Slide, tiles: pd.DataFrame, level: int, tile_px: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read tiles in table order.

    Yields:
        rows int64 [B] of ``tiles``, pixels uint8 [B, tile_px, tile_px, 3], with B <= batch_size.

    Raises:
        InputError: the slide is damaged at a tile.
    """
    boxes = tiles[["x", "y", "width", "height"]].to_numpy(np.int64)
    for start in range(0, len(boxes), batch_size):
        rows = np.arange(start, min(start + batch_size, len(boxes)))
        yield rows, read_rows(slide, boxes[rows], level, tile_px)


def read_rows(slide: Slide, boxes: Sequence[Sequence[int]], level: int, tile_px: int) -> np.ndarray:
    """uint8 [B, tile_px, tile_px, 3] of rectangles ``x, y, width, height`` in level-0 px."""
    out = np.empty((len(boxes), tile_px, tile_px, 3), np.uint8)
    for i, (x, y, w, h) in enumerate(boxes):
        out[i] = read_tile(slide, level, int(x), int(y), int(w), int(h), tile_px)
    return out


def overview(slide: Slide, mpp: float) -> tuple[np.ndarray, float, float]:
    """The whole slide shrunk by area to at most ``mpp``-fine pixels (between mpp / 2 and mpp um/px).

    The level is read in bands and shrunk by a whole factor, so memory does not grow with level 0.

    Returns:
        uint8 [H, W, 3], level-0 px per pixel along x, along y.

    Raises:
        InputError: the level is damaged.
    """
    fits = [i for i, l in enumerate(slide.levels) if slide.mpp * l.downsample <= mpp * 1.01]
    level = max(fits, key=lambda i: slide.levels[i].downsample, default=0)
    of = slide.levels[level]
    factor = max(1, int(mpp / (slide.mpp * of.downsample) + 0.01))
    out_w, out_h = -(-of.width // factor), -(-of.height // factor)
    out = np.empty((out_h, out_w, 3), np.uint8)
    rows = max(1, BAND_PIXELS // (of.width * factor))
    for top in range(0, out_h, rows):
        n = min(rows, out_h - top)
        band = slide.read(level, 0, top * factor, out_w * factor, n * factor)
        out[top : top + n] = cv2.resize(band, (out_w, n), interpolation=cv2.INTER_AREA) if factor > 1 else band
    if factor > 1:
        _replace_border(out, of.width % factor, of.height % factor, factor)
    return out, factor * of.downsample_x, factor * of.downsample_y


def _replace_border(out: np.ndarray, rest_x: int, rest_y: int, factor: int) -> None:
    """The last column and row average the slide with white padding; undo the padding's share."""
    for rest, view in ((rest_x, out[:, -1]), (rest_y, out[-1])):
        if rest:
            share = rest / factor
            view[:] = np.clip((view.astype(np.float32) - WHITE * (1 - share)) / share + 0.5, 0, 255).astype(np.uint8)
