"""A small MIRAX slide, written byte by byte, with empty glass around what was scanned: OpenSlide gives it bounds."""

import struct
from pathlib import Path

import cv2
import numpy as np


def write_mirax(
    path: Path, image: np.ndarray, grid: tuple[int, int], corner: tuple[int, int], *, side: int = 256, mpp: float = 0.5
) -> Path:
    """A one-level MIRAX slide of ``grid`` (columns, rows) camera images of ``side`` px; ``image`` (whole camera images)
    lies at camera image ``corner``, the rest was not scanned."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    path.write_bytes(cv2.imencode(".jpg", cv2.resize(image, (64, 48)))[1].tobytes())  # a preview that nobody reads
    name = "0123456789ABCDEF0123456789ABCDEF"
    data, records = b"", []
    for row in range(image.shape[0] // side):
        for col in range(image.shape[1] // side):
            field = image[row * side : (row + 1) * side, col * side : (col + 1) * side, ::-1]
            jpeg = cv2.imencode(".jpg", field, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            records.append(((corner[1] + row) * grid[0] + corner[0] + col, len(data), len(jpeg), 0))
            data += jpeg
    (folder / "Data0000.dat").write_bytes(data)
    sections = {
        "GENERAL": {
            "SLIDE_ID": name,
            "IMAGENUMBER_X": grid[0],
            "IMAGENUMBER_Y": grid[1],
            "OBJECTIVE_MAGNIFICATION": 20,
            "CameraImageDivisionsPerSide": 1,
        },
        "HIERARCHICAL": {
            "HIER_COUNT": 1,
            "NONHIER_COUNT": 0,
            "INDEXFILE": "Index.dat",
            "HIER_0_NAME": "Slide zoom level",
            "HIER_0_COUNT": 1,
            "HIER_0_VAL_0_SECTION": "LEVEL_0",
        },
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
        "LEVEL_0": {
            "OVERLAP_X": 0,
            "OVERLAP_Y": 0,
            "MICROMETER_PER_PIXEL_X": mpp,
            "MICROMETER_PER_PIXEL_Y": mpp,
            "IMAGE_FORMAT": "JPEG",
            "IMAGE_FILL_COLOR_BGR": 16777215,
            "DIGITIZER_WIDTH": side,
            "DIGITIZER_HEIGHT": side,
            "IMAGE_CONCAT_FACTOR": 0,
        },
    }
    (folder / "Slidedat.ini").write_text(
        "".join(f"[{s}]\n" + "".join(f"{k} = {v}\n" for k, v in values.items()) for s, values in sections.items())
    )
    start = b"01.02" + name.encode()
    table = len(start) + 8  # after the roots of the two hierarchies: pointers to the levels, then a list of one page
    index = start + struct.pack("<ii", table, 0) + struct.pack("<i", table + 4) + struct.pack("<ii", 0, table + 12)
    index += struct.pack("<ii", len(records), 0) + b"".join(struct.pack("<iiii", *r) for r in records)
    (folder / "Index.dat").write_bytes(index)
    return path
