"""Painting H&E: what lies where on a slide, and its colours.

A slide is painted in two steps: `layout` draws what lies where on a grid of 2 um pixels (glass, fat, stroma, nests of
cells, lesion), `paint` turns that into haematoxylin and eosin at 0.5 um/px. Light absorption gives the colours.

Cells of the lesion differ from benign ones by the inside of the nucleus: a pale centre, a dark rim and a nucleolus,
against an evenly filled nucleus. Both let the same light through on average, so a tile at 2 um/px, where a nucleus is
5 px wide, keeps little of the difference, and a faint hint in colour: 20x is easy, 5x is hard. Every slide has benign
nests of the same shape, size and density as the lesions.

Lengths: `_px` are level-0 pixels at 0.5 um, `grid` is the layout grid of 4 x 4 such pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lrmil_cli.demo.textures import (
    AXIS_RATIOS,
    RADII_PX,
    STAMP_PX,
    VARIANTS,
    nucleus_bank,
    small_nuclei,
    smooth_noise,
    tissue_texture,
    to_byte,
)

GRID = 4  # level-0 pixels per layout pixel
SPACING_PX = 21.5  # distance of neighbouring nuclei where cells are densest
MIN_LESION_PX2 = 600 * 600  # 300 x 300 um
# What 5x keeps of a lesion: a little more haematoxylin, a little less eosin in the cytoplasm. Benign nests and patients
# vary in the same; the cue that decides is inside the nuclei.
HINT_DEPTH, HINT_EOSIN = 0.06, 0.30
# Of slides with a severity: how many nests, and how much of the tissue they cover together.
NESTS, NESTED = 5, 0.36


# ---- stain -------------------------------------------------------------------------
@dataclass(frozen=True)
class Stain:
    """How strongly and in which hue one laboratory stains; 1 and 0 are the middle."""

    haematoxylin: float = 1.0
    eosin: float = 1.0
    hue_h: float = 0.0
    hue_e: float = 0.0
    glass: tuple[float, float, float] = (244.0, 243.0, 245.0)

    @classmethod
    def draw(cls, rng: np.random.Generator, spread: float = 1.0) -> Stain:
        """Draw one patient's stain."""
        h, e = np.exp(np.clip(rng.normal(0, 0.13, 2) * spread, -0.35, 0.35))
        hue_h, hue_e = np.clip(rng.normal(0, 1, 2) * spread, -2, 2)
        glass = rng.normal(243, 1.5) + rng.normal(0, 1.0, 3)
        return cls(float(h), float(e), float(hue_h), float(hue_e), tuple(np.clip(glass, 236, 249).tolist()))

    def to_rgb(self, stains: np.ndarray) -> np.ndarray:
        """RGB uint8 of `(h, w, 2)` uint8 haematoxylin and eosin, by absorption of light."""
        h = np.array([0.80 + 0.05 * self.hue_h, 0.92, 0.34 - 0.04 * self.hue_h]) * self.haematoxylin
        e = np.array([0.06 + 0.02 * self.hue_e, 0.58, 0.27 + 0.05 * self.hue_e]) * self.eosin
        density = cv2.transform(stains, np.stack([h, e], 1))
        light = np.exp(-np.arange(256)[:, None] / 100.0) * np.array(self.glass)
        return cv2.LUT(density, to_byte(light + 0.5)[None])


# ---- layout ------------------------------------------------------------------------
@dataclass(frozen=True)
class Layout:
    """What lies where: fields `(n, n)` float32 on the layout grid (2 um), values 0..1 unless said otherwise."""

    tissue: np.ndarray
    cells: np.ndarray  # nests of epithelium-like cells
    fat: np.ndarray
    lymphocytes: np.ndarray
    density: np.ndarray  # share of possible places that hold a nucleus
    inside: np.ndarray  # inside pattern of the nuclei, 1 in the lesion
    size: np.ndarray  # index into RADII_PX
    elongation: np.ndarray  # index into AXIS_RATIOS
    disorder: np.ndarray  # how far nuclei stray from a regular lattice, px
    depth: np.ndarray  # strength of the haematoxylin, about 1
    pink: np.ndarray  # strength of the eosin in the cytoplasm, about 1


def tissue_mask(rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    """One to three ragged pieces of tissue, bool `(n, n)`, that cover `share` of the slide."""
    yy, xx = (np.mgrid[:n, :n] / n).astype(np.float32)
    pieces = int(rng.integers(1, 4))
    start = rng.uniform(0, 2 * np.pi)
    field = np.full((n, n), -9, np.float32)
    for k in range(pieces):
        away = 0 if pieces == 1 else 0.25
        angle = start + 2 * np.pi * k / pieces + rng.normal(0, 0.15)
        cx, cy = 0.5 + away * np.cos(angle), 0.5 + away * np.sin(angle)
        turn, long = angle + np.pi / 2 + rng.normal(0, 0.3), rng.uniform(1.1, 1.5)
        u = (xx - cx) * np.cos(turn) + (yy - cy) * np.sin(turn)
        v = (yy - cy) * np.cos(turn) - (xx - cx) * np.sin(turn)
        field = np.maximum(field, -np.hypot(u / long, v * long) * rng.uniform(0.9, 1.15))
    field += 0.05 * smooth_noise(rng, n, n / 4, 3) + 0.008 * smooth_noise(rng, n, 26, 4)
    rim = np.minimum(np.minimum(xx, 1 - xx), np.minimum(yy, 1 - yy))
    field -= 12 * np.clip(0.16 - rim, 0, None) ** 2  # keeps the tissue away from the edge of the slide
    mask = (field > np.quantile(field, 1 - share)).astype(np.uint8)
    return cv2.morphologyEx(mask, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))) > 0


def place_blobs(rng: np.random.Generator, tissue: np.ndarray, areas: list[float]) -> list[np.ndarray]:
    """Roundish regions of about the given areas (grid pixels) inside the tissue that keep clear of each other."""
    n = len(tissue)
    yy, xx = np.mgrid[:n, :n].astype(np.float32)
    free, blobs = tissue.copy(), []
    for area in areas:
        radius = float(np.sqrt(area / np.pi))
        room = cv2.distanceTransform(np.pad(free, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        candidates = np.argwhere(room >= min(0.8 * radius, 0.9 * room.max()))
        cy, cx = candidates[rng.integers(len(candidates))]
        field = -np.hypot(yy - cy, xx - cx) + 0.14 * radius * smooth_noise(rng, n, radius, 2)
        field[~free] = -1e9
        level = np.partition(field.ravel(), -int(area))[-int(area)]
        blob = cv2.morphologyEx((field >= max(level, -1e8)).astype(np.uint8), cv2.MORPH_OPEN, np.ones((7, 7), np.uint8))
        _, label, stats, _ = cv2.connectedComponentsWithStats(blob)
        if len(stats) > 1:  # one piece each
            blob = label == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
            blobs.append(blob)
            free &= cv2.dilate(blob.astype(np.uint8), np.ones((31, 31), np.uint8)) == 0
        if not free.any():
            break
    return blobs


def draw_blobs(rng: np.random.Generator, tissue: np.ndarray, positive: bool | float) -> tuple[np.ndarray, np.ndarray]:
    """Nests of dense cells and the lesion among them, each bool `(n, n)`; only what is inside their nuclei tells it.

    With `True` one to three nests of a lesion and one or two benign ones, with `False` the same, all benign. With a
    number from 0 to 1 as many nests on every slide, and that share of their area a lesion.
    """
    total = float(tissue.sum())
    least = MIN_LESION_PX2 / GRID**2
    if isinstance(positive, bool):
        share = rng.uniform(0.12, 0.25)
        count = int(np.clip(share * total // least, 1, 3))
        parts = rng.dirichlet(np.full(count, 30.0)) * share * total
        benign = rng.uniform(0.9, 1.6, int(rng.integers(1, 3))) * least
        blobs = place_blobs(rng, tissue, [float(a) for a in [*parts, *np.minimum(benign, 0.2 * total)]])
        lesion = np.any(blobs[:count], axis=0) if positive else np.zeros_like(tissue)
        return np.any(blobs, axis=0), lesion
    areas = rng.dirichlet(np.full(NESTS, 30.0)) * NESTED * total
    blobs = sorted(place_blobs(rng, tissue, areas.tolist()), key=lambda blob: rng.random())
    dense = np.any(blobs, axis=0)
    wanted, lesion = positive * dense.sum(), np.zeros_like(tissue)
    for blob in blobs:
        missing = wanted - lesion.sum()
        lesion |= blob if blob.sum() <= missing else one_side(rng, blob, missing)
    return dense, lesion


def one_side(rng: np.random.Generator, blob: np.ndarray, area: float) -> np.ndarray:
    """The part of a region that lies on one side of a straight line, of about the given area (grid pixels)."""
    y, x = np.nonzero(blob)
    turn = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    part = np.zeros_like(blob)
    first = np.argsort(along, kind="stable")[: max(0, round(area))]
    part[y[first], x[first]] = True
    return part


def layout(rng: np.random.Generator, n: int, positive: bool | float) -> tuple[Layout, np.ndarray]:
    """Draw a slide of `n` x `n` grid pixels; returns it and the lesion, bool `(n, n)`, by :func:`draw_blobs`."""
    tissue = tissue_mask(rng, n, rng.uniform(0.37, 0.56))
    blobs, lesion = draw_blobs(rng, tissue, positive)
    dense = cv2.GaussianBlur(blobs.astype(np.float32), (0, 0), 5)

    nests = smooth_noise(rng, n, 40, 3)
    region = smooth_noise(rng, n, n / 4, 2)
    reach = np.maximum(np.clip((region + 0.1) * 2.5, 0, 1), dense)
    cells = np.clip((nests + 2.1 * reach - 1.35) * 5, 0, 1)
    fat = np.clip((smooth_noise(rng, n, n / 4, 3) - 0.85) * 8, 0, 1) * (1 - np.clip(dense * 3, 0, 1))
    lymph = np.clip((smooth_noise(rng, n, n / 7, 2) - 1.55) * 4, 0, 1)
    uneven = smooth_noise(rng, n, n / 6, 2)
    density = np.clip(rng.uniform(0.72, 0.9) + 0.1 * uneven, 0.45, 1)
    whole = np.ones((n, n), np.float32)
    inside = np.where(lesion, 0.93, 0.10).astype(np.float32)
    return Layout(
        tissue=tissue.astype(np.float32),
        cells=cells * (1 - fat),
        fat=fat,
        lymphocytes=lymph * (1 - fat),
        density=density,
        inside=inside,
        size=rng.uniform(1.1, 1.9) + 0.35 * smooth_noise(rng, n, n / 5, 1),
        elongation=rng.uniform(0.3, 1.0) * whole,
        disorder=rng.uniform(1.3, 1.9) + 0.3 * smooth_noise(rng, n, n / 5, 1),
        depth=(1 + 0.05 * smooth_noise(rng, n, n / 6, 2) + HINT_DEPTH * lesion).astype(np.float32),
        pink=(0.9 + 0.07 * smooth_noise(rng, n, n / 6, 2) - HINT_EOSIN * lesion).astype(np.float32),
    ), lesion


# ---- painting ----------------------------------------------------------------------
def _grow(field: np.ndarray, sharpen: float = 1.0) -> np.ndarray:
    """Layout field to uint8 at level 0, its 0.5 crossing sharpened."""
    big = cv2.resize(to_byte(field * 255), None, fx=GRID, fy=GRID, interpolation=cv2.INTER_LINEAR)
    if sharpen == 1.0:
        return big
    return cv2.LUT(big, to_byte((np.arange(256) - 127.5) * sharpen + 127.5))


def _places(
    rng: np.random.Generator, side_px: int, spacing_px: float, jitter_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Jittered hexagonal grid over the slide: rows and columns (px)."""
    rows = np.arange(0, side_px, spacing_px * 0.866)
    cols = np.arange(0, side_px, spacing_px)
    y, x = np.meshgrid(rows, cols, indexing="ij")
    x = x + (np.arange(len(rows)) % 2)[:, None] * spacing_px / 2
    y, x = (a.ravel() + rng.normal(0, jitter_px, a.size) for a in (y, x))
    ok = (y >= 0) & (x >= 0) & (y < side_px) & (x < side_px)
    return y[ok], x[ok]


def _stamp(canvas: np.ndarray, pictures: np.ndarray, which: np.ndarray, y: np.ndarray, x: np.ndarray) -> None:
    """Print `pictures[which]` with their centres at `(y, x)` on a canvas that is STAMP_PX / 2 wider on each side."""
    s = STAMP_PX
    for k, i, j in zip(which.tolist(), y.astype(int).tolist(), x.astype(int).tolist(), strict=True):
        view = canvas[i : i + s, j : j + s]
        np.maximum(view, pictures[k], out=view)


def paint(rng: np.random.Generator, lay: Layout) -> np.ndarray:
    """Haematoxylin and eosin of a layout, `(4n, 4n, 2)` uint8."""
    n = len(lay.tissue)
    side = n * GRID
    tissue, cells, fat = _grow(lay.tissue, 3), _grow(lay.cells, 2), _grow(lay.fat, 3)

    # The textures are read along bent lines, so that fibres wave and nothing repeats.
    bend = [120 * smooth_noise(rng, n, 150, 1) + 14 * smooth_noise(rng, n, 30, 1) for _ in range(2)]
    turn = rng.uniform(0, 2 * np.pi)
    yy, xx = np.mgrid[:n, :n].astype(np.float32) * GRID
    at_x = xx * np.cos(turn) + yy * np.sin(turn) + bend[0] + rng.uniform(0, 1024)
    at_y = yy * np.cos(turn) - xx * np.sin(turn) + bend[1] + rng.uniform(0, 1024)
    at_x, at_y = (cv2.resize(a.astype(np.float32), (side, side)) for a in (at_x, at_y))
    texture = cv2.remap(tissue_texture(), at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    fibre, cytoplasm, membrane = cv2.split(texture)

    def blend(under: np.ndarray, over: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """under + (over - under) * weight / 255"""
        w = weight.astype(np.int16)
        return (under + (((over.astype(np.int16) - under) * w) >> 8)).astype(np.uint8)

    ramp = np.arange(256)

    def tone(grey: np.ndarray, middle: float, slope: float) -> np.ndarray:
        return cv2.LUT(grey, to_byte(middle + slope * (ramp - 128)))

    eosin = blend(tone(fibre, 96, 0.42), tone(cytoplasm, 74, 0.22), cells)
    haema = blend(tone(fibre, 10, 0.05), tone(cytoplasm, 30, 0.16), cells)
    eosin = cv2.multiply(eosin, _grow((1 + lay.cells * (lay.pink - 1)) / 2), scale=2 / 255)
    wall = cv2.LUT(membrane, to_byte(100 * np.exp(-((ramp / 30.0) ** 2))))
    eosin = blend(eosin, wall, fat)
    haema = blend(haema, cv2.LUT(wall, to_byte(0.1 * ramp)), fat)

    margin = STAMP_PX // 2
    canvas = np.zeros((side + STAMP_PX, side + STAMP_PX), np.uint8)

    def look(field: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return field[(y / GRID).astype(int), (x / GRID).astype(int)]

    y, x = _places(rng, side, SPACING_PX, 0.0)
    stray = np.clip(look(lay.disorder, y, x), 0, None)
    y, x = (np.clip(a + stray * rng.standard_normal(len(a)), 0, side - 1) for a in (y, x))
    here = look(lay.tissue, y, x) > 0.5
    y, x = y[here], x[here]
    chance = rng.random(len(y))
    share = look(lay.cells, y, x)
    epithelium = (share > 0.6) & (chance < look(lay.density, y, x))
    fibroblast = (share < 0.3) & (chance < 0.055) & (look(lay.fat, y, x) < 0.5)
    ey, ex = y[epithelium], x[epithelium]
    m = len(ey)

    def nearest(field: np.ndarray, spread: float, top: int) -> np.ndarray:
        return np.clip(np.round(look(field, ey, ex) + rng.normal(0, spread, m)), 0, top).astype(int)

    vesicular = rng.random(m) < look(lay.inside, ey, ex)
    pattern = np.where(vesicular, rng.choice([2, 3, 3, 3], m), rng.choice([0, 0, 0, 1], m))
    bank = nucleus_bank()
    index = (
        pattern,
        nearest(lay.size, 0.6, len(RADII_PX) - 1),
        nearest(lay.elongation, 0.7, len(AXIS_RATIOS) - 1),
        rng.integers(VARIANTS, size=m),
    )
    _stamp(canvas, bank.reshape(-1, STAMP_PX, STAMP_PX), np.ravel_multi_index(index, bank.shape[:4]), ey, ex)

    lymphocytes, fibroblasts = small_nuclei()
    _stamp(canvas, fibroblasts, rng.integers(48, size=int(fibroblast.sum())), y[fibroblast], x[fibroblast])
    y, x = _places(rng, side, 11.5, 2.0)
    here = rng.random(len(y)) < 0.85 * look(lay.lymphocytes * lay.tissue, y, x) + 0.004 * look(lay.tissue, y, x)
    y, x = y[here], x[here]
    _stamp(canvas, lymphocytes, rng.integers(48, size=len(y)), y, x)

    nuclei = canvas[margin : margin + side, margin : margin + side]
    haema = np.maximum(haema, cv2.GaussianBlur(nuclei, (0, 0), 0.55))  # the sharpness of a lens
    haema = cv2.multiply(haema, _grow(lay.depth / 2), scale=2 / 255)
    out = cv2.merge([haema, eosin])
    return cv2.multiply(out, cv2.merge([tissue, tissue]), scale=1 / 255)


def pen_mark(rng: np.random.Generator, rgb: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Draw a felt-pen stroke across the rim of the tissue; `rgb` is changed and returned."""
    n = len(tissue)
    rim = np.argwhere(cv2.morphologyEx(tissue.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((9, 9), np.uint8)) > 0)
    cy, cx = rim[rng.integers(len(rim))]
    out = np.array([cx - n / 2, cy - n / 2])
    angle = np.arctan2(out[1], out[0]) + np.pi / 2
    t = np.linspace(-1, 1, 24)
    length, bow = rng.uniform(0.1, 0.2) * n, rng.uniform(-0.05, 0.05) * n
    along, across = t * length, bow * t**2 + 0.035 * n + rng.normal(0, 0.003 * n, 24)
    points_x = cx + along * np.cos(angle) + across * np.cos(angle - np.pi / 2)
    points_y = cy + along * np.sin(angle) + across * np.sin(angle - np.pi / 2)
    points = np.stack([points_x, points_y], 1)
    ink: np.ndarray = np.zeros((n, n), np.uint8)
    cv2.polylines(ink, [np.round(points * 8).astype(np.int32)], False, 255, int(rng.uniform(14, 24)), cv2.LINE_AA, 3)
    ink = cv2.GaussianBlur(ink, (0, 0), 0.7)
    ys, xs = np.nonzero(ink)
    box = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
    colour = np.array([[40, 70, 170], [30, 120, 70], [50, 48, 55]][rng.integers(3)], np.float32) / 245
    grown = cv2.resize(ink[box], None, fx=GRID, fy=GRID, interpolation=cv2.INTER_LINEAR)
    patch = grown.astype(np.float32)[..., None] / 255
    area = rgb[ys.min() * GRID : (ys.max() + 1) * GRID, xs.min() * GRID : (xs.max() + 1) * GRID]
    area[:] = to_byte(area * (1 - patch * (1 - colour) * 0.9) + 0.5)
    return rgb


def render_slide(
    seed: int, positive: bool | float, side_px: int, stain_seed: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """RGB `(side, side, 3)` uint8 at 0.5 um/px (side rounded down to a multiple of 16) and the lesion on the grid."""
    rng = np.random.default_rng([seed, 1])
    n = side_px // 16 * 16 // GRID
    lay, lesion = layout(rng, n, positive)
    stain = Stain.draw(np.random.default_rng([seed if stain_seed is None else stain_seed, 2]))
    rgb = stain.to_rgb(paint(rng, lay))
    grain = rng.integers(0, 4, (512, 512, 1), dtype=np.uint8).repeat(3, 2)
    reps = -(-rgb.shape[0] // 512)
    rgb = cv2.subtract(rgb, np.ascontiguousarray(np.tile(grain, (reps, reps, 1))[: rgb.shape[0], : rgb.shape[1]]))
    if rng.random() < 0.25:
        rgb = pen_mark(rng, rgb, lay.tissue > 0.5)
    return rgb, lesion
