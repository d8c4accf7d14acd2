"""Reading tiles and overviews from the pyramid: rectangles in level-0 px in, arrays of a fixed size out."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.slides.blocks import Blocks, new_block, paste_block
from lrmil_cli.slides.samples import WHITE
from lrmil_cli.slides.slide import Slide

#: Pixels that one band of an overview may hold before it is shrunk; bounds the memory on slides without a pyramid.
BAND_PIXELS = 4_000_000
#: Tiles that a reader thread is given at a time: enough to make its start cheap, few enough to keep all at work.
TASK_TILES = 8
#: What the tiles read at a time may take, where a batch does not take more.
CHUNK_BYTES = 64_000_000
#: What the blocks kept for tiles to come may take; beyond it the slide is read in stripes.
KEPT_BYTES = 64_000_000


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
    ((x0, y0, x1, y1),) = level_rects(slide, level, np.array([[x, y, width, height]])).tolist()
    return resample(slide.read(level, x0, y0, x1 - x0, y1 - y0), tile_px)


def level_rects(slide: Slide, level: int, boxes: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom in px of a level, int64 [N, 4], of rectangles ``x, y, width, height`` in level-0 px."""
    of = slide.levels[level]
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    rects = np.rint(corners / [of.downsample_x, of.downsample_y, of.downsample_x, of.downsample_y]).astype(np.int64)
    rects[:, 2:] = np.maximum(rects[:, 2:], rects[:, :2] + 1)
    return rects


def resample(pixels: np.ndarray, tile_px: int, out: np.ndarray | None = None) -> np.ndarray:
    """uint8 [H, W, 3] -> [tile_px, tile_px, 3]: area filter when shrinking, cubic for the permitted small
    enlargement."""
    height, width = pixels.shape[:2]
    if (height, width) == (tile_px, tile_px):
        if out is None:
            return pixels
        out[:] = pixels
        return out
    shrink = height >= tile_px and width >= tile_px
    return cv2.resize(pixels, (tile_px, tile_px), dst=out, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def iter_batches(
    slide: Slide, boxes: np.ndarray, level: int, tile_px: int, batch_size: int, bad: list[int] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read tiles in raster order, with the slide's reader threads; each block of the file is decoded once.

    Args:
        boxes: int64 [N, 4], ``x, y, width, height`` in level-0 px, in any order.
        bad: filled with the rows of tiles that cannot be decoded, which are then left out, where the slide says so
            (``on_bad_tile``); without it they are an error all the same.

    Yields:
        rows int64 [B] of ``boxes``, pixels uint8 [B, tile_px, tile_px, 3], with B <= batch_size.

    Raises:
        InputError: the slide is damaged at a tile.
    """
    skip = slide.on_bad_tile == "skip" and bad is not None
    rects = level_rects(slide, level, np.asarray(boxes, np.int64).reshape(-1, 4))
    # Four tasks for each thread at a time, as far as memory goes.
    wanted, affordable = 4 * TASK_TILES * slide.workers / batch_size, CHUNK_BYTES // (batch_size * tile_px**2 * 3)
    chunk = batch_size * max(1, min(round(wanted), affordable))
    blocks = slide.blocks(level)
    for order in _raster(rects, blocks):
        band = None if blocks is None else _Band(slide, level, blocks, rects[order], skip)
        for start in range(0, len(order), chunk):
            rows = order[start : start + chunk]
            out = new_block(len(rows) * tile_px, tile_px).reshape(-1, tile_px, tile_px, 3)
            failed = _read_regions(slide, level, rects[rows], out, skip) if band is None else band.read(start, out)
            if failed:
                assert bad is not None, "tiles are skipped only where somebody counts them"
                bad.extend(rows[failed].tolist())
                whole = np.delete(np.arange(len(rows)), failed)
                rows, out = rows[whole], out[whole]
            for k in range(0, len(rows), batch_size):
                yield rows[k : k + batch_size], out[k : k + batch_size]


def without_bad(count: int, bad: list[int], where: Path) -> np.ndarray:
    """Rows int64 of those of ``count`` tiles that are not ``bad``.

    Raises:
        InputError: there are none.
    """
    if len(bad) == count:
        raise InputError(f"{where}: none of {count} tiles can be decoded; copy or export the slide again")
    return np.delete(np.arange(count), bad)


def _raster(rects: np.ndarray, blocks: Blocks | None) -> Iterator[np.ndarray]:
    """Rows of ``rects`` in raster order, within stripes so narrow that two rows of their blocks stay below
    :data:`KEPT_BYTES`."""
    stripe = np.zeros(len(rects), np.int64)
    if blocks is not None and blocks.cols > 1:
        stripe = np.maximum(rects[:, 0], 0) // max(4 * blocks.width, KEPT_BYTES // (6 * blocks.height))
    order = np.lexsort((rects[:, 0], rects[:, 1], stripe))
    yield from np.split(order, np.flatnonzero(np.diff(stripe[order])) + 1)


def _read_regions(slide: Slide, level: int, rects: np.ndarray, out: np.ndarray, skip: bool) -> list[int]:
    """Tile by tile, by the library that opened the slide. Only OpenSlide gains by threads; zarr works in one of its
    own.

    Returns:
        with ``skip``, which tiles could not be decoded.
    """
    failed: list[int] = []

    def read(k: int) -> None:
        x0, y0, x1, y1 = rects[k].tolist()
        try:
            resample(slide.read(level, x0, y0, x1 - x0, y1 - y0), out.shape[1], out[k])
        except InputError:
            if not skip:
                raise
            failed.append(k)

    slide.each(read, range(len(rects)), threads=slide.reader == "openslide")
    return sorted(failed)


class _Band:
    """Tiles of one level in raster order, cut from blocks that are decoded once and kept as long as tiles to come need
    them."""

    def __init__(self, slide: Slide, level: int, blocks: Blocks, rects: np.ndarray, skip: bool):
        size = slide.levels[level]
        self.slide, self.level, self.blocks, self.skip = slide, level, blocks, skip
        self.rects = rects.tolist()
        spans = _spans(blocks, size.width, size.height, rects)
        self.needs = [
            [r * blocks.cols + c for r in range(r0, r1 + 1) for c in range(c0, c1 + 1)]
            for c0, c1, r0, r1 in spans.tolist()
        ]
        self.uses = _uses(blocks, spans).tolist()
        fits = np.concatenate([rects[:, :2] >= 0, rects[:, 2:] <= [size.width, size.height]], axis=1)
        self.inside: list[bool] = np.asarray(fits.all(axis=1)).tolist()
        # Pixels of a block (None where it cannot be decoded), and the memory to use again.
        self.kept: dict[int, tuple[np.ndarray | None, np.ndarray]] = {}
        self.free: list[np.ndarray] = []
        self.scratch: list[np.ndarray] = []
        self.lock = threading.Lock()
        self.largest = int(((rects[:, 2] - rects[:, 0]) * (rects[:, 3] - rects[:, 1])).max(initial=0)) * 3

    def read(self, start: int, out: np.ndarray) -> list[int]:
        """The tiles from number ``start`` on into ``out``, uint8 [B, P, P, 3]. Call in order, without gaps.

        Returns:
            with ``skip``, which of them could not be decoded.
        """
        failed: list[int] = []
        tasks = [range(k, min(k + TASK_TILES, len(out))) for k in range(0, len(out), TASK_TILES)]
        # A block belongs to the first task with a tile on it; a tile whose blocks belong to several is cut when all are
        # there.
        owner: dict[int, range] = {}
        for task in tasks:
            for k in task:
                for index in self.needs[start + k]:
                    owner.setdefault(index, task)
        late: list[int] = []

        def decode_and_cut(task: range) -> None:
            for k in task:
                tile, needs = start + k, self.needs[start + k]
                if self._is_block(tile, out[k]):
                    pixels = self._decode(needs[0], out[k])
                    if pixels is None:
                        failed.append(k)
                    else:
                        self._cut(tile, out[k], [(needs[0], pixels)])
                    continue
                for index in needs:
                    if owner[index] is task and index not in self.kept:
                        memory = self.free.pop() if self.free else new_block(self.blocks.height, self.blocks.width)
                        self.kept[index] = self._decode(index, memory), memory
                if all(index in self.kept for index in needs):
                    cut(k)
                else:
                    late.append(k)

        def cut(k: int) -> None:
            if not self._cut_kept(start + k, out[k]):
                failed.append(k)

        self.slide.each(decode_and_cut, tasks)
        self.slide.each(cut, late)
        return sorted(failed)

    def _decode(self, index: int, memory: np.ndarray) -> np.ndarray | None:
        """Pixels of a block; with ``skip``, None where it cannot be decoded."""
        try:
            return self.slide.block(self.level, index, memory)
        except InputError:
            if not self.skip:
                raise
            return None

    def _cut_kept(self, tile: int, out: np.ndarray) -> bool:
        """One tile from kept blocks; False where one of them could not be decoded.

        What no tile needs any more is free at once, while it is in the processor's cache.
        """
        needs = self.needs[tile]
        parts = [(i, pixels) for i in needs if (pixels := self.kept[i][0]) is not None]
        whole = len(parts) == len(needs)
        if whole:
            self._cut(tile, out, parts)
        with self.lock:
            for index in needs:
                self.uses[index] -= 1
                if not self.uses[index]:
                    self.free.append(self.kept.pop(index)[1])
        return whole

    def _is_block(self, tile: int, out: np.ndarray) -> bool:
        """Whether a tile is one block and nothing else, so that it can be decoded in place."""
        x0, y0, x1, y1 = self.rects[tile]
        needs = self.needs[tile]
        return (
            len(needs) == 1
            and self.uses[needs[0]] == 1
            and needs[0] not in self.kept
            and self.inside[tile]
            and (y1 - y0, x1 - x0, 3) == (self.blocks.height, self.blocks.width, 3) == out.shape
        )

    def _cut(self, tile: int, out: np.ndarray, parts: list[tuple[int, np.ndarray]]) -> None:
        """One tile from its blocks, ``parts`` (index, pixels), into ``out`` [P, P, 3]."""
        if len(parts) == 1 and parts[0][1] is out:
            return
        x0, y0, x1, y1 = self.rects[tile]
        if len(parts) == 1 and self.inside[tile]:
            x, y, _, _ = self.blocks.rect(parts[0][0])
            resample(parts[0][1][y0 - y : y1 - y, x0 - x : x1 - x], len(out), out)
            return
        factor = self._factor(tile, len(out))
        if factor > 1:
            for index, pixels in parts:
                _shrink_part(out, factor, x0, y0, pixels, *self.blocks.rect(index)[:2])
            return
        shape = (y1 - y0, x1 - x0, 3)
        if out.shape == shape:
            self._paste(tile, out, parts)
            return
        memory = self.scratch.pop() if self.scratch else np.empty(self.largest, np.uint8)
        whole = memory[: math.prod(shape)].reshape(shape)
        self._paste(tile, whole, parts)
        resample(whole, len(out), out)
        self.scratch.append(memory)

    def _paste(self, tile: int, whole: np.ndarray, parts: list[tuple[int, np.ndarray]]) -> None:
        """One tile in px of the level, ``whole`` [h, w, 3], put together from its blocks."""
        if not self.inside[tile]:
            whole[:] = WHITE
        x0, y0, _, _ = self.rects[tile]
        for index, pixels in parts:
            paste_block(whole, x0, y0, pixels, *self.blocks.rect(index)[:2])

    def _factor(self, tile: int, tile_px: int) -> int:
        """How many times a tile is shrunk where its blocks can be shrunk one by one, in the processor's cache; else 0.

        They can where no pixel of the tile holds pixels of two blocks, nor of the margin.
        """
        x0, y0, x1, y1 = self.rects[tile]
        factor = (x1 - x0) // tile_px
        across, down = self.blocks.cols > 1, self.blocks.rows > 1
        edges = (x0, y0, self.blocks.width if across else 0, self.blocks.height if down else 0)
        fits = (x1 - x0, y1 - y0) == (factor * tile_px,) * 2 and not any(e % max(1, factor) for e in edges)
        return factor if fits and self.inside[tile] else 0


def _shrink_part(out: np.ndarray, factor: int, x: int, y: int, block: np.ndarray, block_x: int, block_y: int) -> None:
    """As :func:`paste_block`, shrunk by ``factor`` on the way; ``out`` lies at (x, y), and all edges are multiples of
    ``factor``."""
    side = len(out) * factor
    top, bottom = max(y, block_y), min(y + side, block_y + block.shape[0])
    left, right = max(x, block_x), min(x + side, block_x + block.shape[1])
    place = out[(top - y) // factor : (bottom - y) // factor, (left - x) // factor : (right - x) // factor]
    part = block[top - block_y : bottom - block_y, left - block_x : right - block_x]
    cv2.resize(part, place.shape[1::-1], dst=place, interpolation=cv2.INTER_AREA)


def _spans(blocks: Blocks, width: int, height: int, rects: np.ndarray) -> np.ndarray:
    """First and last column, first and last row of the blocks under each rectangle of a level, int64 [N, 4]; -1 for the
    last ones where a rectangle lies outside."""
    left, top = np.maximum(rects[:, 0], 0), np.maximum(rects[:, 1], 0)
    right, bottom = np.minimum(rects[:, 2], width), np.minimum(rects[:, 3], height)
    spans = np.stack(
        [left // blocks.width, (right - 1) // blocks.width, top // blocks.height, (bottom - 1) // blocks.height], 1
    )
    spans[(right <= left) | (bottom <= top)] = [0, -1, 0, -1]
    return spans


def _uses(blocks: Blocks, spans: np.ndarray) -> np.ndarray:
    """How many of the spans hold each block, int64 [blocks]: signs at the corners of the spans, summed up."""
    signs = np.zeros((blocks.rows + 1, blocks.cols + 1), np.int64)
    left, right, top, bottom = spans.T
    for row, col, sign in ((top, left, 1), (top, right + 1, -1), (bottom + 1, left, -1), (bottom + 1, right + 1, 1)):
        np.add.at(signs, (row, col), sign)
    return signs.cumsum(0).cumsum(1)[:-1, :-1].ravel()


def read_rows(slide: Slide, boxes: np.ndarray, level: int, tile_px: int) -> np.ndarray:
    """uint8 [B, tile_px, tile_px, 3] of rectangles ``x, y, width, height`` in level-0 px, in their order."""
    out = np.empty((len(boxes), tile_px, tile_px, 3), np.uint8)
    for rows, pixels in iter_batches(slide, boxes, level, tile_px, max(1, len(boxes))):
        out[rows] = pixels
    return out


def overview(slide: Slide, mpp: float) -> tuple[np.ndarray, float, float]:
    """The whole slide shrunk by area to at most ``mpp``-fine pixels (between mpp / 2 and mpp um/px).

    The level is read in bands and shrunk by a whole factor, so memory does not grow with level 0.

    Returns:
        uint8 [H, W, 3], level-0 px per pixel along x, along y.

    Raises:
        InputError: the level is damaged; where the slide skips bad tiles, they are glass.
    """
    fits = [i for i, l in enumerate(slide.levels) if slide.mpp * l.downsample <= mpp * 1.01]
    level = max(fits, key=lambda i: slide.levels[i].downsample, default=0)
    of = slide.levels[level]
    factor = max(1, int(mpp / (slide.mpp * of.downsample) + 0.01))
    out_w, out_h = -(-of.width // factor), -(-of.height // factor)
    out = np.empty((out_h, out_w, 3), np.uint8)
    rows, cols = _band(of.width, factor, slide.blocks(level))
    for top in range(0, out_h, rows):
        for left in range(0, out_w, cols):
            n, m = min(rows, out_h - top), min(cols, out_w - left)
            band = slide.read(
                level,
                left * factor,
                top * factor,
                m * factor,
                n * factor,
                threads=True,
                bad_is_glass=slide.on_bad_tile == "skip",
            )
            small = cv2.resize(band, (m, n), interpolation=cv2.INTER_AREA) if factor > 1 else band
            out[top : top + n, left : left + m] = small
    if factor > 1:
        _replace_border(out, of.width % factor, of.height % factor, factor)
    return out, factor * of.downsample_x, factor * of.downsample_y


def _band(width: int, factor: int, blocks: Blocks | None) -> tuple[int, int]:
    """Rows and columns of an overview that are made at a time, of a level of ``width`` px that is shrunk by
    ``factor``.

    Bands end where blocks do, so that none is decoded twice, as far as memory goes.
    """
    rows = max(1, BAND_PIXELS // (width * factor))
    most = 16 * BAND_PIXELS
    if blocks is not None:
        most = max(most, 2 * blocks.width * blocks.height)
        whole = blocks.height // math.gcd(blocks.height, factor)
        if whole * factor * width <= most:
            rows = max(whole, rows // whole * whole)
        else:
            rows = max(rows, most // (width * factor), -(-blocks.height // factor))
    cols = -(-width // factor) if rows * factor * width <= most else max(1, most // (rows * factor**2))
    return rows, cols


def _replace_border(out: np.ndarray, rest_x: int, rest_y: int, factor: int) -> None:
    """The last column and row average the slide with white padding; undo the padding's share."""
    for rest, view in ((rest_x, out[:, -1]), (rest_y, out[-1])):
        if rest:
            share = rest / factor
            view[:] = np.clip((view.astype(np.float32) - WHITE * (1 - share)) / share + 0.5, 0, 255).astype(np.uint8)
