"""What stage 1 learns from, batch by batch: LR tiles read in any order, and the HR targets of their cells."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.device import to_device
from lrmil_cli.errors import InputError
from lrmil_cli.matching.paired_slide import PairedSlide, tile_level
from lrmil_cli.slides.reader import read_tile
from lrmil_cli.slides.slide import Slide, default_workers

#: Slides kept open at a time while LR tiles are read in random order.
OPEN_SLIDES = 64


@dataclass
class Regions:
    """All regions of some slides, flat: which slide, which region of it."""

    slides: list[PairedSlide]
    targets: list[dict[str, np.ndarray]]
    attention: list[np.ndarray] | None
    index: np.ndarray  # int64 [R, 2]: slide, region


A = TypeVar("A", np.ndarray, Tensor)


@dataclass
class Batch(Generic[A]):
    """B regions of K cells, as arrays or as tensors.

    Attributes:
        tiles: uint8 [B, P, P, 3]; targets: [B, K, |layers|, D]; mask: bool [B, K], cells that have an HR tile.
        final: [B, K, D_e], where the final loss is on; attention: [B, K], where it weighs by the teacher's.
    """

    tiles: A
    targets: A
    mask: A
    final: A | None
    attention: A | None


class TileReader:
    """Reads LR tiles of many slides in any order, with threads and a bounded number of slides open."""

    def __init__(self, slides: list[PairedSlide], workers: int | None = None):
        self._slides = slides
        self._open: dict[int, tuple[Slide, int]] = {}
        self._pool = ThreadPoolExecutor(workers or default_workers())

    def _slide(self, number: int) -> tuple[Slide, int]:
        """A slide, open, and its level; those used last stay open."""
        if number in self._open:
            self._open[number] = self._open.pop(number)
        else:
            paired = self._slides[number]
            handle = paired.open_slide("lr", workers=1)
            self._open[number] = handle, tile_level(handle, paired.header["lr"])
            if len(self._open) > OPEN_SLIDES:
                self._open.pop(next(iter(self._open)))[0].close()
        return self._open[number]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [B, P, P, 3] of regions ``rows`` [B, 2]: slide, region."""

        def one(row: np.ndarray, slide: Slide, level: int) -> np.ndarray:
            own = self._slides[row[0]]
            x, y, width, height = own.lr_boxes[row[1]].tolist()
            return read_tile(slide, level, x, y, width, height, own.header["lr"]["settings"]["tile_px"])

        tiles: list[np.ndarray] = []
        for start in range(0, len(rows), OPEN_SLIDES):
            some = rows[start : start + OPEN_SLIDES]
            tiles += self._pool.map(one, some, *zip(*(self._slide(int(s)) for s, _ in some)))
        return np.stack(tiles)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for handle, _ in self._open.values():
            handle.close()
        self._open.clear()


def hold_out(data: Regions, seed: int) -> tuple[Regions, Regions]:
    """With a single slide, a tenth of its regions is the validation set."""
    if len(data.index) < 2:
        raise InputError("a single LR tile with HR tiles under it is too little to train on; give more slides")
    order = np.random.default_rng(seed).permutation(len(data.index))
    cut = max(1, len(order) // 10)
    return replace(data, index=data.index[np.sort(order[cut:])]), replace(data, index=data.index[np.sort(order[:cut])])


def batches(data: Regions, groups: list[np.ndarray], reader: TileReader, final: bool) -> Iterator[Batch[np.ndarray]]:
    """Batches of the regions that each of ``groups`` names; ``final``: with the targets of the final loss."""
    for group in groups:
        rows = data.index[group]
        tiles = reader.read(rows)
        children = np.stack([data.slides[s].children[r] for s, r in rows])
        mask = children >= 0
        # Missing children point at row 0 and are masked; any finite value will do there.
        safe = np.where(mask, children, 0)
        yield Batch(
            tiles,
            _gather([t["layers"] for t in data.targets], rows, safe),
            mask,
            _gather([t["final"] for t in data.targets], rows, safe) if final else None,
            _gather(data.attention, rows, safe) if data.attention is not None else None,
        )


def _gather(arrays: list[np.ndarray], rows: np.ndarray, children: np.ndarray) -> np.ndarray:
    """Rows ``children`` [B, K] of the arrays of the slides that ``rows`` [B, 2] names, [B, K, ...]."""
    return np.stack([np.asarray(arrays[s][c]) for (s, _), c in zip(rows, children)])


def on_device(batch: Batch[np.ndarray], device: torch.device) -> Batch[Tensor]:
    """The batch as tensors on ``device``."""
    return Batch(
        to_device(batch.tiles, device),
        to_device(batch.targets, device),
        to_device(batch.mask, device),
        None if batch.final is None else to_device(batch.final, device),
        None if batch.attention is None else to_device(batch.attention, device),
    )


def turn_batch(batch: Batch[Tensor], view: int) -> Batch[Tensor]:
    """The same view of the LR tiles and of all that belongs to their cells."""
    return Batch(
        turn(batch.tiles, view),
        turn_cells(batch.targets, view),
        turn_cells(batch.mask, view),
        None if batch.final is None else turn_cells(batch.final, view),
        None if batch.attention is None else turn_cells(batch.attention, view),
    )


def turn(images: Tensor, view: int) -> Tensor:
    """One of the eight turned and flipped views of [B, rows, columns, ...]."""
    turned = torch.rot90(images, view % 4, (1, 2))
    return turned.flip(2) if view >= 4 else turned


def turn_cells(cells: Tensor, view: int) -> Tensor:
    """The same view of what belongs to the cells of regions, [B, K, ...] in row-major order."""
    ratio = round(cells.shape[1] ** 0.5)
    return turn(cells.unflatten(1, (ratio, ratio)), view).flatten(1, 2)
