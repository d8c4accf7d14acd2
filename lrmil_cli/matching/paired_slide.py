"""The pairs of one slide as arrays: read, checked, and cut down to what can be learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.encoders.embed import open_tiled_slide
from lrmil_cli.errors import InputError
from lrmil_cli.files.header import check_slide, digest, is_positive, last_digest
from lrmil_cli.files.tables import read_table
from lrmil_cli.matching.pairs import MAX_OFFSET, boxes_of, cell_offsets
from lrmil_cli.progress import TILES, phase
from lrmil_cli.slides.grid import choose_level
from lrmil_cli.slides.reader import iter_batches
from lrmil_cli.slides.slide import Slide


@dataclass
class PairedSlide:
    """Pairs of one slide, and where its HR targets are.

    Attributes:
        header: of the pairs table; path: of that; slide_path: where the slide may be now, if not where it was.
        hr_boxes, lr_boxes: int64 [., 4] level-0 rectangles.
        children: int64 [R, K], row of the targets for each cell of each region, -1 where there is no HR tile; of
            several tiles in one cell (overlapping tiles of other tools) the one nearest to its centre.
        lr_index: int64 [R], row of each region in the LR tile table.
        hr_index: int64 [N], row of each target in the HR tile table.
        region, cell: int64 [N], region of each target, and its cell there, row-major.
        tissue: float64 [N], share of it that is tissue; None in tables of earlier versions and of tiles of other tools.
        offset: float64 [N], in HR sides, how far it lies off its cell.
    """

    slide_id: str
    header: dict[str, Any]
    path: str | Path
    slide_path: Path | None
    hr_boxes: np.ndarray
    lr_boxes: np.ndarray
    children: np.ndarray
    lr_index: np.ndarray
    hr_index: np.ndarray
    region: np.ndarray
    offset: np.ndarray
    cell: np.ndarray
    tissue: np.ndarray | None

    @property
    def ratio(self) -> int:
        return int(self.header["ratio"])

    def open_slide(self, side: str, workers: int | None = None, on_bad_tile: str = "fail") -> Slide:
        """The slide as the tiles of ``side`` (``lr`` or ``hr``) were cut from it.

        Raises:
            InputError: it cannot be found or read, or is another file.
        """
        return open_tiled_slide(self.header[side], self.path, self.slide_path, workers, on_bad_tile)


def check_made_from(paired: PairedSlide, lr_header: dict[str, Any], folder: str) -> None:
    """Pairs are of the LR tiles that are given now.

    Args:
        lr_header: of the slide's LR tile table; folder: where the pairs are, for the message.

    Raises:
        InputError: they are of others.
    """
    if last_digest(paired.header["lr"]) != last_digest(lr_header):
        raise InputError(
            f"{folder}: the pairs of {paired.slide_id} were made from other LR tiles than those in --tiles; "
            "run `lrmil match` again"
        )


def check_alike(paired: Sequence[PairedSlide], folder: str) -> None:
    """The pairs of a cohort are of one ratio and of HR tiles of one kind.

    Raises:
        InputError: they are not.
    """
    if len({digest({"ratio": p.ratio, "tiles": p.header["hr"]["settings"]}, {}) for p in paired}) > 1:
        raise InputError(f"{folder}: pairs of different ratios or tiles; tile all slides alike")


def read_pairs(path: str | Path, slide_path: Path | None = None) -> PairedSlide:
    """Read a pairs table into arrays.

    Args:
        slide_path: where its slide may be now.

    Raises:
        InputError: as ``read_table``; cells outside the ratio.
    """
    header, rows = read_table(path, "pairs")
    try:
        ratio, lr, hr = int(header["ratio"]), header["lr"], header["hr"]
        slide_id = header["slide"]["id"]
        for side in (lr, hr):
            check_slide(side, str(path))
            if not all(is_positive(side["settings"][k]) for k in ("mpp", "tile_px")):
                raise ValueError("scale")
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path}: the pairs header is incomplete ({e}); run `lrmil match` again") from e
    try:
        cell = (rows["cell_row"] * ratio + rows["cell_col"]).to_numpy()
        if not len(rows) or cell.min() < 0 or cell.max() >= ratio**2:
            raise InputError(f"{path}: no pairs in it, or cells outside the ratio {ratio}; run `lrmil match` again")
        lr_index, first, region = np.unique(rows["lr_index"].to_numpy(), return_index=True, return_inverse=True)
        hr_boxes = boxes_of(rows["hr_x"].to_numpy(), rows["hr_y"].to_numpy(), hr)
        lr_boxes = boxes_of(rows["lr_x"].to_numpy()[first], rows["lr_y"].to_numpy()[first], lr)
        offset = cell_offsets(hr_boxes, lr_boxes[region], cell, ratio)
        order = np.lexsort((offset, region * ratio**2 + cell))
        _, nearest = np.unique((region * ratio**2 + cell)[order], return_index=True)
        chosen = order[nearest]
        children = np.full((len(lr_index), ratio**2), -1, np.int64)
        children[region[chosen], cell[chosen]] = chosen
    except (OverflowError, ValueError) as e:
        raise InputError(f"{path}: numbers in it that no slide has ({e}); run `lrmil match` again") from e
    hr_index = rows["hr_index"].to_numpy()
    tissue = rows["hr_tissue"].to_numpy(np.float64) if "hr_tissue" in rows else None
    return PairedSlide(
        slide_id,
        header,
        path,
        slide_path,
        hr_boxes,
        lr_boxes,
        children,
        lr_index,
        hr_index,
        region,
        offset,
        cell,
        tissue,
    )


def one_tile_a_cell(paired: PairedSlide) -> PairedSlide:
    """What stage 1 learns from: one HR tile a cell, and none further off its cell than :data:`MAX_OFFSET`, since the
    tokens of the cell would be taught what lies beside it (matching/README 4). Tiles on the LR grid all stay.

    Raises:
        InputError: nothing is left.
    """
    used = np.sort(paired.children[paired.children >= 0])
    rows = used[paired.offset[used] <= MAX_OFFSET]
    if len(rows) == len(paired.hr_index):
        return paired
    if not len(rows):
        lr, hr = (paired.header[k]["settings"] for k in ("lr", "hr"))
        fit = lr["tile_px"] * lr["mpp"] / (paired.ratio * hr["tile_px"])
        raise InputError(
            f"slide {paired.slide_id}: all HR tiles lie more than {MAX_OFFSET:g} of their side off the cells of the LR "
            "tiles, which would teach wrong content; stage 1 encodes HR tiles anew, so make some for it: "
            f"`lrmil tile --mpp {fit:.4g} --tile-px {hr['tile_px']}`, `lrmil match`"
        )
    return keep_targets(paired, rows)


def only_readable(paired: PairedSlide, workers: int | None, say: Callable[[str], None]) -> PairedSlide:
    """The pairs whose tiles, LR and HR, can be decoded: all are read once.

    Raises:
        InputError: the slide cannot be opened, or nothing is left.
    """
    bad: dict[str, list[int]] = {"lr": [], "hr": []}
    for side, boxes in (("lr", paired.lr_boxes), ("hr", paired.hr_boxes)):
        header = paired.header[side]
        with paired.open_slide(side, workers, on_bad_tile="skip") as slide:
            level, tile_px = tile_level(slide, header), header["settings"]["tile_px"]
            with phase(f"trying the {side.upper()} tiles of {paired.slide_id}:", len(boxes), TILES) as told:
                for rows, _ in iter_batches(slide, boxes, level, tile_px, 64, bad[side]):
                    told.advance(len(rows))
    if not bad["lr"] and not bad["hr"]:
        return paired
    gone = np.isin(paired.region, bad["lr"])
    gone[bad["hr"]] = True
    say(f"{paired.slide_id}: {len(bad['lr'])} LR and {len(bad['hr'])} HR tiles cannot be decoded and teach nothing")
    if gone.all():
        raise InputError(
            f"slide {paired.slide_id}: none of its pairs can be decoded; "
            "copy or export the slide again, or leave it out"
        )
    kept = np.flatnonzero(~gone)
    left = keep_targets(paired, kept)
    # Its targets are others than those of the whole slide.
    left.header = {**paired.header, "readable": digest({"rows": kept.tolist()}, {})}
    return left


def keep_targets(paired: PairedSlide, rows: np.ndarray) -> PairedSlide:
    """The pairs with only the targets ``rows``, and the regions that have any."""
    new = np.full(len(paired.hr_index) + 1, -1, np.int64)  # the last one stands for "no tile"
    new[rows] = np.arange(len(rows))
    children = new[paired.children]
    stay = (children >= 0).any(axis=1)
    region = np.cumsum(stay, dtype=np.int64) - 1
    return PairedSlide(
        paired.slide_id,
        paired.header,
        paired.path,
        paired.slide_path,
        paired.hr_boxes[rows],
        paired.lr_boxes[stay],
        children[stay],
        paired.lr_index[stay],
        paired.hr_index[rows],
        region[paired.region[rows]],
        paired.offset[rows],
        paired.cell[rows],
        None if paired.tissue is None else paired.tissue[rows],
    )


def tile_level(slide: Slide, header: dict[str, Any]) -> int:
    """The level that a tile header's settings read from."""
    s = header["settings"]
    return choose_level(
        [l.downsample for l in slide.levels],
        slide.mpp,
        s["mpp"],
        allow_upsample=s["allow_upsample"],
        where=str(slide.path),
    )
