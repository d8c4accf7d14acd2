"""The header of a TIFF, read by ourselves before a library believes it.

A byte that flipped in a header can claim a billion blocks, a page that follows itself or a description of gigabytes,
and tifffile as well as OpenSlide take memory by such claims. What is looked at here are numbers alone, no pixels, and
only what no honest file says is refused.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lrmil_cli.errors import InputError

#: First bytes of TIFF and BigTIFF, in both byte orders.
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

#: Pages, with those that hang on others.
_MAX_PAGES = 100_000
#: Tags of a page; tifffile believes no more.
_MAX_TAGS = 4096
#: Numbers in a tag, where they are not one a block; bytes of a text.
_MAX_NUMBERS, _MAX_TEXT = 1 << 20, 1 << 28
#: Blocks that a page may lack, before that is no oddity of a writer.
_MAX_LACKING = 100_000
#: Pixels of a tile.
_MAX_TILE = 1 << 28
#: Pixels that a byte of JPEG can hold: 64 of one colour in two bits, and four times that for good measure.
_MAX_JPEG_RATIO = 1024

_WIDTH, _LENGTH, _STRIPS, _SAMPLES, _ROWS, _PLANAR = 256, 257, 273, 277, 278, 284
_TILE_WIDTH, _TILE_LENGTH, _TILES, _SUBIFDS, _ICC = 322, 323, 324, 330, 34675
_NDPI, _MCU_STARTS, _MCU_STARTS_HIGH = 65420, 65426, 65432
_PRIVATE = 32768
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_TEXTS = (1, 2, 7)


@dataclass(frozen=True)
class _Layout:
    """How a file is written: struct's letters of its byte order, of offsets, numbers of tags, counts and values."""

    order: str
    offset: str
    tags: str
    count: str
    value: int

    def read(self, fh: BinaryIO, letters: str) -> tuple[int, ...]:
        """Numbers at the position of the file.

        Raises:
            struct.error: the file ends before.
        """
        form = self.order + letters
        return struct.unpack(form, fh.read(struct.calcsize(form)))


@dataclass(frozen=True)
class _Tag:
    """An entry: number of its type, how many values, and the bytes that hold them or say where they are."""

    kind: int
    count: int
    field: bytes
    order: str

    @property
    def number(self) -> int | None:
        """Its value where that is one whole number."""
        letter = _INTEGERS.get(self.kind)
        if self.count != 1 or letter is None or struct.calcsize(letter) > len(self.field):
            return None
        return int(struct.unpack_from(self.order + letter, self.field)[0])


_Tags = dict[int, _Tag]


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF or BigTIFF do."""
    with open(path, "rb") as fh:
        return fh.read(4) in MAGIC


def is_ndpi(path: Path) -> bool:
    """Whether a file is Hamamatsu's NDPI: a TIFF with larger offsets, which tifffile knows by its name alone."""
    with open(path, "rb") as fh:
        head = fh.read(12)
        if head[:4] != b"II*\0":
            return False
        fh.seek(min(int.from_bytes(head[4:], "little"), path.stat().st_size))
        count = int.from_bytes(fh.read(2), "little")
        entries = fh.read(12 * count)
    return any(entries[k : k + 2] == _NDPI.to_bytes(2, "little") for k in range(0, len(entries), 12))


def check_header(path: Path) -> None:
    """Whether what the pages of a TIFF claim can be.

    Raises:
        InputError: pages that follow themselves, or more blocks, numbers, text or pixels than the file can hold.
    """
    ndpi = is_ndpi(path)
    with open(path, "rb") as fh:
        size = os.fstat(fh.fileno()).st_size
        for number, tags in enumerate(_pages(path, fh, size, ndpi)):
            if wrong := _impossible(tags, size, ndpi):
                raise _damaged(path, f"page {number} claims {wrong}")


def _damaged(path: Path, claim: str) -> InputError:
    return InputError(f"{path}: its header is damaged: {claim}; copy or export the slide again")


def _pages(path: Path, fh: BinaryIO, size: int, ndpi: bool) -> Iterator[_Tags]:
    """The tags of all pages that can be read, each with those of the pages that hang on it behind it.

    Raises:
        InputError: they are too many, or follow each other in a circle.
    """
    magic = fh.read(4)
    order, big = "<" if magic[:2] == b"II" else ">", b"+" in magic
    wide = big or ndpi
    layout = _Layout(order, "Q" if wide else "I", "Q" if big else "H", "Q" if big else "I", 8 if big else 4)
    fh.seek(8 if big else 4)
    with suppress(struct.error):  # what is cut off is found out where blocks are looked for
        (at,) = layout.read(fh, layout.offset)
        seen: set[int] = set()
        pages = 0
        while 0 < at < size:
            if at in seen:
                raise _damaged(path, "its pages follow each other in a circle")
            seen.add(at)
            tags = _tags(fh, at, layout)
            (following,) = layout.read(fh, layout.offset)
            hanging = _hanging(fh, tags, layout, size)
            pages += 1 + len(hanging)
            if pages > _MAX_PAGES:
                raise _damaged(path, f"it claims more than {_MAX_PAGES:,} pages")
            yield tags
            for below in hanging:
                with suppress(struct.error):
                    yield _tags(fh, below, layout)
            at = following


def _tags(fh: BinaryIO, at: int, layout: _Layout) -> _Tags:
    """The tags of the page at a place of the file.

    Raises:
        struct.error: there are none.
    """
    fh.seek(at)
    (count,) = layout.read(fh, layout.tags)
    if count > _MAX_TAGS:
        raise struct.error("too many tags")
    entry = f"HH{layout.count}{layout.value}s"
    form = layout.order + entry
    data = fh.read(count * struct.calcsize(form))
    found: _Tags = {}
    for code, kind, number, field in struct.iter_unpack(
        form, data[: len(data) // struct.calcsize(form) * struct.calcsize(form)]
    ):
        found.setdefault(code, _Tag(kind, number, field, layout.order))
    return found


def _hanging(fh: BinaryIO, tags: _Tags, layout: _Layout, size: int) -> list[int]:
    """Places of the pages that hang on a page (SubIFDs)."""
    tag = tags.get(_SUBIFDS)
    if tag is None or tag.count > _MAX_PAGES:
        return [] if tag is None else [0] * (_MAX_PAGES + 1)
    if tag.number is not None:
        places = [tag.number]
    else:
        letter = _INTEGERS.get(tag.kind, "I")
        fh.seek(min(size, struct.unpack_from(layout.order + ("Q" if layout.value == 8 else "I"), tag.field)[0]))
        try:
            places = list(layout.read(fh, f"{tag.count}{letter}"))
        except struct.error:
            return []
    return [place for place in places if 0 < place < size]


def _impossible(tags: _Tags, size: int, ndpi: bool) -> str | None:
    """What a page claims that cannot be, in words."""
    width, length = (tags[k].number if k in tags else None for k in (_WIDTH, _LENGTH))
    if width is None or length is None:
        return "a size that is no number" if _WIDTH in tags and _LENGTH in tags else None
    blocks = _blocks(tags, width, length)
    if isinstance(blocks, str):
        return blocks
    listed = max((tags[k].count for k in (_TILES, _STRIPS) if k in tags), default=0)
    if blocks - listed > _MAX_LACKING:
        return f"{width:,} x {length:,} px in {blocks:,} blocks, and lists {listed:,} of them"
    if ndpi and width * length > _MAX_JPEG_RATIO * size:
        return f"{width:,} x {length:,} px, more than {size:,} bytes can hold"
    for code, tag in tags.items():
        if code in (_MCU_STARTS, _MCU_STARTS_HIGH):
            most = width * length // 64 + 1
        elif code >= _PRIVATE and code != _ICC:
            continue  # what is not read
        else:
            most = _MAX_TEXT if tag.kind in _TEXTS else max(_MAX_NUMBERS, 2 * blocks)
        if tag.count > most:
            return f"{tag.count:,} values of tag {code}"
    return None


def _blocks(tags: _Tags, width: int, length: int) -> int | str:
    """How many blocks a page of this size has, or what of it cannot be."""
    samples = tags[_SAMPLES].number if _SAMPLES in tags else 1
    planar = _PLANAR in tags and tags[_PLANAR].number == 2
    if _TILE_WIDTH in tags:
        across, down = (tags[k].number if k in tags else None for k in (_TILE_WIDTH, _TILE_LENGTH))
        if not across or not down or across < 0 or down < 0:
            return "tiles of no size"
        if across * down > _MAX_TILE:
            return f"tiles of {across:,} x {down:,} px"
        count = -(-width // across) * -(-length // down)
    else:
        rows = tags[_ROWS].number if _ROWS in tags else None
        count = -(-length // rows) if rows and rows > 0 else 1
    return count * (samples or 1) if planar else count
