"""The blocks (tiles or strips) of one level of a TIFF, decoded one at a time without zarr in between.

tiffslide reads a region through a zarr store, which costs more than the decoding. The ``tifffile`` page behind it
knows where every block lies and how to decode it; that is all a reader of tiles needs.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lrmil_cli.units import LevelPx

#: TIFF's number of JPEG with shared tables, as scanners write it.
_JPEG = 7
_OLD_JPEG = 6
#: Pixels that a stream may be larger by than its block: JPEG is made of squares of up to 32 px.
_MCU = 32
#: Rows that strips without compression are cut into, or joined to, so that a tile needs few of them.
_RAW_ROWS = 64


@dataclass(frozen=True)
class Blocks:
    """The grid of blocks of one level.

    Attributes:
        width, height: of a block in px of the level; cols, rows: blocks along x and y, in raster order.
        parts: what a block is put together from: tifffile's page, and the number of its first block there. One, or one
            a colour.
        direct: keywords of ``imagecodecs.jpeg8_decode`` where it can decode into given memory.
        raw: where pixels without compression begin in the file, for blocks that are not those of the file.
        missing: blocks that the file leaves out, as scanners do for areas they did not scan.
    """

    width: LevelPx
    height: LevelPx
    cols: int
    rows: int
    parts: tuple[tuple[Any, int], ...]
    direct: dict[str, Any] | None
    raw: int | None = None
    missing: frozenset[int] = frozenset()

    @property
    def page(self) -> Any:
        """tifffile's page, the first where each colour has one."""
        return self.parts[0][0]

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
        if self.raw is not None:
            return self._decode_raw(index, self.raw)
        if len(self.parts) > 1:
            return np.stack([_decode(page, first + index).reshape(self._cut(index)) for page, first in self.parts], 2)
        page, first = self.parts[0]
        return _decode(page, first + index, self.direct, out)

    def _cut(self, index: int) -> tuple[int, int]:
        """Rows and columns of a block as tifffile hands it out: strips are cut at the edge, tiles are not."""
        if self.page.is_tiled:
            return self.height, self.width
        return min(self.height, int(self.page.imagelength) - index * self.height), self.width

    def _decode_raw(self, index: int, start: int) -> np.ndarray:
        key = self.page.keyframe
        top = index * self.height
        rows, samples = min(self.height, int(key.imagelength) - top), int(key.samplesperpixel)
        dtype = np.dtype(key.parent.byteorder + key.dtype.char)
        row_bytes = self.width * samples * dtype.itemsize
        data = _read_at(key.parent.filehandle, start + top * row_bytes, rows * row_bytes)
        pixels = np.frombuffer(data, dtype).reshape(rows, self.width, samples)
        return pixels.astype(key.dtype, copy=False)


def _decode(page: Any, index: int, direct: dict[str, Any] | None = None, out: np.ndarray | None = None) -> np.ndarray:
    """One block of a page."""
    data = _read_at(page.parent.filehandle, page.dataoffsets[index], page.databytecounts[index])
    if direct is not None and out is not None:
        from imagecodecs import jpeg8_decode

        try:
            return jpeg8_decode(data, out=out, **direct)
        except Exception:  # a block cut at the edge, or a damaged one: tifffile's own way tells which
            pass
    keyframe = page.keyframe
    more = (
        {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
        if keyframe.compression in (_OLD_JPEG, _JPEG)
        else {}
    )
    claimed = _CLAIMS.get(keyframe.compression, _no_claim)(keyframe.jpegheader or data)
    width, height = _block_size(keyframe)
    if claimed > (width + _MCU) * (height + _MCU):  # decoders take memory by that, and fill what is not there
        raise ValueError(f"a block of {width} x {height} px that claims {claimed:,} px")
    return keyframe.decode(data, index, **more)[0][0]


def _jpeg_claim(data: bytes) -> int:
    """Pixels that a JPEG says it has; 0 where it does not say."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return int(height) * int(width)
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def _jpeg2000_claim(data: bytes) -> int:
    """Pixels that a JPEG 2000 says it has, those of its colours together where they are more than four."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0 or at + 42 > len(data):
        return 0
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    (colours,) = struct.unpack_from(">H", data, at + 40)
    return max(0, right - left) * max(0, bottom - top) * max(4, colours) // 4


def _no_claim(data: bytes) -> int:
    return 0


#: By number of the compression, the pixels that the stream of a block claims.
_CLAIMS = {
    **dict.fromkeys((_OLD_JPEG, _JPEG, 33007, 34892), _jpeg_claim),
    **dict.fromkeys((33003, 33004, 33005, 34712), _jpeg2000_claim),
}


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


def open_blocks(pages: tuple[Any, ...], above: Blocks | None) -> Blocks:
    """The blocks of a level.

    Args:
        pages: tifffile's pages of the level: one, or one a colour.
        above: blocks of the next finer level of an Aperio slide. What lies over one that is missing there holds
            anything, so that viewers (OpenSlide) take it for missing too.
    """
    found = _find_blocks(pages)
    if above is None or not above.missing:
        return found
    along_x, along_y = (max(1, round(a / b)) for a, b in ((above.cols, found.cols), (above.rows, found.rows)))
    over = {i // above.cols // along_y * found.cols + i % above.cols // along_x for i in above.missing}
    return replace(found, missing=found.missing | over)


def block_count(page: Any) -> tuple[int, int]:
    """How many blocks a page of its size has, those of all planes, and how many of them lie in a row."""
    width, height = _block_size(page)
    cols, rows = -(-int(page.imagewidth) // width), -(-int(page.imagelength) // height)
    return cols * rows * (int(page.samplesperpixel) if page.planarconfig != 1 else 1), cols if page.is_tiled else 0


def block_bytes(page: Any) -> int:
    """Bytes of the largest block of a page once it is decoded; 0 where the file need not be read by its blocks."""
    if raw_start(page) is not None:
        return 0
    width, height = _block_size(page)
    samples = int(page.samplesperpixel) if page.planarconfig == 1 else 1
    return width * height * samples * (1 if page.dtype is None else page.dtype.itemsize)


def raw_start(page: Any) -> int | None:
    """Where the pixels of a page begin that lie in the file in rows as they are, without compression or gaps."""
    if page.is_tiled or page.compression != 1 or page.predictor != 1 or page.fillorder != 1 or page.dtype is None:
        return None
    if (page.planarconfig != 1 and page.samplesperpixel > 1) or page.bitspersample != 8 * page.dtype.itemsize:
        return None
    offsets, counts = (np.asarray(v, np.int64) for v in (page.dataoffsets, page.databytecounts))
    whole = int(page.imagewidth) * int(page.imagelength) * int(page.samplesperpixel) * page.dtype.itemsize
    there = len(offsets) == len(counts) > 0 and offsets[0] > 0 and counts.sum() == whole
    return int(offsets[0]) if there and (offsets[1:] == offsets[:-1] + counts[:-1]).all() else None


def _block_size(page: Any) -> tuple[int, int]:
    """Width and height of a block in px."""
    if page.is_tiled:
        return int(page.tilewidth), int(page.tilelength)
    return int(page.imagewidth), min(int(page.rowsperstrip), int(page.imagelength))


def _find_blocks(pages: tuple[Any, ...]) -> Blocks:
    page = pages[0]
    width, height = int(page.imagewidth), int(page.imagelength)
    w, h = _block_size(page)
    for each in pages:
        each.keyframe.decode  # noqa: B018 - made once here, because threads must not race for it
    if not hasattr(os, "pread"):
        page.parent.filehandle.set_lock(True)
    raw = raw_start(page) if len(pages) == 1 else None
    if raw is not None:
        return Blocks(LevelPx(w), LevelPx(_RAW_ROWS), 1, -(-height // _RAW_ROWS), ((page, 0),), None, raw)
    cols, rows = -(-width // w), -(-height // h)
    colours = int(page.samplesperpixel) if page.planarconfig != 1 else 1
    parts = tuple((each, k * cols * rows) for each in pages for k in range(colours))
    there = np.ones(cols * rows, bool)
    for each, first in parts:
        there &= _blocks_there(each, first, cols * rows)
    missing = frozenset(np.flatnonzero(~there).tolist())
    direct = _direct_jpeg(page) if len(parts) == 1 else None
    return Blocks(LevelPx(w), LevelPx(h), cols, rows, parts, direct, missing=missing)


def _blocks_there(page: Any, first: int, count: int) -> np.ndarray:
    """Which of ``count`` blocks from number ``first`` on are in the file, bool [count]."""
    there = np.zeros(count, bool)  # the last row of blocks may lack its entries (Philips)
    offsets, counts = page.dataoffsets[first : first + count], page.databytecounts[first : first + count]
    known = min(len(offsets), len(counts))
    there[:known] = (np.asarray(offsets[:known]) > 0) & (np.asarray(counts[:known]) > 0)
    return there


def _direct_jpeg(page: Any) -> dict[str, Any] | None:
    """Keywords that make ``jpeg8_decode`` do what tifffile's decoder does, for 8-bit RGB or YCbCr; else None."""
    from tifffile.tifffile import jpeg_decode_colorspace

    key = page.keyframe
    if key.compression != _JPEG or key.bitspersample != 8 or key.samplesperpixel != 3 or key.jpegheader is not None:
        return None
    colorspace, outcolorspace = jpeg_decode_colorspace(key.photometric, key.planarconfig, key.extrasamples, key.is_jfif)
    return {"tables": page.jpegtables, "colorspace": colorspace, "outcolorspace": outcolorspace}


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
