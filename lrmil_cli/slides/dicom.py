"""The headers of DICOM slides: which files are one slide, and at what scale each of them is.

A DICOM slide is a series of files, one a level, beside label and overview. OpenSlide opens the series by any of them,
but takes the scale of a level from its size, which is wrong where levels are padded to whole tiles. Only the few
elements that are needed are read here; the pixels are OpenSlide's matter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lrmil_cli.errors import InputError
from lrmil_cli.slides.mpp import parse_number
from lrmil_cli.units import LevelPx, Um

#: What of a file is looked at: the header ends before the pixels, which begin well before this.
_HEADER_BYTES = 4_000_000
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")
_UNDEFINED = 0xFFFFFFFF
_PIXELS = (0x7FE0, 0x0010)
_SERIES, _IMAGE_TYPE, _SPACING = (0x0020, 0x000E), (0x0008, 0x0008), (0x0028, 0x0030)
_COLUMNS, _ROWS = (0x0048, 0x0006), (0x0048, 0x0007)
_TILE_COLUMNS, _TILE_ROWS, _FRAMES = (0x0028, 0x0011), (0x0028, 0x0010), (0x0028, 0x0008)
_ORGANIZATION = (0x0020, 0x9311)
#: Bytes of an element that is read; none of those wanted is longer.
_MAX_VALUE = 4096
#: Kinds of files that are levels of the slide.
_LEVELS = ("VOLUME", "THUMBNAIL")
_WANTED = (_SERIES, _IMAGE_TYPE, _SPACING, _COLUMNS, _ROWS, _TILE_COLUMNS, _TILE_ROWS, _FRAMES, _ORGANIZATION)
#: Pixels of a tile, and a level's pixels for each byte of its file where most of its tiles may be left out: more is
#: no slide.
_MAX_TILE, _MAX_RATIO = 1 << 28, 1 << 16


@dataclass(frozen=True)
class DicomHeader:
    """What one file of a DICOM slide says.

    Attributes:
        series: SeriesInstanceUID; image_type: ``VOLUME``, ``LABEL``, ``OVERVIEW``, ``THUMBNAIL``, or empty.
        width, height: of the whole picture in its px, 0 where it does not say.
        spacing: um from pixel to pixel along x and y, or None.
        tile: width and height of a frame in px; frames: how many there are; full: whether no tile is left out.
        size: bytes of the file.
    """

    series: str
    image_type: str
    width: LevelPx
    height: LevelPx
    spacing: tuple[Um, Um] | None
    tile: tuple[LevelPx, LevelPx]
    frames: int
    full: bool
    size: int

    @property
    def impossible(self) -> str | None:
        """What of it cannot be, in words."""
        width, height = self.tile
        if width * height > _MAX_TILE:
            return f"tiles of {width:,} x {height:,} px"
        tiles = -(-self.width // max(1, width)) * -(-self.height // max(1, height))
        if self.full and self.image_type in _LEVELS and tiles > self.frames:
            return f"{self.width:,} x {self.height:,} px in {tiles:,} tiles, and has {self.frames:,} of them"
        if self.width * self.height > _MAX_RATIO * self.size:
            return f"{self.width:,} x {self.height:,} px, more than {self.size:,} bytes can hold"
        return None


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with open(path, "rb") as fh:
        return fh.read(132)[128:] == b"DICM"


def read_dicom(path: Path) -> DicomHeader | None:
    """The header of a DICOM file; None where it is none, or is not laid out with explicit lengths."""
    try:
        with open(path, "rb") as fh:
            if fh.read(132)[128:] != b"DICM":
                return None
            found: dict[tuple[int, int], bytes] = {}
            for tag, value in _elements(fh):
                found.setdefault(tag, value)
            size = fh.seek(0, 2)
    except (OSError, struct.error, EOFError):
        return None
    if _SERIES not in found:
        return None
    types = [v.strip() for v in _text(found.get(_IMAGE_TYPE, b"")).split("\\")]
    spacing = [parse_number(v) for v in _text(found.get(_SPACING, b"")).split("\\")]
    along_y, along_x = spacing if len(spacing) == 2 else (None, None)  # rows come first
    return DicomHeader(
        _text(found[_SERIES]),
        types[2] if len(types) > 2 else "",
        LevelPx(_number(found.get(_COLUMNS, b""))),
        LevelPx(_number(found.get(_ROWS, b""))),
        (Um(along_x * 1000), Um(along_y * 1000)) if along_x and along_y else None,
        (LevelPx(_number(found.get(_TILE_COLUMNS, b""))), LevelPx(_number(found.get(_TILE_ROWS, b"")))),
        int(parse_number(_text(found.get(_FRAMES, b""))) or 0),
        _text(found.get(_ORGANIZATION, b"")) == "TILED_FULL",
        size,
    )


def series_of(path: Path) -> list[DicomHeader]:
    """The headers of all files of the slide that a file belongs to; none where they cannot be read.

    Raises:
        InputError: one of them claims what cannot be, and OpenSlide would take memory by it.
    """
    own = read_dicom(path)
    if own is None:
        return []
    found = []
    for other in sorted(path.parent.iterdir()):
        header = read_dicom(other) if other.is_file() else None
        if header and header.series == own.series:
            if header.impossible:
                raise InputError(
                    f"{other}: its header is damaged: it claims {header.impossible}; copy or export the slide again"
                )
            found.append(header)
    return found


def series_spacings(series: Sequence[DicomHeader]) -> dict[tuple[int, int], tuple[Um, Um]]:
    """From size in px to um from pixel to pixel along x and y, of the levels of a series.

    Sizes that two levels share are left out.
    """
    found: dict[tuple[int, int], set[tuple[Um, Um]]] = {}
    for header in series:
        if header.image_type in _LEVELS and header.spacing:
            found.setdefault((header.width, header.height), set()).add(header.spacing)
    return {size: next(iter(spacings)) for size, spacings in found.items() if len(spacings) == 1}


def one_per_series(paths: Sequence[Path]) -> list[Path]:
    """The files without those that belong to the DICOM slide of another one: each series is left with its largest file.

    Files that are no DICOM stay, and so does the order.
    """
    best: dict[str, tuple[int, Path]] = {}
    series: dict[Path, str] = {}
    for path in paths:
        header = read_dicom(path) if path.is_file() else None
        if header is None:
            continue
        series[path] = header.series
        area = header.width * header.height * (header.image_type == "VOLUME")
        if header.series not in best or area > best[header.series][0]:
            best[header.series] = area, path
    return [p for p in paths if p not in series or best[series[p]][1] == p]


def _elements(fh: BinaryIO) -> Iterator[tuple[tuple[int, int], bytes]]:
    """The wanted elements of a file with explicit types, little-endian, those inside sequences too, up to its pixels.

    Raises:
        EOFError, struct.error: the file ends early.
    """
    while fh.tell() < _HEADER_BYTES:
        head = fh.read(8)
        if len(head) < 8:
            return
        tag = struct.unpack("<HH", head[:4])
        if tag == _PIXELS:
            return
        kind = head[4:6]
        if tag[0] == 0xFFFE:  # an item of a sequence, or the end of one: what is in it follows
            continue
        if not kind.isalpha() or not kind.isupper():
            return  # types are left out: not as slides are written
        if kind in _LONG:
            (length,) = struct.unpack("<I", fh.read(4))
            if kind == b"SQ":
                continue
            if length == _UNDEFINED:
                return
        else:
            (length,) = struct.unpack("<H", head[6:8])
        if tag in _WANTED and length <= _MAX_VALUE:
            yield (tag[0], tag[1]), fh.read(length)
        else:
            fh.seek(length, 1)


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\0 ")


def _number(value: bytes) -> int:
    return int.from_bytes(value, "little") if len(value) in (2, 4) else 0


def spacing_of(handle: Any, spacings: dict[tuple[int, int], tuple[Um, Um]]) -> list[tuple[float, float] | None]:
    """Level-0 px per pixel of each level of an open slide by its spacing, None where that is not known."""
    sizes = [(int(w), int(h)) for w, h in handle.level_dimensions]
    base = spacings.get(sizes[0])
    if base is None:
        return [None] * len(sizes)
    own = [spacings.get(size) for size in sizes]
    return [None if o is None else (o[0] / base[0], o[1] / base[1]) for o in own]
