"""Pictures without QuPath: kept tiles on the thumbnail, and the attention beside the tissue."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from lrmil_cli.files.atomic import write_bytes

if TYPE_CHECKING:
    import pandas as pd

    from lrmil_cli.slides.tiles import TissueMap

#: Longest side of a picture of the slide, px.
MAX_SIDE = 1600
TISSUE_COLOUR, TILE_COLOUR = (0, 160, 60), (40, 90, 220)


def tile_picture(path: str | Path, tissue: TissueMap, rows: pd.DataFrame) -> None:
    """PNG of the slide with the outline of the tissue (green) and the kept tiles (blue).

    Raises:
        MachineError: the file cannot be written.
    """
    image, scale = _fit(tissue.image)
    outlines, _ = cv2.findContours(tissue.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    line = max(1, round(max(image.shape[:2]) / 900))
    for outline in outlines:
        cv2.polylines(image, [np.rint((outline + 0.5) * scale - 0.5).astype(np.int32)], True, TISSUE_COLOUR, line)
    for x, y, w, h in rows[["x", "y", "width", "height"]].to_numpy():
        a = (round(x / tissue.scale_x * scale), round(y / tissue.scale_y * scale))
        b = (round((x + w) / tissue.scale_x * scale), round((y + h) / tissue.scale_y * scale))
        cv2.rectangle(image, a, b, TILE_COLOUR, line)
    ok, data = cv2.imencode(".png", image[..., ::-1])
    assert ok
    write_bytes(path, data.tobytes())


def _fit(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The image scaled to at most :data:`MAX_SIDE`, and the factor."""
    scale = min(MAX_SIDE / max(image.shape[:2]), 4.0)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), scale


def attention_picture(
    path: str | Path, image: np.ndarray, scale_x: float, scale_y: float, rows: pd.DataFrame, slide: dict[str, Any],
    title: str, outlines: list[np.ndarray] | None = None,
) -> None:
    """PNG: the slide, and beside it the same with its attention, colour bar and scale bar.

    Args:
        image: uint8 [H, W, 3]; scale_x, scale_y: level-0 px per pixel of it.
        rows: columns ``x, y, width, height, attention``; slide: header entry (for mpp).
        outlines: rings [n, 2] in level-0 px to draw over both, such as a known lesion.

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
    figure = Figure(figsize=(12, max(3.2, min(9.0, 5.6 * height / width) + 0.7)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    attention = rows["attention"].to_numpy()
    norm = Normalize(0, max(attention.max(), 1e-12))
    for ax, name in ((left, "slide"), (right, "attention")):
        ax.imshow(image, extent=(0, width, height, 0), interpolation="bilinear")
        ax.set_title(name, fontsize=10)
        ax.set_xlim(0, width)
        ax.set_ylim(height, 0)
        ax.set_xticks([])
        ax.set_yticks([])
        for ring in outlines or []:
            ax.plot(ring[:, 0], ring[:, 1], color="#00A0FF", lw=1.6)
    boxes = [Rectangle((x, y), w, h) for x, y, w, h in rows[["x", "y", "width", "height"]].to_numpy()]
    # viridis: readable for the colour-blind, and no colour of it is a stain
    right.add_collection(PatchCollection(boxes, facecolor=ScalarMappable(norm, "viridis").to_rgba(attention), alpha=0.62, lw=0))
    figure.colorbar(ScalarMappable(norm, "viridis"), ax=right, label="attention (tiles sum to 1)", shrink=0.85)
    _scale_bar(left, width, height, slide["mpp"])
    figure.suptitle(title, fontsize=11)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    write_bytes(path, sink.getvalue())


def _scale_bar(ax: Any, width: float, height: float, mpp: float) -> None:
    """A bar of a round length, about a fifth of the picture."""
    target = width * mpp / 5
    length = max((m * 10**e for e in range(0, 6) for m in (1, 2, 5) if m * 10**e <= target), default=1)
    px = length / mpp
    x, y = width * 0.04, height * 0.96
    ax.plot([x, x + px], [y, y], color="black", lw=4, solid_capstyle="butt")
    ax.text(x + px / 2, y - height * 0.012, f"{length / 1000:g} mm" if length >= 1000 else f"{length} um",
            ha="center", va="bottom", fontsize=9, color="black", bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 1.5})
