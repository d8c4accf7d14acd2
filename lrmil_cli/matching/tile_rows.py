"""Which row is which tile: pairs tables, tile tables and feature files of one slide brought together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.errors import InputError
from lrmil_cli.files.tables import read_table
from lrmil_cli.matching.paired_slide import PairedSlide


def region_parents(paired: PairedSlide, n_hr: int, rows: np.ndarray | None = None) -> np.ndarray:
    """LR tile (row of the LR table) of each HR tile, int64 [N_h], -1 for none.

    Args:
        rows: int64 [P], which HR tile each pair is about, -1 for one that is not there; by default as the HR table
            counts.
    """
    rows = paired.hr_index if rows is None else rows
    parent = np.full(n_hr, -1, np.int64)
    parent[rows[rows >= 0]] = paired.lr_index[paired.region][rows >= 0]
    return parent


def to_read_rows(parents: Tensor, table: str | Path, coords: Tensor) -> Tensor:
    """Parents as rows of an LR bag from which tiles that cannot be decoded were left out.

    Args:
        parents: int64 [N_h], rows of the LR table; table: its path.
        coords: int64 [N_l, 2], corners of the tiles in the bag.
    """
    rows = find_rows(read_table(table, "tiles")[1][["x", "y"]].to_numpy(), coords.cpu().numpy())
    # A tile without parent has -1, which is the last one here.
    return torch.from_numpy(np.append(rows, -1))[parents.cpu()].to(parents.device)


def find_rows(wanted: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """For each of ``wanted`` int [M, 2] its row in ``corners`` int [N, 2], -1 where it is not there; int64 [M]."""
    at = {c: row for row, c in enumerate(map(tuple, corners.tolist()))}
    return np.array([at.get(c, -1) for c in map(tuple, wanted.tolist())], np.int64)


def align(paired: PairedSlide, coords: np.ndarray, header: dict[str, Any], where: str) -> np.ndarray:
    """Row in a feature file of each HR tile of a pairs table, int64 [P]; -1 for tiles that could not be decoded.

    Args:
        coords, header: of the feature file.

    Raises:
        InputError: they come from different tile tables.
    """
    n, bad = len(coords), int(header.get("bad_tiles", 0))
    if paired.hr_index.max() < n and (coords[paired.hr_index] == paired.hr_boxes[:, :2]).all():
        return paired.hr_index
    rows = find_rows(paired.hr_boxes[:, :2], coords) if bad else np.full(1, -1)
    if (rows < 0).sum() > bad or not (rows >= 0).any():
        raise InputError(
            f"{where}: its HR tiles are not those of the pairs table of {paired.slide_id}; "
            "run `lrmil match` and `lrmil train-teacher` on the same tiles"
        )
    return rows


def matched_counts(parents: list[Tensor | None], n_lr: list[int], ratio: int) -> dict[str, int]:
    """Regions of the slides that a teacher speaks of: matched, unmatched, incomplete (matching/README 3)."""
    counts = {"matched": 0, "unmatched": 0, "incomplete": 0}
    for parent, n in zip(parents, n_lr):
        if parent is None:
            continue
        children = np.bincount(parent[parent >= 0].cpu().numpy(), minlength=n)
        counts["matched"] += int((children > 0).sum())
        counts["unmatched"] += int((children == 0).sum())
        counts["incomplete"] += int(((children > 0) & (children < ratio**2)).sum())
    return counts
