"""The fixture of a new model: a few tiles of a validation slide, or painted ones, and what the model says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrmil_cli.encoders.embed import open_tiled_slide
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import LrmilError
from lrmil_cli.evaluation.head_calibration import calibrated_heads
from lrmil_cli.files.manifest import Manifest
from lrmil_cli.files.tables import read_table
from lrmil_cli.heads import MILHead
from lrmil_cli.models.fixture import fixture_tensors, outputs_of
from lrmil_cli.slides.reader import read_rows
from lrmil_cli.slides.tiles import boxes_of
from lrmil_cli.targets.task import task_of
from lrmil_cli.training.folds import fold_names, members

#: Tiles that are kept at most.
TILES = 8


def add_fixture(
    header: dict[str, Any],
    encoders: Sequence[Encoder],
    heads: Sequence[MILHead],
    encoder_of: Sequence[int],
    tiles: tuple[np.ndarray, np.ndarray, dict[str, Any]],
) -> dict[str, Tensor]:
    """Put ``fixture`` into the header of a model, and give the tensors that belong to it.

    Computed on the CPU, in float32: that every machine has.

    Args:
        tiles: of :func:`tiles_of_a_slide` or :func:`painted`.
    """
    pixels, coords, about = tiles
    for part in (*encoders, *heads):
        part.to(torch.device("cpu"))
    expected = outputs_of(encoders, heads, encoder_of, pixels, coords, task_of(header).classes)
    answer = calibrated_heads(header, expected.probabilities).mean(0)
    header["fixture"] = {**about, "tiles": header["tiles"], "answer": [round(float(p), 9) for p in answer]}
    return fixture_tensors(pixels, coords, expected)


def tiles_of_a_slide(
    manifest: Manifest,
    folds: pd.DataFrame,
    tables: Sequence[tuple[Path, dict[str, Any]]],
    say: Callable[[str], None],
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Tiles evenly over the first validation slide that can be read: uint8 [n, P, P, 3], corners int64 [n, 2], and what
    they are. Painted ones where none can, which is said.

    Args:
        tables: path and header of every slide's tile table, in the order of the manifest.
    """
    val = set(members(folds, fold_names(folds)[0])["val"])
    for entry, (path, header) in zip(manifest, tables):
        if entry.slide_id not in val:
            continue
        try:
            boxes = boxes_of(read_table(path, "tiles")[1])
            boxes = boxes[np.unique(np.linspace(0, len(boxes) - 1, TILES).astype(int))]
            with open_tiled_slide(header, path, entry.path if entry.path.exists() else None) as slide:
                pixels = read_rows(slide, boxes, header["level"], header["settings"]["tile_px"])
            return pixels, boxes[:, :2].copy(), {"of": "slide", "slide_id": entry.slide_id, "count": len(boxes)}
        except LrmilError:
            continue
    say("no validation slide can be read any more: the model is verified by painted tiles")
    return painted(tables[0][1]["settings"]["tile_px"])


def painted(tile_px: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Tiles that show nobody's tissue: soft blots of haematoxylin on eosin, as :func:`tiles_of_a_slide` gives them."""
    rng = np.random.default_rng(0)
    coarse = max(2, -(-tile_px // 16))
    glass, eosin, nuclei = (np.array(c, float) for c in ((243, 240, 244), (224, 150, 190), (92, 60, 140)))
    out = np.empty((TILES, tile_px, tile_px, 3), np.uint8)
    for n in range(TILES):
        soft, spots = (np.kron(rng.random((side, side)), np.ones((-(-tile_px // side),) * 2))[:tile_px, :tile_px, None]
                       for side in (coarse, 4 * coarse))  # fmt: skip
        tissue = glass + (eosin - glass) * np.clip(2.5 * soft, 0, 1)
        out[n] = np.rint(tissue + (nuclei - tissue) * (spots > 0.6 + 0.04 * n) * soft).astype(np.uint8)
    return out, np.stack([np.arange(TILES) * tile_px, np.zeros(TILES, int)], 1), {"of": "painted", "count": TILES}
