"""Small slides of five formats for :mod:`tests.fuzz`, and damage to their headers."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import tifffile

from lrmil_cli.doctor.slide import check_slide
from lrmil_cli.errors import InputError
from lrmil_cli.slides.about import describe_slide
from lrmil_cli.slides.reader import iter_batches
from lrmil_cli.slides.slide import open_slide
from lrmil_cli.slides.tiles import TileSettings, boxes_of, find_tiles
from lrmil_cli.units import LevelPx, Mpp
from tests.conftest import blob_image
from tests.dicom_slides import write_level

#: um/px that the slides are read at, so that a few blocks hold enough tissue.
MPP = 4.0
SETTINGS = TileSettings(mpp=Mpp(2 * MPP), tile_px=LevelPx(32))
#: Of each block, what is taken for its header: it holds the sizes that a codec believes.
BLOCK_HEADER = 200
#: Numbers at the ends of what a field can hold.
ENDS = (b"\0", b"\1", b"\x7f", b"\x80", b"\xff")


def write_slides(folder: Path) -> dict[str, list[Path]]:
    """name of a format -> valid files."""
    image = blob_image(384, 320)
    half, quarter = (cv2.resize(image, (384 // k, 320 // k), interpolation=cv2.INTER_AREA) for k in (2, 4))
    rgb = {"photometric": "rgb", "metadata": None, "software": False}
    about = f"Aperio Image Library (test)\n384x320|AppMag = 20|MPP = {MPP}"
    folder.mkdir(parents=True, exist_ok=True)

    def pyramid(path: Path, levels: list[np.ndarray], **options: object) -> Path:
        with tifffile.TiffWriter(path, byteorder=">" if options.pop("big", False) else "<") as out:
            for level in levels:
                out.write(level, **{"tile": (64, 64), **rgb, **options})
        return path

    svs = folder / "jpeg.svs"
    with tifffile.TiffWriter(svs) as out:
        jpeg = {**rgb, "tile": (128, 128), "compression": "jpeg", "description": about}
        out.write(image, **jpeg)
        out.write(quarter, **rgb, compression="jpeg", description=f"{about} thumbnail")
        out.write(quarter, **jpeg)
    ome = folder / "a.ome.tif"
    with tifffile.TiffWriter(ome, bigtiff=True, ome=True) as out:
        tiled = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate"}
        units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
        out.write(
            image, subifds=2, metadata={"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP, **units}, **tiled
        )
        for level in (half, quarter):
            out.write(level, subfiletype=1, metadata=None, **tiled)
    deep = [level.astype(np.uint16) << 6 for level in (image, half)]
    centimetre = {"resolution": (10_000 / MPP, 10_000 / MPP), "resolutionunit": "CENTIMETER"}
    return {
        "Aperio SVS": [
            svs,
            pyramid(folder / "jpeg2000.svs", [half], compression="aperio_jp2000_rgb", description=about),
        ],
        "OME BigTIFF": [ome],
        "16-bit TIFF": [
            pyramid(folder / "deep.tif", deep, compression="lzw", predictor=True, big=True, **centimetre),
            pyramid(folder / "strips.tif", deep[:1], tile=None, rowsperstrip=16, **centimetre),
            pyramid(folder / "planar.tif", [np.moveaxis(image, 2, 0)], planarconfig="separate", **centimetre),
        ],
        "Hamamatsu NDPI": [write_ndpi(folder / "a.ndpi", [image, quarter])],
        "DICOM": [write_level(folder / "a.dcm", image, series="1.2.840.1", uid="1.2.840.1.1", mpp=MPP)],
    }


def write_ndpi(path: Path, levels: list[np.ndarray]) -> Path:
    """A slide as Hamamatsu writes it: one JPEG a level, whose restart markers part it into blocks; 8-byte offsets."""
    out, previous = bytearray(b"II*\0" + bytes(8)), 4
    for k, image in enumerate(levels):
        ok, jpeg = cv2.imencode(
            ".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 4, cv2.IMWRITE_JPEG_QUALITY, 90]
        )
        assert ok
        data = jpeg.tobytes()
        first = data.index(b"\xff\xda") + 14
        starts = [first] + [
            i + 2 for i in range(first, len(data) - 1) if data[i] == 255 and 0xD0 <= data[i + 1] <= 0xD7
        ]
        at = len(out)
        out += data + bytes(len(data) % 2)
        height, width = image.shape[:2]
        lens = 2.5 / 4**k
        tags = [  # number, type as struct has it, values
            (256, "I", [width]),
            (257, "I", [height]),
            (258, "H", [8, 8, 8]),
            (259, "H", [7]),
            (262, "H", [6]),
            (273, "I", [at]),
            (277, "H", [3]),
            (278, "I", [height]),
            (279, "I", [len(data)]),
            (282, "I", [round(1e4 / MPP / 4**k), 1]),
            (283, "I", [round(1e4 / MPP / 4**k), 1]),
            (296, "H", [3]),
            (65420, "I", [1]),
            (65421, "f", [lens]),
            (65424, "i", [0]),
            (65426, "I", starts),
        ]
        entries = bytearray()
        for number, kind, values in tags:
            value = struct.pack(f"<{len(values)}{kind}", *values)
            code = 5 if number in (282, 283) else {"H": 3, "I": 4, "i": 9, "f": 11}[kind]
            if len(value) > 4:
                place = len(out)
                out += value + bytes(len(value) % 2)
                value = struct.pack("<I", place)
            entries += struct.pack("<HHI", number, code, 1 if code == 5 else len(values)) + value.ljust(4, b"\0")
        struct.pack_into("<Q", out, previous, len(out))
        out += struct.pack("<H", len(tags)) + entries
        previous = len(out)
        out += bytes(8 + 4 * len(tags))
    path.write_bytes(out)
    return path


def header_spots(path: Path) -> list[int]:
    """Places of a file's bytes that are not pixels: all headers, and the first bytes of each block."""
    size = path.stat().st_size
    pixels = np.zeros(size, bool)
    if path.suffix == ".dcm":
        pixels[path.read_bytes().index(b"\xe0\x7f\x10\0OB") + 12 + 8 + BLOCK_HEADER :] = True
    else:
        with tifffile.TiffFile(path) as tiff:
            for page in (p for top in tiff.pages for p in (top, *(top.pages or ()))):
                for at, count in zip(page.dataoffsets, page.databytecounts):
                    pixels[at + min(count, BLOCK_HEADER) : at + count] = True
    return np.flatnonzero(~pixels).tolist()


def damage(data: bytes, spots: list[int], rng: random.Random) -> bytes:
    """A file with one byte of its header changed, or a block of it: noise, one value, or bytes from elsewhere."""
    out = bytearray(data)
    at = rng.choice(spots)
    kind = rng.randrange(8)
    if kind < 4:
        out[at] = rng.randrange(256)
    elif kind == 4:
        out[at] ^= 1 << rng.randrange(8)
    else:
        length = rng.choice((2, 2, 4, 4, 8, 12, 20, 64))
        other = rng.choice(spots)
        fill = (rng.randbytes(length), rng.choice(ENDS) * length, data[other : other + length])[kind - 5]
        out[at : at + length] = fill
    return bytes(out)


def read_slide(path: Path) -> object:
    """What a command does with a slide: ``info`` by its own scale, ``doctor``, or tiling and reading; which, its bytes
    say.

    Raises:
        LrmilError: it cannot be read.
    """
    which = zlib.crc32(path.read_bytes()) % 3
    if which == 0:
        return describe_slide(path)
    if which == 1:
        checks = check_slide(path, SETTINGS, slide_mpp=MPP, blocks=6)
        if len(checks) == 1:
            raise InputError(checks[0].found)
        return checks
    with open_slide(path, slide_mpp=MPP, on_bad_tile="skip", workers=2) as slide:
        tiles, level, _ = find_tiles(slide, SETTINGS)
        bad: list[int] = []
        return sum(len(rows) for rows, _ in iter_batches(slide, boxes_of(tiles), level, SETTINGS.tile_px, 16, bad))
