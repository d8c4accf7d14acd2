"""The HR side of a cohort in stage 2: bags of HR features, and which LR tile each of their tiles lies in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.errors import InputError
from lrmil_cli.files.features import BagFile
from lrmil_cli.files.foreign import open_bag
from lrmil_cli.files.header import last_digest
from lrmil_cli.files.tables import find_table
from lrmil_cli.heads import Bag
from lrmil_cli.matching.paired_slide import check_made_from, read_pairs
from lrmil_cli.matching.tile_rows import align, region_parents
from lrmil_cli.training.bags import loaded
from lrmil_cli.training.streamed import Room, Streamed


@dataclass
class HighBag:
    """The HR side of a bag; parent: int64 [N_h], LR tile of each of its N_h tiles, -1 for none."""

    parent: Tensor


@dataclass
class HighSlide(HighBag):
    """The HR side of one slide.

    Attributes:
        file: its N_h tiles.
        rows: row in the bag of each HR tile of the pairs table, see :func:`align`.
    """

    file: BagFile
    rows: np.ndarray

    @property
    def header(self) -> dict[str, Any]:
        """Of the feature file."""
        return self.file.header

    @property
    def count(self) -> int:
        """N_h."""
        return self.file.shape[0]


@dataclass
class HighResolution:
    """The HR side of a cohort.

    Attributes:
        slides: in manifest order; None for one that was not asked for, or has no features or pairs.
        patients: where bags are of patients (:mod:`lrmil_cli.training.patients`), their HR sides; None for one of
            whose slides one is None.
        bags: of the :attr:`sides`, which must not be None.
        inputs: digests of what was read; ratio: HR tiles along the side of an LR tile.
    """

    slides: list[HighSlide | None]
    bags: Streamed[Bag]
    inputs: dict[str, str] = field(default_factory=dict)
    ratio: int = 1
    patients: list[HighBag | None] | None = None

    @property
    def sides(self) -> Sequence[HighBag | None]:
        """Those of the bags that are learned from: of slides, or of patients."""
        return self.slides if self.patients is None else self.patients


def load_high(
    ids: list[str],
    wanted: Collection[str],
    folder: Path,
    pairs: str,
    lr_tables: list[tuple[Path, dict[str, Any]]],
    device: torch.device,
    room: Room,
    *,
    required: Collection[str],
) -> HighResolution:
    """The HR side of the slides ``wanted`` of the cohort ``ids``.

    Args:
        folder: of the HR feature files; pairs: folder of pairs tables.
        lr_tables: path and header of each slide's LR tiles; room: that bags may be kept in.
        required: of them, those whose features and pairs must be there; others are left out where they lack one.

    Raises:
        InputError: features or pairs of a required slide are missing, or some do not fit the tiles.
    """
    slides: list[HighSlide | None] = []
    inputs: dict[str, str] = {}
    ratios = set()
    for slide_id, (_, lr_header) in zip(ids, lr_tables):
        slides.append(None)
        if slide_id not in wanted:
            continue
        path = folder / f"{slide_id}.h5"
        try:
            paired = read_pairs(find_table(pairs, slide_id, "pairs"))
            file = open_bag(path, paired.header["hr"]["slide"]["mpp"])
        except InputError:
            if slide_id in required:
                raise
            continue
        check_made_from(paired, lr_header, pairs)
        rows = align(paired, file.coords(), file.header, str(path))
        parent = torch.from_numpy(region_parents(paired, file.shape[0], rows)).to(device)
        slides[-1] = HighSlide(parent, file, rows)
        inputs |= {
            f"hr/{slide_id}": last_digest(file.header),
            f"pairs/{slide_id}": last_digest(paired.header),
        }
        ratios.add(paired.ratio)
    if len(ratios) > 1:
        raise InputError(f"{pairs}: pairs of different ratios ({sorted(ratios)}); tile all slides alike")
    return HighResolution(slides, _bags(slides, device, room), inputs, next(iter(ratios), 1))


def _bags(slides: Sequence[HighSlide | None], device: torch.device, room: Room) -> Streamed[Bag]:
    def load(index: int) -> Bag:
        slide = slides[index]
        assert slide is not None, "who asks has looked"
        return loaded(slide.file)

    shapes = [(0, 0) if s is None else s.file.shape for s in slides]
    return Streamed(load, [n for n, _ in shapes], max((d for _, d in shapes), default=0), room, device)
