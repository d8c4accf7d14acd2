"""The tiles with the most and the least attention: their pixels at 20x, for a page and as PNG with a contact sheet."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.files.atomic import write_bytes
from lrmil_cli.files.header import last_digest, step, up_to_date
from lrmil_cli.pages.results import Result
from lrmil_cli.qupath.colours import multiples
from lrmil_cli.qupath.pictures import bar_length, length_text, read_picture_provenance, verdict
from lrmil_cli.slides.grid import choose_level
from lrmil_cli.slides.reader import read_tile
from lrmil_cli.slides.slide import Slide
from lrmil_cli.units import Mpp

#: How many of each are shown, and at how many um/px: 20x, or the finest that the slide has.
TOP, BOTTOM, MPP = 6, 3, 0.5


@dataclass(frozen=True)
class TilePicture:
    """One tile.

    Attributes:
        name: ``top1``, ``bottom2``; row: of the attention table; box: ``x, y, width, height`` in level-0 px.
        times: its attention as a multiple of uniform.
        pixels: uint8 [P, P, 3], None where there is no slide or it cannot be decoded; mpp: um per pixel of it.
    """

    name: str
    row: int
    box: tuple[int, int, int, int]
    times: float
    pixels: np.ndarray | None
    mpp: float


def chosen_rows(attention: np.ndarray) -> list[tuple[str, int]]:
    """Names and rows of the tiles to show: the most attended first, then the least attended; none twice.

    Of equal ones the first of the table comes first.
    """
    order = np.argsort(-attention, kind="stable")
    top = order[:TOP]
    bottom = np.argsort(attention, kind="stable")[:BOTTOM]
    bottom = bottom[~np.isin(bottom, top)]
    return [(f"top{n}", int(r)) for n, r in enumerate(top, 1)] + [
        (f"bottom{n}", int(r)) for n, r in enumerate(bottom, 1)
    ]


def tile_pictures(result: Result, slide: Slide | None) -> list[TilePicture]:
    """The tiles to show, with their pixels where there is a slide to read them from."""
    attention = result.rows["attention"].to_numpy(np.float64)
    times = multiples(attention)
    boxes = result.rows[["x", "y", "width", "height"]].to_numpy(np.int64)
    mpp = max(MPP, slide.mpp) if slide else MPP
    out = []
    for name, row in chosen_rows(attention):
        x, y, w, h = boxes[row].tolist()
        pixels = _pixels(slide, x, y, w, h, mpp) if slide else None
        own = mpp if pixels is None or slide is None else w * slide.mpp / len(pixels)
        out.append(TilePicture(name, row, (x, y, w, h), float(times[row]), pixels, own))
    return out


def _pixels(slide: Slide, x: int, y: int, width: int, height: int, mpp: float) -> np.ndarray | None:
    level = choose_level([l.downsample for l in slide.levels], slide.mpp, Mpp(mpp), where=str(slide.path))
    side = max(1, round(max(width, height) * slide.mpp / mpp))
    try:
        return read_tile(slide, level, x, y, width, height, side)
    except InputError:
        return None


def write_tiles(folder: Path, result: Result, tiles: list[TilePicture], overwrite: bool) -> Path | None:
    """``<slide>.top1.png`` ..., ``<slide>.bottom1.png`` ... and ``<slide>.tiles.png``, the contact sheet, which is
    written last and marks them as whole.

    Returns:
        the contact sheet; None where they are up to date.

    Raises:
        UsageError: they are of another prediction, and ``overwrite`` is off. MachineError: they cannot be written.
    """
    about = _provenance(result, {"tiles": [TOP, BOTTOM, MPP]})
    sheet = folder / f"{result.slide_id}.tiles.png"
    if up_to_date(sheet, last_digest(about), read_picture_provenance, overwrite):
        return None
    for tile in tiles:
        if tile.pixels is not None:
            own = {**about, "tile": dict(zip(("x", "y", "width", "height"), tile.box)), "mpp": tile.mpp}
            write_bytes(folder / f"{result.slide_id}.{tile.name}.png", _png(tile.pixels, own))
    write_bytes(sheet, _contact_sheet(result, tiles, about))
    return sheet


def _provenance(result: Result, settings: dict[str, Any]) -> dict[str, Any]:
    made = step("report", settings, {"prediction": last_digest(result.header)})
    return {"slide": result.slide["path"], "history": [*result.header["history"], made]}


def _png(pixels: np.ndarray, about: dict[str, Any]) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("lrmil", json.dumps(about))
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "png", pnginfo=info)
    return sink.getvalue()


def _contact_sheet(result: Result, tiles: list[TilePicture], about: dict[str, Any]) -> bytes:
    """All tiles on one sheet, three in a row, with their multiples, places and a scale bar each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(tiles) // 3)
    figure = Figure(figsize=(9.6, 3.4 * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, tile in zip(figure.subplots(rows, 3, squeeze=False).flat, [*tiles, *[None] * (3 * rows - len(tiles))]):
        ax.axis("off")
        if tile is None or tile.pixels is None:
            continue
        side = len(tile.pixels)
        um = bar_length(side * tile.mpp)
        shown = cv2.resize(tile.pixels, (600, 600), interpolation=cv2.INTER_AREA) if side > 600 else tile.pixels
        ax.imshow(shown, extent=(0, side, side, 0), interpolation="nearest")
        ax.set_title(f"{tile.name}: {times_text(tile.times)} uniform\nx {tile.box[0]}, y {tile.box[1]} px", fontsize=9)
        ax.plot([side * 0.05, side * 0.05 + um / tile.mpp], [side * 0.94] * 2, color="white", lw=6)
        ax.plot([side * 0.05, side * 0.05 + um / tile.mpp], [side * 0.94] * 2, color="black", lw=3)
        box = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1.5}
        ax.text(side * 0.05, side * 0.91, length_text(um), fontsize=8, va="bottom", bbox=box)
    title = figure.suptitle(f"{result.slide['id']}: {verdict(result.record)}. Research use only.", fontsize=11)
    title.set_parse_math(False)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, metadata={"lrmil": json.dumps(about)})
    return sink.getvalue()


def times_text(times: float) -> str:
    """``3.2×``, ``0.12×``, ``below 0.01×``."""
    if times < 0.01:
        return "below 0.01×"
    return f"{times:.0f}×" if times >= 99.5 else f"{times:.1f}×" if times >= 0.995 else f"{times:.2f}×"
