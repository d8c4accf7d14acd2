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
from lrmil_cli.distill.hr_tokens import TargetFile
from lrmil_cli.distill.slide_pairs import SlidePairs
from lrmil_cli.errors import InputError
from lrmil_cli.matching.paired_slide import tile_level
from lrmil_cli.slides.reader import read_tile
from lrmil_cli.slides.slide import Slide, default_workers

#: Slides kept open at a time while LR tiles are read in random order.
OPEN_SLIDES = 64


@dataclass
class Regions:
    """R regions of some slides, flat; what they learn from stays on disk.

    Attributes:
        targets, attention: of each slide; attention [N] where the final loss weighs by the teacher's.
        slide: int32 [R], which slide; boxes: int32 [R, 4], of the LR tile; children: int32 [R, K], rows of the targets.
    """

    slides: list[SlidePairs]
    targets: list[dict[str, TargetFile]]
    attention: list[np.ndarray] | None
    slide: np.ndarray
    boxes: np.ndarray
    children: np.ndarray

    def __len__(self) -> int:
        return len(self.slide)

    def take(self, rows: np.ndarray) -> Regions:
        return replace(self, slide=self.slide[rows], boxes=self.boxes[rows], children=self.children[rows])


def read_regions(
    slides: list[SlidePairs], targets: list[dict[str, TargetFile]], attention: list[np.ndarray] | None
) -> Regions:
    """The regions of slides whose targets are there: of each region less than 100 bytes.

    Raises:
        InputError: a pairs table cannot be read any more.
    """
    number, cells = sum(s.regions for s in slides), slides[0].ratio ** 2
    boxes, children = np.empty((number, 4), np.int32), np.empty((number, cells), np.int32)
    start = 0
    for slide in slides:
        paired, end = slide.read(), start + slide.regions
        boxes[start:end], children[start:end] = paired.lr_boxes, paired.children
        start = end
    which = np.repeat(np.arange(len(slides), dtype=np.int32), [s.regions for s in slides])
    return Regions(slides, targets, attention, which, boxes, children)


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

    def __init__(self, workers: int | None = None):
        self._open: dict[str, tuple[Slide, int]] = {}
        self.pool = ThreadPoolExecutor(workers or default_workers())

    def _slide(self, slide: SlidePairs) -> tuple[Slide, int]:
        """A slide, open, and its level; those used last stay open."""
        if slide.slide_id in self._open:
            self._open[slide.slide_id] = self._open.pop(slide.slide_id)
        else:
            handle = slide.open_slide("lr", workers=1)
            self._open[slide.slide_id] = handle, tile_level(handle, slide.header["lr"])
            if len(self._open) > OPEN_SLIDES:
                self._open.pop(next(iter(self._open)))[0].close()
        return self._open[slide.slide_id]

    def read(self, data: Regions, rows: np.ndarray) -> np.ndarray:
        """uint8 [B, P, P, 3] of the regions ``rows`` [B]."""
        tile_px = data.slides[0].header["lr"]["settings"]["tile_px"]

        def one(row: int, slide: Slide, level: int) -> np.ndarray:
            x, y, width, height = data.boxes[row].tolist()
            return read_tile(slide, level, x, y, width, height, tile_px)

        tiles: list[np.ndarray] = []
        for start in range(0, len(rows), OPEN_SLIDES):
            some = rows[start : start + OPEN_SLIDES]
            tiles += self.pool.map(one, some, *zip(*(self._slide(data.slides[data.slide[r]]) for r in some)))
        return np.stack(tiles)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        for handle, _ in self._open.values():
            handle.close()
        self._open.clear()


def hold_out(data: Regions, seed: int) -> tuple[Regions, Regions]:
    """With a single slide, a tenth of its regions is the validation set."""
    if len(data) < 2:
        raise InputError("a single LR tile with HR tiles under it is too little to train on; give more slides")
    order = np.random.default_rng(seed).permutation(len(data))
    cut = max(1, len(order) // 10)
    return data.take(np.sort(order[cut:])), data.take(np.sort(order[:cut]))


def epoch_order(data: Regions, length: int | None, rng: np.random.Generator) -> np.ndarray:
    """The regions of an epoch in random order, all or the first ``length`` (from the start again where that is more).

    Of more slides than stay open (:data:`OPEN_SLIDES`) nearly as many as do are mixed at a time: slides come and go one
    by one, in another order each epoch, so that a slide is opened about once an epoch and not for nearly every tile.
    """
    order = rng.permutation(len(data))
    if length is not None:
        order = np.resize(order, length)
    if (slides := len(data.slides)) > OPEN_SLIDES:
        come, mixed = rng.permutation(slides)[data.slide[order]], OPEN_SLIDES * 7 // 8  # fewer, or the last tiles of a
        order = order[np.argsort((come + mixed * rng.random(len(order))) % slides)]  # slide would open it once more
    return order


def batches(data: Regions, groups: list[np.ndarray], reader: TileReader, final: bool) -> Iterator[Batch[np.ndarray]]:
    """Batches of the regions that each of ``groups`` names; ``final``: with the targets of the final loss."""
    for rows in groups:
        children = data.children[rows]
        of = data.slide[rows]

        def targets(name: str, of: np.ndarray = of, children: np.ndarray = children) -> np.ndarray:
            files = [data.targets[s][name] for s in of]
            return np.stack(list(reader.pool.map(_targets, files, children)))

        yield Batch(
            reader.read(data, rows),
            targets("layers"),
            children >= 0,
            targets("final") if final else None,
            # Missing children point at the last row, and are masked.
            np.stack([data.attention[s][c] for s, c in zip(of, children)]) if data.attention is not None else None,
        )


def _targets(file: TargetFile, children: np.ndarray) -> np.ndarray:
    """[K, ...] of the children of a region; zeros, which are masked, for those that are missing."""
    out = np.zeros((len(children), *file.shape[1:]), file.dtype)
    there = children >= 0
    out[there] = file.take(children[there])
    return out


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
