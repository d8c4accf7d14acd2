"""Attention as GeoJSON that QuPath 0.5 to 0.7 opens: one square a tile, objectType ``tile``, plain numbers.

QuPath imports a file whole or not at all, so everything is checked before the first byte is written (qupath/README 2).
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrmil_cli import __version__
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.header import check_slide, last_digest, step
from lrmil_cli.qupath.files import suffix_of
from lrmil_cli.qupath.frame import Frame, qupath_frame
from lrmil_cli.qupath.regions import BANDS, Band, check_colormap, choose_band, region_features
from lrmil_cli.qupath.rules import MANY_TILES, overlapping, require_good

if TYPE_CHECKING:
    import pandas as pd

#: Measurement names are public API: QuPath projects and scripts refer to them.
SCALED, RAW, PERCENTILE = "LRMIL attention (0-1)", "LRMIL attention", "LRMIL attention percentile"
#: Further columns of attention tables and what QuPath calls them: whether a tile was read at HR, the screener's score.
MORE = {"kept": "LRMIL kept (0-1)", "screening": "LRMIL screening (0-1)"}
#: The column of a screen table that says which tiles were read at HR. The table has 0 for the attention of the others;
#: that is no measurement (nobody looked there), so that a map of such a table shows these names and no attention.
READ, SCREEN = "kept", tuple(MORE.values())
NAMESPACE = uuid.UUID("6f1c1a0e-7f0a-5d3c-9a51-3d2b7c1e8f40")
STYLES = ("tiles", "regions", "both")
#: Features made, checked and written at a time.
CHUNK = 4096


@dataclass(frozen=True)
class Style:
    """What to write: ``style`` tiles, regions or both; of regions the ``top`` share of tiles, or those whose scaled
    attention is at least ``threshold``, or else bands of percentiles, coloured by ``colormap``."""

    style: str = "tiles"
    top: float | None = None
    threshold: float | None = None
    colormap: str = "viridis"

    def bands(self) -> tuple[Band, ...]:
        return BANDS if self.top is None and self.threshold is None else (choose_band(self.top, self.threshold),)


@dataclass(frozen=True)
class Document:
    """A GeoJSON document to write: ``pieces`` of text are made when asked for; ``about`` is its provenance."""

    about: dict[str, Any]
    pieces: Iterator[str]
    objects: int
    warnings: list[str]


def check_style(style: Style) -> None:
    """Options that fit each other.

    Raises:
        UsageError: unknown style, or options that would do nothing.
    """
    if style.style not in STYLES:
        raise UsageError(f"--style {style.style}: choose {', '.join(STYLES)}")
    check_colormap(style.colormap)
    if style.top is not None and style.threshold is not None:
        raise UsageError("give --top or --threshold, not both")
    for name, value in (("--top", style.top), ("--threshold", style.threshold)):
        if value is None:
            continue
        if not 0 < value <= 1:
            raise UsageError(f"{name} {value:g}: give a number over 0, and 1 at most")
        if style.style == "tiles":
            raise UsageError(
                f"{name} chooses regions; add --style regions or --style both (QuPath's own sliders choose tiles)"
            )


def output_paths(output: str, style: str) -> dict[str, str]:
    """Style -> file; with ``both`` the regions go beside the tiles, into ``NAME.regions.geojson``."""
    if style != "both":
        return {style: output}
    if output == "-":
        raise UsageError("--style both makes two files; give a file name, or one style for stdout")
    suffix = suffix_of(output) or ""
    stem = output[: len(output) - len(suffix)]
    return {"tiles": output, "regions": f"{stem.removesuffix('.heatmap')}.regions{suffix}"}


def make_document(
    header: dict[str, Any],
    rows: pd.DataFrame,
    kind: str,
    style: Style = Style(),
    *,
    origin: str = "auto",
    image_size: tuple[int, int] | None = None,
) -> Document:
    """The FeatureCollection of an attention table.

    Args:
        kind: ``tiles`` or ``regions``; origin, image_size: see :func:`lrmil_cli.qupath.frame.qupath_frame`.

    Raises:
        InputError: values or tiles that QuPath would refuse or paint wrongly; UsageError: unknown origin.
    """
    if rows.empty:
        raise InputError("the attention table has no tiles; run `lrmil predict` again")
    slide = check_slide(header, "the attention table")
    frame = qupath_frame(slide, origin, image_size)
    screen = READ in rows.columns
    if screen and kind == "regions":
        rows = read_tiles(rows)
    values = measurements(rows)
    box, shown = clip_tiles(rows, slide, frame)
    settings: dict[str, Any] = {"style": kind, "offset": frame.offset, "image": [frame.width, frame.height]}
    if kind == "regions":
        settings |= {"bands": [b.name for b in style.bands()], "colormap": style.colormap}
    if screen:
        settings |= {"tiles": "read"} if kind == "regions" else {"attention": False}
    inputs = {
        "attention": last_digest(header),
        "rows": rows_digest(rows[["x", "y", "width", "height"]].to_numpy(np.int64), values),
    }
    about = {
        "version": __version__,
        "slide": Path(slide["path"]).name,
        "slide_id": slide["id"],
        "fingerprint": slide["fingerprint"],
        "origin": "qupath",
        "offset": frame.offset,
        "image": [frame.width, frame.height],
        "style": kind,
        "settings": settings,
        "prediction": header.get("prediction"),
        "roi": header.get("roi"),
        "history": [*header["history"], step("export-geojson", settings, inputs)],
    }
    about = {k: v for k, v in about.items() if v is not None}
    if screen and kind == "tiles":
        values = {name: values[name] for name in SCREEN if name in values}
    warnings = _warnings(values.get(SCALED), int((~shown).sum()), len(box), frame)
    box, values = box[shown], {name: v[shown] for name, v in values.items()}
    # A screen map has tiles that the map of the tiles that were read has as well; they are other objects.
    key = f"{slide['fingerprint']}|{last_digest(header)}" + ("|screen" if screen else "")
    if kind == "tiles":
        return Document(
            about, _pieces(about, _checked(tile_features(box, values, frame, key), about)), len(box), warnings
        )
    found = region_features(
        box, values[SCALED], values[RAW], values[PERCENTILE], style.bands(), style.colormap, frame, NAMESPACE, key
    )
    if not found:
        raise InputError(_why_no_region(values, style, shown))
    require_good(found, (frame.width, frame.height), f"regions of {slide['id']}")
    import geojson

    return Document(about, _pieces(about, map(geojson.dumps, found)), len(found), warnings)


def _why_no_region(values: dict[str, np.ndarray], style: Style, shown: np.ndarray) -> str:
    """What is true of a slide none of whose tiles that QuPath shows lies in a band."""
    if style.threshold is not None:
        where = (
            "" if shown.all() else " that QuPath shows (the others lie outside of the slide's bounds; --origin full)"
        )
        highest = float(values[SCALED].max())
        asked = f"{style.threshold:g}, the highest has {highest:.3g}"
        return f"no tile{where} has scaled attention of {asked}; lower --threshold"
    if np.ptp(values[RAW]) == 0:
        return "all tiles have the same attention, so that none lies in an upper band; nothing can be outlined"
    low = BANDS[0].low
    return f"no tile lies in a band of percentiles (over {100 * low:g} %) of this slide; outline a share by --top"


def _warnings(scaled: np.ndarray | None, left_out: int, tiles: int, frame: Frame) -> list[str]:
    out = []
    if scaled is not None and len(scaled) > 1 and math.isclose(scaled.min(), scaled.max(), rel_tol=1e-9):
        out.append("all tiles have the same attention; QuPath will show one flat colour")
    if tiles > MANY_TILES:
        out.append(f"{tiles} tiles make QuPath slow; a coarser grid (larger --mpp or --tile-px) shows the same")
    if left_out:
        out.append(
            f"{left_out} tiles lie outside the part of the slide that QuPath shows (its bounds, from x={frame.x}, "
            f"y={frame.y}) and are left out; --origin full keeps them, for slides imported with --no-crop"
        )
    return out


def read_tiles(rows: pd.DataFrame) -> pd.DataFrame:
    """The tiles of an attention table that were read: of a screen table those that its screener kept, else all.

    Raises:
        InputError: none was read.
    """
    if READ not in rows.columns:
        return rows
    read = rows[rows[READ] > 0].reset_index(drop=True)
    if read.empty:
        raise InputError("no tile of the screen table was read, so that there is no attention to show")
    return read


def measurements(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Measurement name -> values float64 [N]; the scaled one first, because QuPath shows the first.

    Raises:
        InputError: a value is not finite.
    """
    attention = rows["attention"].to_numpy(np.float64)
    top = attention.max()
    out = {
        SCALED: attention / top if top > 0 else attention,
        RAW: attention,
        PERCENTILE: rows["percentile"].to_numpy(np.float64),
    }
    out |= {
        f"LRMIL score {c.removeprefix('score_')}": rows[c].to_numpy(np.float64)
        for c in rows.columns
        if c.startswith("score_")
    }
    out |= {name: rows[c].to_numpy(np.float64) for c, name in MORE.items() if c in rows.columns}
    for name, values in out.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"the attention table holds values of {name} that are not finite; run `lrmil predict` again"
            )
    return out


def table_digest(rows: pd.DataFrame) -> str:
    """:func:`rows_digest` of a whole attention table.

    Raises:
        InputError: a value is not finite.
    """
    return rows_digest(rows[["x", "y", "width", "height"]].to_numpy(np.int64), measurements(rows))


def rows_digest(box: np.ndarray, values: dict[str, np.ndarray]) -> str:
    """Digest of what a table says: corners, and values to the 9 digits of a CSV, so that a table read back is the
    same."""
    h = hashlib.sha256(np.ascontiguousarray(box, np.int64).tobytes())
    for name, column in values.items():
        if name != SCALED:  # follows from the others
            h.update(f"{name}:{','.join(map('%.9g'.__mod__, column.tolist()))};".encode())
    return h.hexdigest()[:32]


def clip_tiles(rows: pd.DataFrame, slide: dict[str, Any], frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Tiles cut at the edge of the slide and of what QuPath shows of it.

    Returns:
        corners int64 [N, 4] (left, top, right, bottom) in level-0 px; bool [N], which of them QuPath shows at all.

    Raises:
        InputError: a tile lies off the slide, no tile is shown, or two tiles overlap.
    """
    x, y, w, h = (rows[c].to_numpy(np.int64) for c in ("x", "y", "width", "height"))
    box = np.stack(
        [np.maximum(x, 0), np.maximum(y, 0), np.minimum(x + w, slide["width"]), np.minimum(y + h, slide["height"])], 1
    )
    if (box[:, 2] <= box[:, 0]).any() or (box[:, 3] <= box[:, 1]).any():
        raise InputError("a tile of the attention table lies off the slide; is the table of another slide?")
    if overlapping(box) is not None:
        raise InputError("tiles of the attention table overlap; QuPath paints overlapping tiles in random order")
    low, high = np.array([frame.x, frame.y]), np.array([frame.x + frame.width, frame.y + frame.height])
    box = np.concatenate([np.maximum(box[:, :2], low), np.minimum(box[:, 2:], high)], 1)
    shown = np.asarray((box[:, 2:] > box[:, :2]).all(1))
    if not shown.any():
        raise InputError(
            "all tiles lie outside the part of the slide that QuPath shows (its bounds); use --origin full"
        )
    return box, shown


def tile_features(box: np.ndarray, values: dict[str, np.ndarray], frame: Frame, key: str) -> Iterator[list[str]]:
    """Features of tiles as text, in lists of at most :data:`CHUNK`.

    The text is filled into one template: it is many times faster than building features of the ``geojson`` package or
    dicts, and holds one chunk in memory (qupath/README 2.5).

    Args:
        box: int64 [N, 4] in level-0 px; values: name -> float64 [N]; key: what ids are made of besides the box.
    """
    # 7 significant digits: QuPath keeps 32-bit floats.
    measured = ",".join(f"{json.dumps(name).replace('%', '%%')}:%.7g" for name in values)
    ring = ",".join(["[%d,%d]"] * 5)
    template = (
        '{"type":"Feature","id":"%s","geometry":{"type":"Polygon","coordinates":[[' + ring + "]]},"
        '"properties":{"objectType":"tile","measurements":{' + measured + "}}}"
    )
    ids = id_maker(key)
    offset = np.array([*frame.offset, *frame.offset])
    for start in range(0, len(box), CHUNK):
        part = slice(start, start + CHUNK)
        numbers = zip(*(v[part].tolist() for v in values.values()))
        yield [
            template % (ids(own), l, t, r, t, r, b, l, b, l, t, *n)
            for own, (l, t, r, b), n in zip(box[part].tolist(), (box[part] - offset).tolist(), numbers)
        ]


def id_maker(key: str) -> Callable[[list[int]], str]:
    """A function of a box (left, top, right, bottom) in level-0 px that returns its UUID (version 5) as text."""
    # uuid.uuid5 by hand: the hash of the common beginning is made once.
    begin = hashlib.sha1(NAMESPACE.bytes + key.encode(), usedforsecurity=False)

    def own(box: list[int]) -> str:
        h = begin.copy()
        h.update(b"|%d|%d|%d|%d" % (box[0], box[1], box[2] - box[0], box[3] - box[1]))
        d = h.hexdigest()
        return f"{d[:8]}-{d[8:12]}-5{d[13:16]}-{'89ab'[int(d[16], 16) & 3]}{d[17:20]}-{d[20:32]}"

    return own


def _checked(chunks: Iterator[list[str]], about: dict[str, Any]) -> Iterator[str]:
    """The same features joined. All numbers were checked as arrays; that the template makes what QuPath reads is seen
    in the first and last feature of each chunk, parsed again."""
    for chunk in chunks:
        texts = chunk if len(chunk) < 3 else (chunk[0], chunk[-1])
        sample = [json.loads(t, parse_constant=_no_constant) for t in texts]
        require_good(sample, tuple(about["image"]), f"tiles of {about['slide_id']}")
        yield ",\n".join(chunk)


def _no_constant(name: str) -> None:
    raise InputError(f"the attention table holds {name}; run `lrmil predict` again")


def _pieces(about: dict[str, Any], features: Iterator[str]) -> Iterator[str]:
    yield f'{{"type":"FeatureCollection","lrmil":{json.dumps(about, allow_nan=False)},"features":[\n'
    for n, text in enumerate(features):
        yield f",\n{text}" if n else text
    yield "\n]}\n"
