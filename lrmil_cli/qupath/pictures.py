"""Pictures without QuPath: kept tiles on the thumbnail, and the attention beside the tissue."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.atomic import write_bytes
from lrmil_cli.files.header import last_digest, step

if TYPE_CHECKING:
    import pandas as pd

    from lrmil_cli.slides.slide import Slide
    from lrmil_cli.slides.tiles import TissueMap

#: Longest side of a picture of the slide, px.
MAX_SIDE = 1600
TISSUE_COLOUR, TILE_COLOUR, REGION_COLOUR = (0, 160, 60), (40, 90, 220), (213, 94, 0)
#: Longest side of the overview behind an attention map, px.
MAP_SIDE = 1000
#: Where the highest tile is more than so many times this quantile of the attention, the colours end at the quantile.
_QUANTILE, _OUTLIER = 0.99, 1.5


def rings(area: Any) -> list[np.ndarray]:
    """All rings [n, 2] of a shapely polygon or multipolygon, holes included."""
    import shapely

    return [
        np.asarray(r.coords)
        for p in shapely.get_parts([area])
        if p.geom_type == "Polygon"
        for r in (p.exterior, *p.interiors)
    ]


def tile_picture(
    path: str | Path, tissue: TissueMap, rows: pd.DataFrame | None, outlines: Sequence[np.ndarray] = ()
) -> None:
    """PNG of the slide with the outline of the tissue (green), the kept tiles (blue) and chosen regions (orange).

    Args:
        rows: None where no tile was kept.
        outlines: rings [n, 2] in level-0 px.

    Raises:
        MachineError: the file cannot be written.
    """
    image, scale = _fit(tissue.image)
    contours, _ = cv2.findContours(tissue.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    line = max(1, round(max(image.shape[:2]) / 900))
    for contour in contours:
        cv2.polylines(image, [np.rint((contour + 0.5) * scale - 0.5).astype(np.int32)], True, TISSUE_COLOUR, line)
    for x, y, w, h in [] if rows is None else rows[["x", "y", "width", "height"]].to_numpy():
        a = (round(x / tissue.scale_x * scale), round(y / tissue.scale_y * scale))
        b = (round((x + w) / tissue.scale_x * scale), round((y + h) / tissue.scale_y * scale))
        cv2.rectangle(image, a, b, TILE_COLOUR, line)
    for ring in outlines:
        points = np.rint(ring / [tissue.scale_x, tissue.scale_y] * scale).astype(np.int32)
        cv2.polylines(image, [points], True, REGION_COLOUR, 2 * line, cv2.LINE_AA)
    ok, data = cv2.imencode(".png", image[..., ::-1])
    assert ok
    write_bytes(path, data.tobytes())


def _fit(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The image scaled to at most :data:`MAX_SIDE`, and the factor."""
    scale = min(MAX_SIDE / max(image.shape[:2]), 4.0)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), scale


def check_picture_name(option: str, path: str) -> None:
    """Raises UsageError if ``path`` does not end in .png."""
    if not path.lower().endswith(".png"):
        raise UsageError(f"{option} {path}: give a name that ends in .png")


def picture_provenance(header: dict[str, Any], values_digest: str, colormap: str) -> dict[str, Any]:
    """What :func:`slide_picture` writes into the PNG: history, whose last digest decides whether it is up to date."""
    settings = {"picture": "attention", "colormap": colormap}
    inputs = {"attention": last_digest(header), "rows": values_digest}
    return {"slide": header["slide"]["path"], "history": [*header["history"], step("picture", settings, inputs)]}


def read_picture_provenance(path: str | Path) -> dict[str, Any]:
    """The same from a PNG.

    Raises:
        InputError: not a picture made by lrmil.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return json.loads(image.info["lrmil"])
    except (OSError, KeyError, ValueError, SyntaxError) as e:
        raise InputError(f"{path}: not a picture made by lrmil") from e


def verdict(prediction: dict[str, Any]) -> str:
    """``tumor, probability 0.93`` of the ``prediction`` entry of a header."""
    return (
        f"predicted: {prediction['predicted']}, probability {prediction['probabilities'][prediction['predicted']]:.2f}"
    )


def slide_picture(
    path: str | Path,
    slide: Slide,
    header: dict[str, Any],
    rows: pd.DataFrame,
    *,
    colormap: str = "viridis",
    outlines: Sequence[np.ndarray] = (),
    provenance: dict[str, Any] | None = None,
) -> None:
    """PNG of a slide and its attention table side by side, with what was predicted.

    Args:
        header, rows: the attention table; outlines: rings [n, 2] in level-0 px, such as the chosen regions.

    Raises:
        InputError: the slide is damaged, or not the one of the table; MachineError: the file cannot be written.
    """
    if slide.fingerprint != header["slide"]["fingerprint"]:
        raise InputError(
            f"{slide.path} is not the slide of the attention table (or it has changed); run `lrmil predict` again"
        )
    image, scale_x, scale_y, corner = scanned_part(slide, MAP_SIDE)
    rows = rows.assign(x=rows["x"] - corner[0], y=rows["y"] - corner[1])
    outlines = [ring - corner for ring in outlines]
    prediction = header.get("prediction") or {}
    others = ", ".join(
        f"{c} {p:.2f}" for c, p in prediction.get("probabilities", {}).items() if c != prediction.get("predicted")
    )
    attention_picture(
        path,
        image,
        scale_x,
        scale_y,
        rows,
        header["slide"],
        header["slide"]["id"],
        outlines,
        colormap=colormap,
        verdict=verdict(prediction) if prediction else "",
        note=f"{others}; {len(rows)} tiles" if others else f"{len(rows)} tiles",
        provenance=provenance,
    )


def scanned_part(slide: Slide, side: int) -> tuple[np.ndarray, float, float, np.ndarray]:
    """What was scanned of a slide, in about ``side`` px (up to twice that): around it, where a slide has bounds, there
    may be several times as much of nothing.

    Returns:
        uint8 [H, W, 3]; level-0 px per pixel of it along x, along y; its corner [2] in level-0 px.

    Raises:
        InputError: the slide is damaged.
    """
    from lrmil_cli.slides.reader import overview

    left, top, width, height = slide.bounds or (0, 0, slide.width, slide.height)
    image, scale_x, scale_y = overview(slide, max(slide.mpp, slide.mpp * max(width, height) / side))
    col, row = int(left / scale_x), int(top / scale_y)
    image = image[row : int(np.ceil((top + height) / scale_y)), col : int(np.ceil((left + width) / scale_x))]
    return image, scale_x, scale_y, np.array([col * scale_x, row * scale_y])


def attention_picture(
    path: str | Path,
    image: np.ndarray,
    scale_x: float,
    scale_y: float,
    rows: pd.DataFrame,
    slide: dict[str, Any],
    title: str,
    outlines: Sequence[np.ndarray] | None = None,
    *,
    verdict: str = "",
    note: str = "",
    colormap: str = "viridis",
    provenance: dict[str, Any] | None = None,
) -> None:
    """PNG: the slide, and beside it the same in grey with its attention, colour bar and scale bar.

    Args:
        image: uint8 [H, W, 3]; scale_x, scale_y: level-0 px per pixel of it.
        rows: columns ``x, y, width, height, attention``; slide: header entry (for mpp).
        outlines: rings [n, 2] in level-0 px to draw over both, such as a known lesion.
        verdict, note: a large line under the title, and a small one; provenance: put into the PNG.

    Raises:
        MachineError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    height, width = image.shape[0] * scale_y, image.shape[1] * scale_x
    figure = Figure(figsize=(12, max(3.6, min(9.0, 5.4 * height / width) + 1.2)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    # Grey and pale, so that no colour on the right is a stain.
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    pale = np.repeat((255 - (255 - grey.astype(np.float32)) * 0.7).astype(np.uint8)[..., None], 3, 2)
    for ax, name, shown in ((left, "slide", image), (right, "where the model looked", pale)):
        ax.imshow(shown, extent=(0, width, height, 0), interpolation="bilinear")
        ax.set_title(name, fontsize=10)
        ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        for ring in outlines or []:
            ax.plot(ring[:, 0], ring[:, 1], color="white", lw=3.2)
            ax.plot(ring[:, 0], ring[:, 1], color="#0072B2", lw=1.8)
    relative = rows["attention"].to_numpy() / max(rows["attention"].max(), 1e-300)
    high = float(np.quantile(relative, _QUANTILE))
    high = 1.0 if high <= 0 or 1 / high <= _OUTLIER else high
    colours = ScalarMappable(Normalize(0, high), colormap)
    boxes = [Rectangle((x, y), w, h) for x, y, w, h in rows[["x", "y", "width", "height"]].to_numpy()]
    right.add_collection(
        PatchCollection(boxes, facecolor=colours.to_rgba(relative), alpha=0.78, lw=0, antialiased=False)
    )
    figure.colorbar(
        colours, ax=right, label="attention (highest tile = 1)", shrink=0.85, extend="neither" if high == 1 else "max"
    )
    _scale_bar(left, width, height, slide["mpp"])
    figure.suptitle(f"{title}\n{verdict}" if verdict else title, fontsize=14 if verdict else 11)
    if note:
        figure.supxlabel(f"{note}. Research use only.", fontsize=9, color="#444444")
    sink = io.BytesIO()
    figure.savefig(
        sink, format="png", dpi=110, metadata=None if provenance is None else {"lrmil": json.dumps(provenance)}
    )
    write_bytes(path, sink.getvalue())


def _scale_bar(ax: Any, width: float, height: float, mpp: float) -> None:
    """A bar of a round length, about a fifth of the picture."""
    length = bar_length(width * mpp)
    px = length / mpp
    x, y = width * 0.04, height * 0.96
    ax.plot([x, x + px], [y, y], color="black", lw=4, solid_capstyle="butt")
    ax.text(
        x + px / 2,
        y - height * 0.012,
        length_text(length),
        ha="center",
        va="bottom",
        fontsize=9,
        color="black",
        bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 1.5},
    )


def bar_length(width_um: float) -> int:
    """Length in um of a scale bar: 1, 2 or 5 times a power of ten, at most a fifth of a picture's width."""
    return max((m * 10**e for e in range(0, 6) for m in (1, 2, 5) if m * 10**e <= width_um / 5), default=1)


def length_text(um: int) -> str:
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um} µm"
