"""Pictures without QuPath: kept tiles on the thumbnail, and the attention beside the tissue."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.atomic import write_bytes
from lrmil_cli.files.header import last_digest, step
from lrmil_cli.qupath.colours import HIGHEST, LOWEST, NAMES, colours, times_of
from lrmil_cli.targets.answers import answer_text, sureness

if TYPE_CHECKING:
    import pandas as pd

    from lrmil_cli.slides.slide import Slide
    from lrmil_cli.slides.tiles import TissueMap

#: Formats of pictures, and the dots per inch of those that are made of dots; a picture is 12 inches wide.
FORMATS, DPI = ("png", "svg", "pdf"), 150
#: Longest side of the slide on the thumbnail, px at 150 dpi, and of the overview behind an attention map.
THUMBNAIL_SIDE, MAP_SIDE = 1600, 1400
TISSUE_COLOUR, TILE_COLOUR, REGION_COLOUR, HIGH_COLOUR = "#007a3d", "#1b4fd0", "#d55e00", "#a01a58"
#: Tiles of so many times an even share, and more, are outlined on the slide.
OUTLINED = 2.0
#: How pale the slide is under its attention.
PALE = 0.7
#: Around what is kept in a picture of how it was made, in formats that have no place for entries of their own.
_MARK = "lrmil:"


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
    path: str | Path,
    slide: Slide,
    tissue: TissueMap,
    rows: pd.DataFrame | None,
    outlines: Sequence[np.ndarray] = (),
) -> None:
    """PNG of a slide with the outline of its tissue, the kept tiles and chosen regions, its id, scale bar and legend.

    Args:
        rows: None where no tile was kept.
        outlines: rings [n, 2] in level-0 px.

    Raises:
        InputError: the slide is damaged. MachineError: the file cannot be written.
    """
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.lines import Line2D

    image, scale_x, scale_y, corner = scanned_part(slide, THUMBNAIL_SIDE)
    height, width = image.shape[0] * scale_y, image.shape[1] * scale_x
    figure, (ax,) = _figure(width, height, 1)
    _show_slide(ax, image, width, height)
    found, _ = cv2.findContours(tissue.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    edges = [((c[:, 0] + 0.5) * [tissue.scale_x, tissue.scale_y] - corner)[[*range(len(c)), 0]] for c in found]
    boxes = np.zeros((0, 4)) if rows is None else rows[["x", "y", "width", "height"]].to_numpy(np.float64)
    x, y, w, h = boxes.T
    squares = np.stack([np.stack(p, 1) for p in ((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y))], 1) - corner
    keys = []
    ax.add_collection(PolyCollection(list(squares), facecolor=TILE_COLOUR, alpha=0.07, lw=0))
    for lines, colour, lw, name in (
        (squares, TILE_COLOUR, 0.7, f"{len(boxes):,} tiles"),
        (edges, TISSUE_COLOUR, 1.3, f"tissue, {tissue.mask.mean():.0%} of the slide"),
        ([ring - corner for ring in outlines], REGION_COLOUR, 2.0, "chosen regions"),
    ):
        if len(lines) or colour != REGION_COLOUR:
            ax.add_collection(LineCollection(lines, colors=colour, linewidths=lw))
            keys.append(Line2D([], [], color=colour, lw=2, label=name))
    _scale_bar(ax, width, height, slide.mpp)
    figure.suptitle(slide.slide_id, fontsize=13, parse_math=False)
    legend = figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    assert legend is not None
    _save(figure, path, DPI, None)


def check_picture_name(option: str, path: str, format: str | None = None) -> None:
    """Raises UsageError if the end of ``path`` is that of no format, or of another than the user asked for."""
    own = Path(path).suffix.lower().removeprefix(".")
    if own not in FORMATS:
        raise UsageError(f"{option} {path}: give a name that ends in .png, .svg or .pdf")
    if format not in (None, own):
        raise UsageError(f"{option} {path} is no {format}; leave out --format, or give a name that ends in .{format}")


def picture_provenance(
    header: dict[str, Any], values_digest: str, colormap: str | None, dpi: int = DPI
) -> dict[str, Any]:
    """What :func:`slide_picture` writes into the file: history, whose last digest decides whether it is up to date."""
    settings = {"picture": "attention", "look": 2, "colormap": colormap, "dpi": dpi}
    inputs = {"attention": last_digest(header), "rows": values_digest}
    return {"slide": header["slide"]["path"], "history": [*header["history"], step("picture", settings, inputs)]}


def read_picture_provenance(path: str | Path) -> dict[str, Any]:
    """The same from a picture.

    Raises:
        InputError: not a picture made by lrmil.
    """
    from PIL import Image

    try:
        if Path(path).suffix.lower() == ".png":
            with Image.open(path) as image:
                return json.loads(image.info["lrmil"])
        kept = re.search(_MARK.encode() + rb"([A-Za-z0-9+/]+=*)", Path(path).read_bytes())
        if kept is None:
            raise ValueError("no such entry")
        return json.loads(base64.b64decode(kept[1]))
    except (OSError, KeyError, ValueError, SyntaxError) as e:
        raise InputError(f"{path}: not a picture made by lrmil") from e


def verdict(prediction: dict[str, Any]) -> str:
    """``predicted: tumor, probability 0.93`` of the ``prediction`` entry of a header; an answer that abstains is
    ``uncertain: ...``."""
    how = "uncertain" if prediction.get("uncertain") else "predicted"
    return f"{how}: {answer_text(prediction)}, {sureness(prediction)}"


def slide_picture(
    path: str | Path,
    slide: Slide,
    header: dict[str, Any],
    rows: pd.DataFrame,
    *,
    colormap: str | None = None,
    dpi: int = DPI,
    outlines: Sequence[np.ndarray] = (),
    provenance: dict[str, Any] | None = None,
) -> None:
    """A slide and its attention table side by side, with what was predicted, as PNG, SVG or PDF.

    Args:
        header, rows: the attention table; outlines: rings [n, 2] in level-0 px, such as the chosen regions.

    Raises:
        InputError: the slide is damaged, or not the one of the table; MachineError: the file cannot be written.
    """
    if slide.fingerprint != header["slide"]["fingerprint"]:
        raise InputError(
            f"{slide.path} is not the slide of the attention table (or it has changed); run `lrmil predict` again"
        )
    image, scale_x, scale_y, corner = scanned_part(slide, max(1, MAP_SIDE * dpi // DPI))
    rows = rows.assign(x=rows["x"] - corner[0], y=rows["y"] - corner[1])
    outlines = [ring - corner for ring in outlines]
    prediction = header.get("prediction") or {}
    others = ", ".join(
        f"{c} {p:.2f}" for c, p in prediction.get("probabilities", {}).items() if c != prediction.get("predicted")
    )
    fine = header.get("fine")
    what = f"{len(rows):,} {'cells, a finer map' if fine else 'tiles'}"
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
        dpi=dpi,
        verdict=verdict(prediction) if prediction else "",
        note=f"{others}; {what}" if others else what,
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
    outlines: Sequence[np.ndarray] = (),
    *,
    verdict: str = "",
    note: str = "",
    colormap: str | None = None,
    dpi: int = DPI,
    provenance: dict[str, Any] | None = None,
) -> None:
    """The slide, and beside it the same in pale grey with its attention over it, see-through, as multiples of an even
    share; legend, scale bar; what has twice an even share and more is outlined on the slide.

    Args:
        path: its end says which format; image: uint8 [H, W, 3]; scale_x, scale_y: level-0 px per pixel of it.
        rows: columns ``x, y, width, height, attention``; slide: header entry (for mpp).
        outlines: rings [n, 2] in level-0 px to draw over both, such as a known lesion.
        verdict, note: a large line under the title, and a small one; provenance: put into the file.

    Raises:
        MachineError: the file cannot be written.
    """
    import shapely
    from matplotlib.collections import LineCollection

    height, width = image.shape[0] * scale_y, image.shape[1] * scale_x
    figure, (left, right) = _figure(width, height, 2)
    times = times_of(rows)
    boxes = rows[["x", "y", "width", "height"]].to_numpy(np.float64)
    high = boxes[times >= OUTLINED]
    around = rings(shapely.union_all(shapely.box(high[:, 0], high[:, 1], *(high[:, :2] + high[:, 2:]).T)))
    named = f"slide; outlined: {OUTLINED:g}× an even share and more" if around else "slide"
    for ax, name, shown in ((left, named, image), (right, "attention", pale(image))):
        _show_slide(ax, shown, width, height)
        ax.set_title(name, fontsize=10)
    left.add_collection(LineCollection(around, colors="white", linewidths=2.6))
    left.add_collection(LineCollection(around, colors=HIGH_COLOUR, linewidths=1.4))
    draw_attention(right, boxes, times, colormap)
    for ax in (left, right):
        for ring in outlines:
            ax.plot(ring[:, 0], ring[:, 1], color="white", lw=3.2)
            ax.plot(ring[:, 0], ring[:, 1], color="#0072B2", lw=1.8)
        _scale_bar(ax, width, height, slide["mpp"])
    draw_legend(figure, [left, right], colormap)
    text = figure.suptitle(f"{title}\n{verdict}" if verdict else title, fontsize=14 if verdict else 11)
    text.set_parse_math(False)
    if note:
        figure.supxlabel(f"{note}. Research use only.", fontsize=9, color="#444444", parse_math=False)
    _save(figure, path, dpi, provenance)


def pale(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] in pale grey, so that no colour over it is a stain."""
    grey = 255 - (255 - cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)) * PALE
    return np.repeat(grey.astype(np.uint8)[..., None], 3, 2)


def draw_attention(ax: Any, boxes: np.ndarray, times: np.ndarray, colormap: str | None = None) -> None:
    """Boxes [N, 4] (``x, y, width, height``) in the colours of their multiples [N] of an even share."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    of = colours(times, colormap)
    squares = [Rectangle((x, y), w, h) for x, y, w, h in boxes.tolist()]
    face = np.concatenate([of[:, :3] / 255, of[:, 3:]], 1)
    ax.add_collection(PatchCollection(squares, facecolor=face, lw=0, antialiased=False))


def draw_legend(figure: Any, axes: Any, colormap: str | None = None) -> None:
    """The scale of colours below some axes."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    scale = colours(2 ** np.linspace(LOWEST, HIGHEST, 256), colormap)
    seen = (scale[:, :3] * scale[:, 3:] + 225 * (1 - scale[:, 3:])) / 255
    legend = ScalarMappable(Normalize(LOWEST, HIGHEST), ListedColormap(seen))
    bar = figure.colorbar(legend, ax=axes, location="bottom", shrink=0.62, aspect=48, pad=0.02)
    bar.set_ticks(list(np.linspace(LOWEST, HIGHEST, len(NAMES))), labels=NAMES)
    bar.set_label("attention, in multiples of an even share; the same colours for every slide", fontsize=9)


def _figure(width: float, height: float, panels: int) -> tuple[Any, Sequence[Any]]:
    """A figure for pictures of a slide beside each other, and their axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    own = min(12 / panels * height / width, 12.0)
    figure = Figure(figsize=(12, max(2.6, own) + (1.1 if panels == 1 else 1.7)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _show_slide(ax: Any, image: np.ndarray, width: float, height: float) -> None:
    ax.imshow(image, extent=(0, width, height, 0), interpolation="bilinear")
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def _save(figure: Any, path: str | Path, dpi: int, provenance: dict[str, Any] | None) -> None:
    """Write a figure in the format that its name ends in; the same figure gives the same bytes."""
    from matplotlib import rc_context

    kind = Path(path).suffix.lower().removeprefix(".")
    text = json.dumps(provenance or {})
    marked = _MARK + base64.b64encode(text.encode()).decode("ascii")
    forms: dict[str, dict[str, Any]] = {
        "png": {"lrmil": text},
        "svg": {"Date": None, "Description": marked},
        "pdf": {"CreationDate": None, "Keywords": marked},
    }
    sink = io.BytesIO()
    with rc_context({"svg.hashsalt": "lrmil", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(sink, format=kind, dpi=dpi, metadata=forms[kind] if provenance is not None else None)
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
