"""From tiles of a slide to embeddings: reading and encoding, one batch after the other."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrmil_cli.device import device_label
from lrmil_cli.encoders.pipeline import BatchSize, Seconds, Tiles, encode_tiles, read_ahead
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.features import BagFile, open_features, read_features_header, write_features
from lrmil_cli.files.foreign import is_foreign
from lrmil_cli.files.header import digest, last_digest, make_header, step, up_to_date
from lrmil_cli.files.locks import claimed
from lrmil_cli.files.tables import checked_header, read_table
from lrmil_cli.slide_places import find_slide, moved
from lrmil_cli.slides.reader import without_bad
from lrmil_cli.slides.slide import Slide, open_slide, reopening
from lrmil_cli.slides.tiles import boxes_of


def embed_tiles(
    encoders: Sequence[Encoder],
    tiles: Tiles,
    count: int,
    *,
    device: torch.device,
    batch: BatchSize,
    seconds: Seconds | None = None,
) -> list[np.ndarray]:
    """Embed the tiles of one slide by one or more encoders, read once for all of them.

    Args:
        tiles: of :func:`lrmil_cli.encoders.pipeline.read_ahead`; count: how many there are.
        seconds: filled with ``read`` and ``encode``.

    Returns:
        float32 [N, D_e] for each encoder, in table order; of no meaning for tiles that could not be decoded.

    Raises:
        InputError: the slide is damaged at a tile. MachineError: out of memory with a single tile.
    """
    out = encode_tiles(
        lambda x: tuple(e(x)["final"] for e in encoders),
        tiles,
        count,
        device=device,
        batch=batch,
        seconds=seconds,
    )
    # There were none, or none could be decoded.
    return out or [np.zeros((count, e.embed_dim), np.float32) for e in encoders]


def features_settings(encoder: Encoder) -> dict[str, Any]:
    """What of an encoder decides its features."""
    return {"encoder": encoder.digest(), "embedding": encoder.info.embedding, "image_size": encoder.info.image_size}


@dataclass(frozen=True)
class Embedded:
    """The features of a slide.

    Attributes:
        there: they were there already; seconds: spent in each phase otherwise.
    """

    file: BagFile
    there: bool
    seconds: Seconds


def embed_table(
    encoder: Encoder,
    tiles_path: str | Path,
    output: str | Path,
    *,
    settings: dict[str, Any],
    device: torch.device,
    batch: BatchSize,
    workers: int | None = None,
    on_bad_tile: str = "fail",
    overwrite: bool = False,
    slide_path: str | Path | None = None,
    dtype: str | None = None,
    wait: bool = False,
) -> Generator[None, None, Embedded | None]:
    """Embed the tiles of a tile table into a feature file, unless it is there and up to date.

    A generator for :func:`lrmil_cli.ahead.in_turn`: what stands before its ``yield`` can be done ahead of its turn.

    Args:
        settings: :func:`features_settings` of the encoder; computed once, since it reads all weights.
        slide_path: where the slide may be now, if it is not where the table says.
        on_bad_tile: ``fail``, or ``skip``: tiles that cannot be decoded are left out; the header says how many
            (``bad_tiles``).
        dtype: float16 or float32 as the features are to be stored; None writes float16 and takes either.
        wait: for another process that is at this slide.

    Returns:
        the features; None where another process is at them, and is not waited for.

    Raises:
        InputError: the slide cannot be read, or is not the one that was tiled.
        UsageError: the feature file was made by other settings and ``overwrite`` is off, or by another tool.
    """
    if is_foreign(output):
        raise UsageError(
            f"{output} was made by another tool and is not overwritten; choose another folder (train-teacher trains on "
            "such features as they are with --features alone, without --tiles and --encoder)"
        )
    header = checked_header(tiles_path, "tiles")
    seconds = Seconds()
    # What float32 is made from is what it was before there was a choice, so that files of then are up to date.
    forms = {"float16": {**settings, "dtype": "float16"}, "float32": settings}
    inputs = {"tiles": last_digest(header)}
    wanted = [digest(forms[d], inputs) for d in ([dtype] if dtype else forms)]
    if file := _there(output, wanted, on_bad_tile, overwrite):  # also where the folder cannot be written
        return Embedded(file, True, seconds)
    with claimed(output, wait=wait) as mine:
        if not mine:
            return None
        if file := _there(output, wanted, on_bad_tile, overwrite):  # another process has just made it
            return Embedded(file, True, seconds)
        settings = forms[dtype or "float16"]
        bad: list[int] = []
        started = time.perf_counter()
        boxes = boxes_of(read_table(tiles_path, "tiles")[1])
        with open_tiled_slide(header, tiles_path, slide_path, workers, on_bad_tile) as slide:
            seconds.add("open", time.perf_counter() - started)
            with read_ahead(
                slide, boxes, header["level"], header["settings"]["tile_px"], device=device, batch=batch, bad=bad
            ) as pixels:
                yield
                (array,) = embed_tiles([encoder], pixels, len(boxes), device=device, batch=batch, seconds=seconds)
            if bad:
                rows = without_bad(len(boxes), bad, slide.path)
                boxes, array = boxes[rows], array[rows]
        new = make_header(
            "features",
            slide=moved(header["slide"], slide.path),
            settings=settings,
            tiles=header["settings"],
            encoder={k: v for k, v in encoder.info.as_json().items() if k != "arch_args"},
            seconds=seconds.rounded(),
            device=device_label(device),
            **({"bad_tiles": len(bad)} if bad else {}),
            history=[*header["history"], step("embed", settings, inputs)],
        )
        write_features(output, new, array, boxes[:, :2], dtype or "float16")
    return Embedded(open_features(output), False, seconds)


def _there(output: str | Path, wanted: Sequence[str], on_bad_tile: str, overwrite: bool) -> BagFile | None:
    """The feature file, if it is up to date and may be used.

    Its header decides; with ``overwrite`` all of it is read, so that what is damaged inside is made again.
    """
    if not up_to_date(output, wanted, read_features_header, overwrite):
        return None
    try:
        file = open_features(output)
        if overwrite:
            file.features()
        if file.header.get("bad_tiles") and on_bad_tile == "fail":
            raise InputError(
                f"{output}: {file.header['bad_tiles']} tiles of the slide cannot be decoded and were left out "
                "(--on-bad-tile skip); say that again to use it, or copy the slide again"
            )
        return file
    except InputError:
        if not overwrite:
            raise
    return None


def open_tiled_slide(
    header: dict[str, Any],
    table: str | Path,
    slide_path: str | Path | None = None,
    workers: int | None = None,
    on_bad_tile: str = "fail",
) -> Slide:
    """Open the slide of a tile table again, with the scale it was tiled at.

    Args:
        table: the file that ``header`` is from; slide_path: where the slide may be now
            (:func:`lrmil_cli.slide_places.find_slide`).

    Raises:
        InputError: it is not the same file any more, or not there.
    """
    about = header["slide"]
    return open_slide(
        find_slide(about, table, slide_path),
        slide_id=about["id"],
        slide_mpp=about["mpp"],
        **reopening(about),
        workers=workers,
        on_bad_tile=on_bad_tile,
    )
