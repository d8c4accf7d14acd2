"""Screening images: for each HR tile the window of its LR tile that covers it, or of an overview of the slide.

What they are and why they can stand for the paper's: selective/README 2.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.atomic import atomic_path
from lrmil_cli.files.header import digest, last_digest
from lrmil_cli.matching.paired_slide import PairedSlide, tile_level
from lrmil_cli.progress import phase
from lrmil_cli.slides.reader import iter_batches, overview
from lrmil_cli.slides.samples import WHITE
from lrmil_cli.slides.slide import Slide

SOURCES = ("lr-tiles", "thumbnail")
#: The stride of the screening network is 32: below this side nothing is left of a window before its last layers.
MIN_PX = 16
#: LR tiles read at a time.
BATCH = 32
#: What reading a damaged file of them raises.
_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)


def check_windows(tile_px: int, ratio: int, screen_px: int, source: str) -> None:
    """Windows of ``screen_px`` can be cut from LR tiles of ``tile_px`` that hold ``ratio`` x ``ratio`` HR tiles.

    Raises:
        UsageError: they cannot.
    """
    side = tile_px // ratio
    if source not in SOURCES:
        raise UsageError(f"--screen-source {source}: choose one of {', '.join(SOURCES)}")
    if screen_px < MIN_PX:
        raise UsageError(f"--screen-px {screen_px}: the screening network needs windows of at least {MIN_PX} px")
    if source == "lr-tiles":
        if tile_px % ratio:
            raise UsageError(
                f"LR tiles of {tile_px} px cannot be cut into {ratio} x {ratio} windows; "
                f"use --screen-source thumbnail, or tile with --tile-px {side * ratio or ratio}"
            )
        if screen_px > side:
            raise UsageError(
                f"--screen-px {screen_px}: an HR tile covers {side} px of its LR tile, which is not enlarged; "
                f"use {side} or less" + ("" if side >= MIN_PX else " (--screen-source thumbnail can do more)")
            )


def cut_windows(tiles: np.ndarray, ratio: int, screen_px: int) -> np.ndarray:
    """Windows of LR tiles, shrunk by area: uint8 [B, P, P, 3] -> uint8 [B, ratio ** 2, s, s, 3], cells row by row."""
    b, side, size = len(tiles), tiles.shape[1] // ratio, (screen_px, screen_px)
    cells = tiles.reshape(b, ratio, side, ratio, side, 3).transpose(0, 1, 3, 2, 4, 5)
    cells = np.ascontiguousarray(cells.reshape(b * ratio**2, side, side, 3))
    if side != screen_px:
        cells = np.stack([cv2.resize(c, size, interpolation=cv2.INTER_AREA) for c in cells])
    return cells.reshape(b, ratio**2, screen_px, screen_px, 3)


def windows_of_tiles(
    slide: Slide,
    lr_boxes: np.ndarray,
    level: int,
    tile_px: int,
    parent: np.ndarray,
    cell: np.ndarray,
    ratio: int,
    screen_px: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Screening images uint8 [N, s, s, 3] of HR tiles from the LR tiles they lie in, and which there are, bool [N].

    Args:
        lr_boxes: int64 [R, 4], level-0 px.
        parent: int64 [N], row of ``lr_boxes``; cell: int64 [N], row-major in the LR tile.

    Raises:
        InputError: the slide is damaged at an LR tile, and such tiles are not to be skipped.
    """
    out = np.zeros((len(parent), screen_px, screen_px, 3), np.uint8)
    bad: list[int] = []
    order = np.argsort(parent, kind="stable")
    start = np.searchsorted(parent[order], np.arange(len(lr_boxes) + 1))
    for rows, pixels in iter_batches(slide, lr_boxes, level, tile_px, BATCH, bad):
        windows = cut_windows(pixels, ratio, screen_px)
        for n, row in enumerate(rows):
            children = order[start[row] : start[row + 1]]
            out[children] = windows[n, cell[children]]
    return out, ~np.isin(parent, bad)


def windows_of_overview(slide: Slide, hr_boxes: np.ndarray, hr_step: float, screen_px: int) -> np.ndarray:
    """Screening images uint8 [N, s, s, 3] of HR tiles from one overview of the slide.

    Args:
        hr_boxes: int64 [N, 4], level-0 px; hr_step: side of an HR tile in level-0 px, a real number.

    Raises:
        InputError: the slide is damaged.
    """
    image, scale_x, scale_y = overview(slide, slide.mpp * hr_step / screen_px)
    # One HR tile is then exactly s px wide, so that windows lie side by side as the tiles do.
    fx, fy = scale_x * screen_px / hr_step, scale_y * screen_px / hr_step
    image = cv2.resize(image, None, fx=fx, fy=fy, interpolation=cv2.INTER_AREA)
    at = np.rint(hr_boxes[:, :2] * screen_px / hr_step).astype(np.int64)
    width, height = (at.max(0) + screen_px).tolist()
    below, right = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(WHITE,) * 3)
    return np.stack([image[y : y + screen_px, x : x + screen_px] for x, y in at])


def hr_step(header: dict[str, Any]) -> float:
    """Side in level-0 px of the tiles of a header, a real number."""
    s = header["settings"]
    return s.get("side_level0_px") or s["tile_px"] * s["mpp"] / header["slide"]["mpp"]


def make_images(
    paired: PairedSlide,
    screen_px: int,
    source: str,
    workers: int | None,
    on_bad_tile: str = "fail",
) -> tuple[np.ndarray, np.ndarray]:
    """Screening images of the HR tiles of a pairs table, in its order.

    Returns:
        uint8 [N, s, s, 3]; bool [N], which of them there are.

    Raises:
        InputError: the slide cannot be read, or is not the one that was tiled.
    """
    lr, boxes = paired.header["lr"], paired.lr_boxes
    with paired.open_slide("lr", workers, on_bad_tile) as slide:
        if source == "thumbnail":  # what is damaged is glass there
            images = windows_of_overview(slide, paired.hr_boxes, hr_step(paired.header["hr"]), screen_px)
            return images, np.ones(len(images), bool)
        level, tile_px, cell = tile_level(slide, lr), lr["settings"]["tile_px"], cells_of(paired)
        return windows_of_tiles(slide, boxes, level, tile_px, paired.region, cell, paired.ratio, screen_px)


def cells_of(paired: PairedSlide) -> np.ndarray:
    """int64 [N], the cell of each HR tile of a pairs table: the one that holds its centre."""
    lr, hr = paired.lr_boxes[paired.region], paired.hr_boxes
    place = (hr[:, :2] + hr[:, 2:] / 2 - lr[:, :2]) / lr[:, 2:] * paired.ratio
    col, row = np.clip(np.floor(place).astype(np.int64), 0, paired.ratio - 1).T
    return row * paired.ratio + col


@dataclass(frozen=True)
class StoredImages:
    """Screening images of a slide that are in the cache: the file, and which of its tiles there are, bool [N]."""

    file: Path
    there: np.ndarray

    def load(self) -> np.ndarray:
        """uint8 [N, s, s, 3].

        Raises:
            InputError: the file is not there any more, or damaged.
        """
        try:
            with np.load(self.file, allow_pickle=False) as arrays:
                images: np.ndarray = arrays["images"]
        except _DAMAGED as e:
            raise InputError(f"{self.file}: cannot be read any more; run the command again") from e
        return images


def cached_images(
    slides: list[PairedSlide],
    screen_px: int,
    source: str,
    cache: Path,
    say: Callable[[str], None],
    workers: int | None = None,
    on_bad_tile: str = "fail",
) -> list[StoredImages]:
    """Screening images of a cohort in ``cache``; what is missing there is cut from the slides and written first.

    Raises:
        InputError: a slide cannot be read. MachineError: the cache cannot be written.
    """
    out = []
    with phase("screening images of", len(slides), "slide") as told:
        for n, paired in enumerate(slides, 1):
            told.item = paired.slide_id
            key = digest({"px": screen_px, "source": source}, {"pairs": last_digest(paired.header)})
            file = cache / f"{paired.slide_id}.{key[:16]}.screen.npz"
            found = _stored(file, (len(paired.hr_boxes), screen_px, screen_px, 3))
            there = found is not None and (on_bad_tile != "fail" or bool(found[1].all()))
            if found is None or not there:
                found = make_images(paired, screen_px, source, workers, on_bad_tile)
                with atomic_path(file) as tmp, open(tmp, "wb") as fh:
                    np.savez(fh, images=found[0], there=found[1])
                told.note(f"screening images {n}/{len(slides)}: {paired.slide_id}, {len(found[0])} of {screen_px} px")
                if bad := int((~found[1]).sum()):
                    say(f"{paired.slide_id}: {bad} HR tiles lie in LR tiles that cannot be decoded and are left out")
            out.append(StoredImages(file, found[1]))
            told.advance(idle=there)
    return out


def _stored(file: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, there = arrays["images"], arrays["there"]
    except _DAMAGED:
        return None
    fits = images.shape == shape and images.dtype == np.uint8 and there.shape == shape[:1] and there.dtype == bool
    return (images, there) if fits else None
