"""Small DICOM slides, written element by element: enough for OpenSlide, and for nothing else."""

import io
import struct

import numpy as np
from PIL import Image

_JPEG = "1.2.840.10008.1.2.4.50"
_WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"
_LONG = ("OB", "SQ", "UT")


def element(group, number, kind, value):
    """One element with an explicit type, little-endian; text and numbers are encoded by the type."""
    if isinstance(value, str):
        value = value.encode()
    elif isinstance(value, int):
        value = struct.pack({"US": "<H", "UL": "<I"}[kind], value)
    elif isinstance(value, list):  # items of a sequence
        value = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(v)) + v for v in value)
    value += (b"\0" if kind in ("UI", "OB") else b" ") * (len(value) % 2)
    head = struct.pack("<HH", group, number) + kind.encode()
    return head + (struct.pack("<HI", 0, len(value)) if kind in _LONG else struct.pack("<H", len(value))) + value


def write_level(path, image, *, series, uid, mpp, size=None, kind="VOLUME", resampled=False, tile=64):
    """One file of a slide.

    Args:
        image: uint8 [H, W, 3]; size: width and height that the file says, with white behind the picture.
        series: SeriesInstanceUID; uid: of the file; mpp: um from pixel to pixel.
    """
    height, width = image.shape[:2]
    width, height = size or (width, height)
    canvas = np.full((-(-height // tile) * tile, -(-width // tile) * tile, 3), 255, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    frames = []
    for y in range(0, canvas.shape[0], tile):
        for x in range(0, canvas.shape[1], tile):
            sink = io.BytesIO()
            Image.fromarray(canvas[y : y + tile, x : x + tile]).save(sink, "JPEG", quality=95, subsampling=0)
            frames.append(sink.getvalue() + b"\0" * (len(sink.getvalue()) % 2))
    types = f"{'DERIVED' if resampled else 'ORIGINAL'}\\PRIMARY\\{kind}\\{'RESAMPLED' if resampled else 'NONE'}"
    meta = b"".join(
        [
            element(0x0002, 0x0001, "OB", b"\0\1"),
            element(0x0002, 0x0002, "UI", _WSI),
            element(0x0002, 0x0003, "UI", uid),
            element(0x0002, 0x0010, "UI", _JPEG),
            element(0x0002, 0x0012, "UI", "1.2.3"),
        ]
    )
    spacing = element(0x0028, 0x0030, "DS", f"{mpp / 1000:.8g}\\{mpp / 1000:.8g}")
    thickness = element(0x0018, 0x0050, "DS", "0.001")
    shared = element(0x0028, 0x9110, "SQ", [thickness + spacing]) + element(
        0x0040, 0x0710, "SQ", [element(0x0008, 0x9007, "CS", types)]
    )
    body = [
        element(0x0008, 0x0008, "CS", types),
        element(0x0008, 0x0016, "UI", _WSI),
        element(0x0008, 0x0018, "UI", uid),
        element(0x0008, 0x0060, "CS", "SM"),
        element(0x0020, 0x000D, "UI", f"{series}.1"),
        element(0x0020, 0x000E, "UI", series),
        element(0x0020, 0x0013, "IS", "1"),
        element(0x0020, 0x0052, "UI", f"{series}.2"),
        element(0x0020, 0x9311, "CS", "TILED_FULL"),
        element(0x0028, 0x0002, "US", 3),
        element(0x0028, 0x0004, "CS", "YBR_FULL_422"),
        element(0x0028, 0x0006, "US", 0),
        element(0x0028, 0x0008, "IS", str(len(frames))),
        element(0x0028, 0x0010, "US", tile),
        element(0x0028, 0x0011, "US", tile),
        element(0x0028, 0x0100, "US", 8),
        element(0x0028, 0x0101, "US", 8),
        element(0x0028, 0x0102, "US", 7),
        element(0x0028, 0x0103, "US", 0),
        element(0x0048, 0x0001, "FL", struct.pack("<f", width * mpp / 1000)),
        element(0x0048, 0x0002, "FL", struct.pack("<f", height * mpp / 1000)),
        element(0x0048, 0x0006, "UL", width),
        element(0x0048, 0x0007, "UL", height),
        element(0x0048, 0x0105, "SQ", [element(0x0048, 0x0106, "SH", "1") + element(0x0048, 0x0112, "DS", "20")]),
        element(0x0048, 0x0302, "UL", 1),
        element(0x0048, 0x0303, "UL", 1),
        element(0x5200, 0x9229, "SQ", [shared]),
    ]
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(f)) + f for f in [b"", *frames])
    pixels = (
        struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + element(0x0002, 0x0000, "UL", len(meta)) + meta + b"".join(body) + pixels)
    return path
