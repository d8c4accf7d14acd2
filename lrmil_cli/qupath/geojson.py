"""Heatmaps as GeoJSON that QuPath 0.5 to 0.7 opens: one square a tile, objectType ``tile``, plain numbers.

QuPath imports a file whole or not at all, so everything is checked before the first byte is written.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrmil_cli import __version__
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.atomic import write_bytes

if TYPE_CHECKING:
    import pandas as pd

#: Measurement names are public API: QuPath projects and scripts refer to them.
SCALED, RAW, PERCENTILE = "LRMIL attention (0-1)", "LRMIL attention", "LRMIL attention percentile"
NAMESPACE = uuid.UUID("6f1c1a0e-7f0a-5d3c-9a51-3d2b7c1e8f40")
SUFFIXES = (".geojson", ".geojson.gz", ".json", ".json.gz")
MANY_TILES = 200_000


def origin_offset(slide: dict[str, Any], origin: str, image_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """What to subtract from level-0 coordinates to get QuPath's (QuPath crops to OpenSlide's bounds).

    Args:
        slide: the ``slide`` entry of a header; origin: ``auto``, ``bounds`` or ``full``.
        image_size: width and height as QuPath shows them; decides in place of ``auto``.

    Raises:
        UsageError: unknown origin; InputError: bounds asked for that the slide does not have, or a size that fits neither.
    """
    if origin not in ("auto", "bounds", "full"):
        raise UsageError(f"--origin {origin}: choose auto, bounds or full")
    bounds = slide.get("bounds")
    if image_size is not None and origin == "auto":
        if bounds and image_size == (bounds[2], bounds[3]):
            return bounds[0], bounds[1]
        if image_size == (slide["width"], slide["height"]):
            return 0, 0
        raise InputError(f"--image-size {image_size[0]}x{image_size[1]} is neither the slide ({slide['width']}x{slide['height']}) "
                         "nor its bounds; is the image rotated, or another one?")
    if origin == "bounds" and not bounds:
        raise InputError(f"slide {slide['id']} has no OpenSlide bounds; use --origin full")
    return (bounds[0], bounds[1]) if bounds and origin != "full" else (0, 0)


def measurements(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Measurement name -> values [N]; the scaled one first, because QuPath shows the first.

    Raises:
        InputError: a value is not finite.
    """
    attention = rows["attention"].to_numpy(np.float64)
    top = attention.max()
    out = {SCALED: attention / top if top > 0 else attention, RAW: attention, PERCENTILE: rows["percentile"].to_numpy(np.float64)}
    out |= {f"LRMIL score {c.removeprefix('score_')}": rows[c].to_numpy(np.float64) for c in rows.columns if c.startswith("score_")}
    for name, values in out.items():
        if not np.isfinite(values).all():
            raise InputError(f"the attention table holds values of {name} that are not finite; run `lrmil predict` again")
    return out


def clip_tiles(rows: pd.DataFrame, slide: dict[str, Any]) -> np.ndarray:
    """Corners int64 [N, 4] (left, top, right, bottom) in level-0 px, cut at the slide's edge.

    Raises:
        InputError: a tile lies off the slide, or two tiles overlap.
    """
    x, y, w, h = (rows[c].to_numpy(np.int64) for c in ("x", "y", "width", "height"))
    box = np.stack([np.maximum(x, 0), np.maximum(y, 0), np.minimum(x + w, slide["width"]), np.minimum(y + h, slide["height"])], 1)
    if (box[:, 2] <= box[:, 0]).any() or (box[:, 3] <= box[:, 1]).any():
        raise InputError("a tile of the attention table lies off the slide; is the table of another slide?")
    _check_overlap(box)
    return box


def _check_overlap(box: np.ndarray) -> None:
    """Tiles come from one grid; sorted by row and column, neighbours must not reach into each other."""
    order = np.lexsort((box[:, 0], box[:, 1]))
    own = box[order]
    same_row = own[1:, 1] == own[:-1, 1]
    rows = np.unique(own[:, 1])
    tallest = np.array([own[own[:, 1] == r, 3].max() for r in rows]) if len(rows) < 5000 else None
    if (same_row & (own[1:, 0] < own[:-1, 2])).any() or (tallest is not None and (tallest[:-1] > rows[1:]).any()):
        raise InputError("tiles of the attention table overlap; QuPath paints overlapping tiles in random order")


def features(header: dict[str, Any], rows: pd.DataFrame, offset: tuple[int, int]) -> Iterator[str]:
    """One line of GeoJSON a tile. The text is put together directly: it is fifteen times faster than building dicts."""
    values = measurements(rows)
    names = [json.dumps(n) for n in values]
    box = clip_tiles(rows, header["slide"]) - np.array([*offset, *offset])
    if (box < 0).any():
        raise InputError("tiles lie outside the part of the slide that QuPath shows; use --origin full")
    key = f"{header['slide']['fingerprint']}|{header['history'][-1]['digest'] if header['history'] else ''}"
    # 7 significant digits: QuPath keeps 32-bit floats.
    texts = zip(*([f"{v:.7g}" for v in column.tolist()] for column in values.values()))
    for (x0, y0, x1, y1), numbers in zip(box.tolist(), texts):
        own = uuid.uuid5(NAMESPACE, f"{key}|{x0}|{y0}|{x1}|{y1}")
        measured = ",".join(f"{n}:{v}" for n, v in zip(names, numbers))
        yield (f'{{"type":"Feature","id":"{own}","geometry":{{"type":"Polygon","coordinates":'
               f"[[[{x0},{y0}],[{x1},{y0}],[{x1},{y1}],[{x0},{y1}],[{x0},{y0}]]]}},"
               f'"properties":{{"objectType":"tile","measurements":{{{measured}}}}}}}')


def heatmap(header: dict[str, Any], rows: pd.DataFrame, *, origin: str = "auto", image_size: tuple[int, int] | None = None) -> str:
    """The FeatureCollection of an attention table.

    Raises:
        InputError: values or tiles that QuPath would refuse or paint wrongly; UsageError: unknown origin.
    """
    if rows.empty:
        raise InputError("the attention table has no tiles")
    offset = origin_offset(header["slide"], origin, image_size)
    about = {"version": __version__, "slide": Path(header["slide"]["path"]).name, "origin": "qupath", "offset": list(offset),
             "prediction": header.get("prediction"), "history": header["history"]}
    body = ",\n".join(features(header, rows, offset))
    return f'{{"type":"FeatureCollection","lrmil":{json.dumps(about, allow_nan=False)},"features":[\n{body}\n]}}\n'


def is_constant(rows: pd.DataFrame) -> bool:
    """One flat colour would be all there is to see."""
    values = rows["attention"].to_numpy()
    return len(values) > 1 and math.isclose(values.min(), values.max(), rel_tol=1e-9)


def write_geojson(path: str, text: str) -> None:
    """Write to ``path``, gzipped if it ends in .gz; ``-`` is standard output.

    Raises:
        UsageError: a name that QuPath would not open; MachineError: it cannot be written.
    """
    if path == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    check_name(path)
    data = text.encode("utf-8")
    write_bytes(path, gzip.compress(data, 6, mtime=0) if path.lower().endswith(".gz") else data)


def check_name(path: str) -> None:
    """QuPath goes by the name.

    Raises:
        UsageError: it has none of the suffixes that QuPath opens.
    """
    if not path.lower().endswith(SUFFIXES):
        raise UsageError(f"{path}: QuPath opens names ending in {', '.join(SUFFIXES)}")


def parse_image_size(text: str | None) -> tuple[int, int] | None:
    """``46000x32914`` -> (46000, 32914).

    Raises:
        UsageError: not of that form.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.strip().isdigit() for p in parts):
        raise UsageError(f"--image-size {text}: give it as WIDTHxHEIGHT, as QuPath shows it")
    return int(parts[0]), int(parts[1])
