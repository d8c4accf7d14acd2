"""A notebook's door: the chain for people who script, over the same code as the commands.

``import lrmil_cli`` offers all of it and loads nothing heavy; torch comes with the first function that needs it.
Lengths carry their unit in their name, coordinates are level-0 pixels, and what goes wrong raises
:class:`lrmil_cli.errors.LrmilError` with the message that the command would show. Only what stands in ``__all__`` here
is promised to stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrmil_cli.units import LevelPx, Mpp

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from lrmil_cli.encoders.vit import Encoder
    from lrmil_cli.inference.prediction import Predictor
    from lrmil_cli.slides.region import Region
    from lrmil_cli.slides.slide import Slide
    from lrmil_cli.slides.tiles import TileSettings

__all__ = [
    "Answer",
    "Tiles",
    "embed",
    "find_tiles",
    "load_encoder",
    "load_model",
    "open_slide",
    "predict",
    "to_geojson",
]


@dataclass(frozen=True)
class Tiles:
    """Tiles of one slide.

    Attributes:
        rows: DataFrame with ``x, y, width, height`` (level-0 px), ``col, row`` (grid) and ``tissue`` (share of the
        tile).
        settings: how they were cut; level: of the pyramid that their pixels come from.
    """

    rows: pd.DataFrame
    settings: TileSettings
    level: int

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Answer:
    """What a model says of one slide.

    Attributes:
        label: the most probable class, the number that a model of regression tells (as text), or the group of risk;
            ``record`` has all that is told of it.
        probabilities: of every class, by name, the mean over fold heads; empty of another task.
        attention: DataFrame, one row a tile: ``x, y, width, height``, ``attention`` (sums to 1), ``percentile``, and
            ``score_<class>`` where the head has them.
        record: all that ``SLIDE.prediction.json`` would hold; header: of the attention table.
    """

    label: str
    probabilities: dict[str, float]
    attention: pd.DataFrame
    record: dict[str, Any]
    header: dict[str, Any]


def open_slide(path: str | Path, *, slide_mpp: float | None = None, workers: int | None = None) -> Slide:
    """Open a slide and check that it can be used. Use it in a ``with`` block, or call ``close``.

    Args:
        slide_mpp: level-0 um/px that wins over the metadata; workers: threads that read pixels, one a core if None.

    Raises:
        InputError: no such file, not a slide, truncated, damaged, or without a usable mpp.
        MachineError: the format needs OpenSlide, which is not installed.
    """
    from lrmil_cli.slides.slide import open_slide

    return open_slide(path, slide_mpp=None if slide_mpp is None else Mpp(slide_mpp), workers=workers)


def find_tiles(
    slide: Slide,
    *,
    mpp: float = 2.0,
    tile_px: int = 256,
    min_tissue: float = 0.1,
    roi: str | Path | None = None,
    min_inside: float = 0.5,
) -> Tiles:
    """The tiles of a slide that hold tissue, as ``lrmil tile`` finds them.

    Args:
        mpp: um/px the tiles are read at; tile_px: their side at that scale; min_tissue: share of a tile that must be
        tissue.
        roi: GeoJSON drawn in QuPath; min_inside: share of a tile that must lie inside it.

    Raises:
        NoTissueError: there is none. InputError: the slide is damaged or coarser than ``mpp``, or the regions do not
            fit it.
    """
    import pandas as pd

    from lrmil_cli.slides.tiles import TileSettings
    from lrmil_cli.slides.tiles import find_tiles as search

    settings = TileSettings(mpp=Mpp(mpp), tile_px=LevelPx(tile_px), min_tissue=min_tissue)
    columns, level, _ = search(slide, settings, _region(slide, roi, min_inside))
    return Tiles(pd.DataFrame(columns), settings, level)


def load_encoder(spec: str, *, tile_px: int = 256, embedding: str | None = None) -> Encoder:
    """Load an encoder, on the CPU and in evaluation mode.

    Args:
        spec: as ``--encoder`` takes it: an alias, hf-hub:ORG/NAME, a timm name, NAME@weights, a file of
        distill-encoder.
        tile_px: side of the tiles it will get; embedding: ``cls``, ``mean``, ``cls+mean`` or ``pool``; as the file says
            if None.

    Raises:
        UsageError, InputError, MachineError: there is no such encoder, or its weights cannot be used or had.
    """
    from lrmil_cli.encoders.spec import load_encoder

    return load_encoder(spec, tile_px=tile_px, embedding=embedding)


def embed(
    slide: Slide, tiles: Tiles, encoder: str | Encoder, *, device: str = "auto", batch_size: int | None = None
) -> np.ndarray:
    """Embeddings of tiles, float32 [N, D], in their order, as ``lrmil embed`` computes them.

    Args:
        encoder: of :func:`load_encoder`, or what that takes; device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or
            ``mps``.

    Raises:
        InputError: the slide is damaged at a tile. MachineError: the device, or its memory.
    """
    from lrmil_cli.device import pick_device
    from lrmil_cli.encoders.embed import embed_tiles
    from lrmil_cli.encoders.pipeline import BatchSize, read_ahead
    from lrmil_cli.slides.tiles import boxes_of

    loaded = load_encoder(encoder, tile_px=tiles.settings.tile_px) if isinstance(encoder, str) else encoder
    where = pick_device(device)
    batch, boxes = BatchSize(batch_size, where), boxes_of(tiles.rows)
    with read_ahead(slide, boxes, tiles.level, tiles.settings.tile_px, device=where, batch=batch) as pixels:
        (features,) = embed_tiles([loaded.to(where)], pixels, len(boxes), device=where, batch=batch)
    return features


def load_model(
    path: str | Path, *, runtime: str = "auto", device: str = "auto", batch_size: int | None = None
) -> Predictor:
    """Load a model of any method (LRMIL, AHDMIL, HDMIL, ZoomMIL), or its ONNX graphs.

    Args:
        runtime: ``auto`` takes the graphs on a CPU where they and ONNX Runtime are there; else ``torch``, ``onnx``,
            ``onnx-int8``.

    Raises:
        InputError: not a model file, damaged, or graphs of another model. MachineError: the runtime or device is
            missing.
    """
    from lrmil_cli.inference.runtime import open_predictor

    return open_predictor(str(path), runtime=runtime, device=device, batch_size=batch_size)


def predict(
    slide: str | Path | Slide, model: str | Path | Predictor, *, roi: str | Path | None = None, min_inside: float = 0.5
) -> Answer:
    """Classify one slide, or regions of it, as ``lrmil predict`` does.

    Args:
        slide: open, or its path (to a model of patients it is all of its patient); model: of :func:`load_model`, or
            its path.
        roi: GeoJSON drawn in QuPath; min_inside: share of a tile that must lie inside it.

    Raises:
        NoTissueError: no tile has enough tissue, or none lies in the regions. InputError: the slide or the model cannot
            be used.
    """

    from lrmil_cli.ahead import in_turn
    from lrmil_cli.files.header import step
    from lrmil_cli.files.tables import as_frame
    from lrmil_cli.inference.record import attention_table, prediction_record

    if isinstance(slide, (str, Path)):
        with open_slide(slide) as opened:
            return predict(opened, model, roi=roi, min_inside=min_inside)
    ready = load_model(model) if isinstance(model, (str, Path)) else model
    region = _region(slide, roi, min_inside)
    found = next(in_turn(lambda s: ready.predict(s, region), [slide], 0))()
    made_of = slide.made_of | ({"roi": region.digest} if region else {})
    record = prediction_record(ready, found, slide, [step("predict", ready.settings, made_of)], region)
    header, columns = attention_table(ready, found, record)
    return Answer(str(record["predicted"]), record.get("probabilities", {}), as_frame(columns), record, header)


def to_geojson(
    answer: Answer,
    path: str | Path | None = None,
    *,
    style: str = "tiles",
    top: float | None = None,
    threshold: float | None = None,
) -> dict[str, Any]:
    """The attention of an answer for QuPath, as ``lrmil export-geojson`` writes it.

    Args:
        path: where to write it, ``.geojson`` or ``.geojson.gz``; nothing is written if None.
        style: ``tiles``, a heatmap of detections, or ``regions``, outlines of high attention as annotations.
        top: regions of this share of tiles; threshold: or of tiles of at least this share of the highest attention.

    Returns:
        the FeatureCollection.

    Raises:
        UsageError: options that do not fit each other, or a name that QuPath would not open. InputError: nothing to
            outline.
    """
    import json

    from lrmil_cli.errors import UsageError
    from lrmil_cli.qupath.files import check_name, write_chunks
    from lrmil_cli.qupath.geojson import Style, check_style, make_document

    if style not in ("tiles", "regions"):
        raise UsageError(f"style {style!r}: choose tiles or regions")
    wanted = Style(style, top, threshold)
    check_style(wanted)
    if path is not None:
        check_name(path)
    text = "".join(make_document(answer.header, answer.attention, style, wanted).pieces)
    if path is not None:
        write_chunks(path, [text])
    return dict(json.loads(text))


def _region(slide: Slide, roi: str | Path | None, min_inside: float) -> Region | None:
    """Regions of interest from QuPath's GeoJSON, in the slide's level-0 px."""
    if roi is None:
        return None
    from lrmil_cli.qupath.frame import qupath_frame
    from lrmil_cli.qupath.roi import find_roi, read_roi

    about = slide.describe()
    return read_roi(find_roi(roi, slide.slide_id), about, qupath_frame(about), None, min_inside)[0]
