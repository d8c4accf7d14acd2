"""The scale of colours of attention, the same for every slide, page and picture (pages/README 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Binary logarithms of the multiples where the colours end: an eighth and sixteen times uniform.
LOWEST, HIGHEST = -3.0, 4.0
#: Names of the multiples from end to end, a factor of two apart.
NAMES = ("⅛×", "¼×", "½×", "1× even share", "2×", "4×", "8×", "16×")
#: Below uniform one blue; above it from yellow over orange to brown, ever darker.
BELOW = np.array([33.0, 102.0, 172.0])
ABOVE = np.array([[254.0, 196.0, 79.0], [217.0, 95.0, 14.0], [102.0, 37.0, 6.0]])
#: How much the colours cover of the slide where they end; nothing at 1.
COVER_BELOW, COVER_ABOVE = 0.4, 0.8
#: How much a colour map that the user chose covers everywhere.
COVER_CHOSEN = 0.55


def multiples(attention: np.ndarray) -> np.ndarray:
    """Attention [N] as multiples of what each tile would have, were all looked at alike: 1 is uniform."""
    return attention * len(attention) / attention.sum()


def times_of(rows: Any) -> np.ndarray:
    """The multiples [N] of the rows of an attention table; a finer map says them itself."""
    if "multiple" in rows:
        return np.asarray(rows["multiple"], np.float64)
    return multiples(np.asarray(rows["attention"], np.float64))


def colours(times: np.ndarray, colormap: str | None = None) -> np.ndarray:
    """Colour and cover [N, 4] (0 to 255, cover 0 to 1) of multiples of uniform [N]. They know nothing of the slide.

    Args:
        colormap: one of matplotlib's, over the same range, in place of our colours.
    """
    with np.errstate(divide="ignore"):
        log = np.clip(np.log2(times), LOWEST, HIGHEST)
    if colormap is not None:
        from matplotlib import colormaps

        chosen = colormaps[colormap]((log - LOWEST) / (HIGHEST - LOWEST))[:, :3] * 255
        return np.concatenate([chosen, np.full((len(log), 1), COVER_CHOSEN)], 1)
    up = np.clip(log / HIGHEST, 0, 1)
    above = np.stack([np.interp(up, [0, 0.5, 1], ABOVE[:, c]) for c in range(3)], 1)
    cover = np.where(log < 0, COVER_BELOW * log / LOWEST, COVER_ABOVE * np.minimum(1, 2 * up))
    return np.concatenate([np.where(log[:, None] < 0, BELOW, above), cover[:, None]], 1)
