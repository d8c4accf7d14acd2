"""The HR side of a cohort in stage 2: bags of HR features, and which LR tile each of their tiles lies in."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.errors import InputError
from lrmil_cli.files.foreign import read_bag
from lrmil_cli.files.header import last_digest
from lrmil_cli.files.tables import find_table
from lrmil_cli.heads import Bag
from lrmil_cli.matching.paired_slide import read_pairs
from lrmil_cli.matching.tile_rows import align, region_parents
from lrmil_cli.training.bags import bag_of


@dataclass
class HighSlide:
    """The HR side of one slide.

    Attributes:
        bag: N_h tiles; parent: int64 [N_h], LR tile of each, -1 for none; header: of the feature file.
        rows: row in the bag of each HR tile of the pairs table, see :func:`align`.
    """

    bag: Bag
    parent: Tensor
    header: dict[str, Any]
    rows: np.ndarray


@dataclass
class HighResolution:
    """The HR side of a cohort.

    Attributes:
        slides: in manifest order; None for one that was not asked for, or has no features or pairs.
        inputs: digests of what was read; ratio: HR tiles along the side of an LR tile.
    """

    slides: list[HighSlide | None]
    inputs: dict[str, str] = field(default_factory=dict)
    ratio: int = 1


def load_high(
    ids: list[str],
    wanted: Collection[str],
    folder: Path,
    pairs: str,
    lr_tables: list[tuple[Path, dict[str, Any]]],
    device: torch.device,
    *,
    required: Collection[str],
) -> HighResolution:
    """The HR side of the slides ``wanted`` of the cohort ``ids``.

    Args:
        folder: of the HR feature files; pairs: folder of pairs tables.
        lr_tables: path and header of each slide's LR tiles.
        required: of them, those whose features and pairs must be there; others are left out where they lack one.

    Raises:
        InputError: features or pairs of a required slide are missing, or some do not fit the tiles.
    """
    out = HighResolution([])
    ratios = set()
    for slide_id, (_, lr_header) in zip(ids, lr_tables):
        out.slides.append(None)
        if slide_id not in wanted:
            continue
        path = folder / f"{slide_id}.h5"
        try:
            paired = read_pairs(find_table(pairs, slide_id, "pairs"))
            features = read_bag(path, paired.header["hr"]["slide"]["mpp"])
        except InputError:
            if slide_id in required:
                raise
            continue
        if last_digest(paired.header["lr"]) != last_digest(lr_header):
            raise InputError(
                f"{pairs}: the pairs of {slide_id} were made from other LR tiles than those in --tiles; "
                "run `lrmil match` again"
            )
        rows = align(paired, features, str(path))
        parent = torch.from_numpy(region_parents(paired, len(features.coords), rows)).to(device)
        out.slides[-1] = HighSlide(bag_of(features, device), parent, features.header, rows)
        out.inputs |= {
            f"hr/{slide_id}": last_digest(features.header),
            f"pairs/{slide_id}": last_digest(paired.header),
        }
        ratios.add(paired.ratio)
    if len(ratios) > 1:
        raise InputError(f"{pairs}: pairs of different ratios ({sorted(ratios)}); tile all slides alike")
    out.ratio = next(iter(ratios), 1)
    return out
