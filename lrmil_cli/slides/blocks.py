"""The blocks (tiles or strips) of one level of a TIFF, decoded one at a time without zarr in between.

tiffslide reads a region through a zarr store, which costs more than the decoding. The ``tifffile`` object behind it
knows where every block lies and how to decode it; that is all a reader of tiles needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from lrmil_cli.units import LevelPx

#: TIFF's number of JPEG with shared tables, as scanners write it.
_JPEG = 7


@dataclass(frozen=True)
class Blocks:
    """The grid of blocks of one level.

    Attributes:
        width, height: of a block in px of the level; cols, rows: blocks along x and y, in raster order.
        page: tifffile's page; direct: keywords of ``imagecodecs.jpeg8_decode`` where it can decode into given memory.
        missing: blocks that the file leaves out, as scanners do for areas they did not scan.
    """

    width: LevelPx
    height: LevelPx
    cols: int
    rows: int
    page: Any
    direct: dict[str, Any] | None
    missing: frozenset[int] = frozenset()

    def rect(self, index: int) -> tuple[int, int, int, int]:
        """Corner, width and height of a block in px of the level; the last ones may stick out of it."""
        row, col = divmod(index, self.cols)
        return col * self.width, row * self.height, self.width, self.height

    def decode(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Pixels of a block as the file holds them.

        Args:
            out: uint8 [height, width, 3], used where the codec can.

        Returns:
            ``out``, or another array [h, w, samples] or [h, w]; smaller than the block where the file cuts it at the
            edge.

        Raises:
            Exception: of tifffile or the codec, where the block is damaged.
        """
        data = _read_at(self.page.parent.filehandle, self.page.dataoffsets[index], self.page.databytecounts[index])
        if self.direct is not None and out is not None:
            from imagecodecs import jpeg8_decode

            try:
                return jpeg8_decode(data, out=out, **self.direct)
            except Exception:  # a block cut at the edge, or a damaged one: tifffile's own way tells which
                pass
        keyframe = self.page.keyframe
        more = (
            {"jpegtables": self.page.jpegtables, "jpegheader": keyframe.jpegheader}
            if keyframe.compression in (6, _JPEG)
            else {}
        )
        return keyframe.decode(data, index, **more)[0][0]


def new_block(height: int, width: int) -> np.ndarray:
    """Memory to decode into, uint8 [height, width, 3].

    libjpeg-turbo writes rows that start at a multiple of 32 bytes past the processor's cache, and decoding then takes
    up to twice as long; rows of blocks are multiples of 16 bytes, so memory that starts 8 bytes off has none.
    """
    size = height * width * 3
    raw = np.empty(size + 64, np.uint8)
    start = (8 - raw.ctypes.data) % 32
    return raw[start : start + size].reshape(height, width, 3)


def paste_block(out: np.ndarray, x: int, y: int, block: np.ndarray, block_x: int, block_y: int) -> None:
    """Copy what a block [h, w, 3] at (block_x, block_y) shares with the picture ``out`` at (x, y), all in px of the
    level."""
    top, bottom = max(y, block_y), min(y + out.shape[0], block_y + block.shape[0])
    left, right = max(x, block_x), min(x + out.shape[1], block_x + block.shape[1])
    if top < bottom and left < right:
        part = block[top - block_y : bottom - block_y, left - block_x : right - block_x]
        out[top - y : bottom - y, left - x : right - x] = part


def open_blocks(
    handle: Any,
    level: int,
    above: Blocks | None,
    read_region: Callable[[int, int, int, int], np.ndarray],
    to_rgb: Callable[[np.ndarray], np.ndarray],
) -> Blocks | None:
    """The blocks of a level of an open ``TiffSlide``; None where they must be read through it.

    Args:
        above: blocks of the next finer level of an Aperio slide. What lies over one that is missing there holds
            anything, so that viewers (OpenSlide) take it for missing too.
        read_region: uint8 [h, w, 3] of x, y, w, h in px of the level, by tiffslide: a block must decode to the same
            pixels.
        to_rgb: what makes the pixels of the file uint8 RGB.
    """
    found = _find_blocks(handle, level)
    if found is None or not _agrees(found, handle.level_dimensions[level], read_region, to_rgb):
        return None
    if above is None or not above.missing:
        return found
    along_x, along_y = (max(1, round(a / b)) for a, b in ((above.cols, found.cols), (above.rows, found.rows)))
    over = {i // above.cols // along_y * found.cols + i % above.cols // along_x for i in above.missing}
    return replace(found, missing=found.missing | over)


def _find_blocks(handle: Any, level: int) -> Blocks | None:
    properties = handle.properties
    if properties.get("tiffslide.series-composition"):  # areas put together (Leica)
        return None
    tiff = handle.ts_tifffile
    series = tiff.series[properties["tiffslide.series-index"]].levels[level]
    if series.axes not in ("YX", "YXS") or series.transform is not None or len(series.pages) != 1:
        return None
    page = series.pages[0]
    key = page.keyframe
    width, height = handle.level_dimensions[level]
    if (key.imagewidth, key.imagelength, key.imagedepth) != (width, height, 1) or (
        key.planarconfig != 1 and key.samplesperpixel > 1
    ):
        return None
    if page.parent.filehandle is not tiff.filehandle:  # pixels in another file (OME)
        return None
    w, h = (key.tilewidth, key.tilelength) if key.is_tiled else (width, min(key.rowsperstrip, height))
    key.decode  # noqa: B018 - made once here, because threads must not race for it
    if not hasattr(os, "pread"):
        tiff.filehandle.set_lock(True)
    cols, rows = -(-width // w), -(-height // h)
    there = np.zeros(cols * rows, bool)  # the last row of blocks may lack its entries (Philips)
    known = min(there.size, len(page.dataoffsets), len(page.databytecounts))
    there[:known] = (np.asarray(page.dataoffsets[:known]) > 0) & (np.asarray(page.databytecounts[:known]) > 0)
    missing = frozenset(np.flatnonzero(~there).tolist())
    return Blocks(LevelPx(w), LevelPx(h), cols, rows, page, _direct_jpeg(page), missing)


def _direct_jpeg(page: Any) -> dict[str, Any] | None:
    """Keywords that make ``jpeg8_decode`` do what tifffile's decoder does, for 8-bit RGB or YCbCr; else None."""
    from tifffile.tifffile import jpeg_decode_colorspace

    key = page.keyframe
    if key.compression != _JPEG or key.bitspersample != 8 or key.samplesperpixel != 3 or key.jpegheader is not None:
        return None
    colorspace, outcolorspace = jpeg_decode_colorspace(key.photometric, key.planarconfig, key.extrasamples, key.is_jfif)
    return {"tables": page.jpegtables, "colorspace": colorspace, "outcolorspace": outcolorspace}


def _agrees(
    blocks: Blocks,
    size: tuple[int, int],
    read_region: Callable[[int, int, int, int], np.ndarray],
    to_rgb: Callable[[np.ndarray], np.ndarray],
) -> bool:
    """Self-check: a block near the middle of the level, read both ways."""
    count, middle = blocks.cols * blocks.rows, blocks.rows // 2 * blocks.cols + blocks.cols // 2
    outwards = (i for k in range(count) for i in {middle + k, middle - k} if 0 <= i < count)
    for index in islice((i for i in outwards if i not in blocks.missing), 8):
        x, y, w, h = blocks.rect(index)
        w, h = min(w, size[0] - x, 512), min(h, size[1] - y, 512)
        try:
            own = to_rgb(blocks.decode(index, new_block(blocks.height, blocks.width)))
            return bool(np.array_equal(own[:h, :w], read_region(x, y, w, h)))
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception:  # a damaged block says nothing of the others
            continue
    return False


def _read_at(handle: Any, offset: int, count: int) -> bytes:
    """Bytes of the file, without moving the position that other threads use."""
    if hasattr(os, "pread"):
        data = os.pread(handle.fileno(), count, offset)
    else:  # Windows
        with handle.lock:
            handle.seek(offset)
            data = handle.read(count)
    if len(data) < count:
        raise EOFError(f"{count} bytes wanted, {len(data)} there")
    return data
