"""Pictures that painted slides are made of: smooth noise, nuclei, fibres, fat. Made once a process.

Lengths are pixels at 0.5 um.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

STAMP_PX = 40  # side of a nucleus picture

# Kinds of nucleus in the bank: inside pattern x radius x elongation x variants
INSIDES = (0.0, 0.33, 0.67, 1.0)  # 0 evenly filled, 1 vesicular with nucleolus
RADII_PX = (8.0, 8.9, 9.8, 10.7)
AXIS_RATIOS = (1.0, 1.25, 1.6)
VARIANTS = 20


def smooth_noise(rng: np.random.Generator, side: int, cell: float, octaves: int = 3) -> np.ndarray:
    """Smooth random field `(side, side)` float32, mean 0, spread about 1; `cell` is the size of its largest waves."""
    out = np.zeros((side, side), np.float32)
    for octave in range(octaves):
        step = max(cell / 2**octave, 1.0)
        n = int(np.ceil(side / step)) + 3
        coarse = rng.standard_normal((n, n)).astype(np.float32)
        full = cv2.resize(coarse, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        y, x = rng.integers(0, full.shape[0] - side + 1, 2)
        out += full[y : y + side, x : x + side] / 2**octave
    return out / 0.85


def periodic_noise(rng: np.random.Generator, side: int, sigma_y: float, sigma_x: float) -> np.ndarray:
    """Gaussian noise `(side, side)` float32, blurred by the two sigmas (px), that repeats without a seam."""
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    keep = np.exp(-2 * np.pi**2 * ((fy * sigma_y) ** 2 + (fx * sigma_x) ** 2))
    out = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) * keep, (side, side))
    return ((out - out.mean()) / out.std()).astype(np.float32)


def to_byte(field: np.ndarray) -> np.ndarray:
    return np.clip(field, 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def nucleus_bank() -> np.ndarray:
    """Haematoxylin of nuclei, `(inside, radius, elongation, variant, STAMP_PX, STAMP_PX)` uint8.

    Evenly filled and vesicular nuclei are scaled to let the same light through on average; without that the
    lesion would be darker or paler at 5x.
    """
    rng = np.random.default_rng(20)
    shape = (len(INSIDES), len(RADII_PX), len(AXIS_RATIOS), VARIANTS)
    inside, radius, ratio, _ = (
        a.ravel()[:, None, None]
        for a in np.meshgrid(INSIDES, RADII_PX, AXIS_RATIOS, np.arange(VARIANTS), indexing="ij")
    )
    n = inside.size
    axis = np.arange(STAMP_PX) - (STAMP_PX - 1) / 2

    def draw(lo: float, hi: float) -> np.ndarray:
        return rng.uniform(lo, hi, (n, 1, 1))

    turn = draw(0, np.pi)
    cos, sin = np.cos(turn), np.sin(turn)
    y, x = axis[None, :, None] - draw(-0.5, 0.5), axis[None, None, :] - draw(-0.5, 0.5)
    u, v = x * cos + y * sin, y * cos - x * sin
    angle = np.arctan2(v, u)
    wobble = 1 + 0.05 * np.cos(2 * angle + draw(0, 6.3)) + 0.04 * np.cos(3 * angle + draw(0, 6.3))
    edge = radius * draw(0.93, 1.07) * wobble
    rho = np.hypot(u / np.sqrt(ratio), v * np.sqrt(ratio))
    alpha = np.clip((edge - rho) / 1.2 + 0.5, 0, 1)

    speckle = rng.standard_normal((n, STAMP_PX, STAMP_PX)).astype(np.float32)
    fine = np.stack([cv2.GaussianBlur(s, (0, 0), 0.7) for s in speckle]) * 2.4
    clumps = np.stack([cv2.GaussianBlur(s, (0, 0), 1.5) for s in speckle]) * 5.3
    even = 1 + 0.10 * fine + 0.06 * clumps
    rim = np.exp(-(((rho / edge - 0.87) / 0.15) ** 2))
    away, where = draw(0.0, 0.33) * radius, draw(0, 6.3)
    nucleolus = np.exp(-((u - away * np.cos(where)) ** 2 + (v - away * np.sin(where)) ** 2) / (2 * draw(1.8, 2.5) ** 2))
    vesicular = 0.36 + 0.06 * fine + 0.13 * clumps + 0.66 * rim * (1 + 0.2 * clumps) + 1.6 * nucleolus
    profile = np.clip((1 - inside) * even + inside * vesicular, 0.05, None)

    light = (alpha * np.exp(-0.95)).sum((1, 2), keepdims=True)  # of an even nucleus of this outline
    low, high = np.full((n, 1, 1), 0.2), np.full((n, 1, 1), 3.0)
    for _ in range(18):
        mid = (low + high) / 2
        pale = (alpha * np.exp(-0.95 * mid * profile)).sum((1, 2), keepdims=True) > light
        low, high = np.where(pale, mid, low), np.where(pale, high, mid)
    depth = draw(0.86, 1.14)  # nuclei differ in darkness, the same way in every kind
    return to_byte(112 * depth * alpha * profile * mid).reshape(*shape, STAMP_PX, STAMP_PX)


@lru_cache(maxsize=1)
def small_nuclei() -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin of lymphocytes and of fibroblasts, each `(48, STAMP_PX, STAMP_PX)` uint8."""
    rng = np.random.default_rng(21)
    axis = np.arange(STAMP_PX) - (STAMP_PX - 1) / 2
    y, x = axis[None, :, None], axis[None, None, :]

    def spindle(long_px: tuple[float, float], short_px: tuple[float, float], depth: float) -> np.ndarray:
        turn = rng.uniform(0, np.pi, (48, 1, 1))
        u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        v = v + 0.02 * rng.normal(0, 1, (48, 1, 1)) * u**2
        rho = np.hypot(u / rng.uniform(*long_px, (48, 1, 1)), v / rng.uniform(*short_px, (48, 1, 1)))
        grain = 1 + 0.12 * rng.standard_normal((48, STAMP_PX, STAMP_PX))
        return to_byte(depth * np.clip((1 - rho) * 3, 0, 1) * grain)

    return spindle((4.6, 5.6), (4.4, 5.2), 165), spindle((9, 13), (2.2, 3.2), 125)


@lru_cache(maxsize=1)
def tissue_texture() -> np.ndarray:
    """Seamless `(1024, 1024, 3)` uint8: fibres of stroma, cytoplasm, distance to the next fat cell's membrane."""
    rng = np.random.default_rng(22)
    side = 1024
    fibres = (
        0.75 * periodic_noise(rng, side, 2.2, 45)
        + 0.6 * periodic_noise(rng, side, 9, 90)
        + 0.4 * periodic_noise(rng, side, 0.8, 7)
        + 0.25 * periodic_noise(rng, side, 0.7, 0.7)
    )
    clefts = np.clip(periodic_noise(rng, side, 5, 60) - 1.3, 0, None)
    fibre = 128 + 36 * fibres - 95 * clefts
    cytoplasm = 128 + 26 * periodic_noise(rng, side, 1.0, 1.0) + 22 * periodic_noise(rng, side, 6, 6)

    half = side // 2  # at half size: distances are smooth
    n = 11
    points = (np.moveaxis(np.mgrid[:n, :n], 0, -1).reshape(-1, 2) + rng.uniform(0.12, 0.88, (n * n, 2))) * half / n
    axis = np.arange(half)
    first, second = np.full((half, half), 1e9, np.float32), np.full((half, half), 1e9, np.float32)
    for py, px in points:
        dy = np.abs((axis - py + half / 2) % half - half / 2).astype(np.float32)
        dx = np.abs((axis - px + half / 2) % half - half / 2).astype(np.float32)
        d = np.sqrt(dy[:, None] ** 2 + dx[None] ** 2)
        second = np.minimum(second, np.maximum(first, d))
        first = np.minimum(first, d)
    membrane = cv2.resize(second - first, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.dstack([to_byte(fibre), to_byte(cytoplasm), to_byte(membrane * 16)])
