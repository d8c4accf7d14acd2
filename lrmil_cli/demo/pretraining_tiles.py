"""Painted tiles with what is in them, for pre-training the demo's encoder (``examples/train_demo_vit.py``)."""

from __future__ import annotations

import cv2
import numpy as np

from lrmil_cli.demo.paint import GRID, Layout, Stain, paint
from lrmil_cli.demo.textures import smooth_noise

TILE_PX = 128  # side of a tile
#: What a recipe says of a tile, in the order of its numbers.
RECIPE_NAMES = (
    *("density", "radius", "elongation", "inside", "cells", "fat", "glass", "lymphocytes"),
    *("haematoxylin", "eosin", "hue_h", "hue_e"),
)


def render_tiles(rng: np.random.Generator, shrink: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Tiles `(k, 128, 128, 3)` uint8 at 0.5 um/px * `shrink` with their recipes `(k, 12)` float32 (see RECIPE_NAMES).

    They are cut from one painted sheet of tiles whose recipe changes from tile to tile (5 x 5 of them, fewer of the
    larger ones); a recipe is measured on the tile, each number scaled to about 0..1 (stain: about -1..1).
    """
    k, g = max(2, round(5 / shrink)), round(TILE_PX * shrink / GRID)
    n = k * g

    def steps(lo: float, hi: float) -> np.ndarray:
        return np.kron(rng.uniform(lo, hi, (k, k)), np.ones((g, g))).astype(np.float32)

    def part(chance: float, cell: float, level: float) -> np.ndarray:
        on = np.kron((rng.random((k, k)) < chance), np.ones((g, g)))
        return (np.clip((smooth_noise(rng, n, cell, 3) + level) * 5, 0, 1) * on).astype(np.float32)

    fat = part(0.18, 60, 0.4)
    lesion_like = np.kron(rng.beta(0.35, 0.35, (k, k)), np.ones((g, g)))
    lay = Layout(
        tissue=np.maximum(part(0.2, 50, 0.6), np.kron(rng.random((k, k)) < 0.85, np.ones((g, g)))).astype(np.float32),
        cells=part(0.85, 34, float(rng.uniform(0.4, 2.0))) * (1 - fat),
        fat=fat,
        lymphocytes=part(0.15, 40, -0.2) * (1 - fat),
        density=steps(0.4, 1),
        inside=lesion_like.astype(np.float32),
        size=steps(0, 3),
        elongation=steps(0, 2),
        disorder=steps(1, 3.5),
        depth=1 + steps(-0.15, 0.15),
        pink=steps(0.55, 1.05),
    )
    stain = Stain.draw(rng, 1.3)
    painted = stain.to_rgb(paint(rng, lay))
    rgb = cv2.subtract(painted, rng.integers(0, 4, (n * GRID, n * GRID, 1), dtype=np.uint8).repeat(3, 2))
    _, coded = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(75, 95))])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was coded just now
    rgb = decoded[..., ::-1]
    side = g * GRID
    tiles = rgb.reshape(k, side, k, side, 3).swapaxes(1, 2).reshape(k * k, side, side, 3)
    if side != TILE_PX:
        tiles = np.stack([cv2.resize(t, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA) for t in tiles])

    def mean(field: np.ndarray) -> np.ndarray:
        return field.reshape(k, g, k, g).mean((1, 3)).ravel()

    cells = mean(lay.cells * lay.tissue)
    seen = np.clip(cells / 0.15, 0, 1)  # what nuclei look like cannot be told where there are none
    recipe = [
        mean(lay.density) * cells,
        0.5 + (mean(lay.size) / 3 - 0.5) * seen,
        0.5 + (mean(lay.elongation) / 2 - 0.5) * seen,
        0.5 + (mean(lay.inside) - 0.5) * seen,
        cells,
        mean(fat * lay.tissue),
        1 - mean(lay.tissue),
        mean(lay.lymphocytes * lay.tissue),
        4 * (mean(lay.depth) * stain.haematoxylin - 1),
        np.full(k * k, 4 * (stain.eosin - 1)),
        np.full(k * k, stain.hue_h / 2),
        np.full(k * k, stain.hue_e / 2),
    ]
    return np.ascontiguousarray(tiles), np.stack(recipe, 1).astype(np.float32)
