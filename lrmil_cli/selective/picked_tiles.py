"""EAGLE: which HR tiles the attention of an LR model picks (selective/README 8)."""

from __future__ import annotations

import numpy as np


def pick_tiles(attention: np.ndarray, parent: np.ndarray, cell: np.ndarray, tissue: np.ndarray, top: int) -> np.ndarray:
    """The HR tiles under the most attended LR tiles: all of an LR tile before any of the next.

    Of the last LR tile, which may have more than are still wanted, those with most tissue. Ties go by tile order.

    Args:
        attention: [N_l]; parent: int64 [N_h], LR tile of each HR tile, -1 for none; cell: int64 [N_h], its place there.
        tissue: [N_h], share of it that is tissue; top: how many.

    Returns:
        int64 [min(top, HR tiles with an LR tile)], rows of HR tiles, in the order in which they were picked.
    """
    rank = np.argsort(np.argsort(-attention, kind="stable"), kind="stable")
    rows = np.flatnonzero(parent >= 0)
    return rows[np.lexsort((cell[rows], -tissue[rows], rank[parent[rows]]))][:top]
