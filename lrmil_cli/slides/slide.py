"""A slide behind one small interface: size, scale, pyramid, and the pixels of a rectangle of one level.

Rectangles are given in the pixels of the level; what lies outside the slide comes back white.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.slide_names import slide_id_of
from lrmil_cli.slide_places import fingerprint
from lrmil_cli.slides.blocks import Blocks, new_block, open_blocks, paste_block
from lrmil_cli.slides.given import Given
from lrmil_cli.slides.handles import Source, check_file, open_source
from lrmil_cli.slides.mpp import Scale, parse_number, resolve_mpp
from lrmil_cli.slides.samples import WHITE, to_rgb8
from lrmil_cli.slides.scales import Level, settle_levels, snap_downsample
from lrmil_cli.slides.tiff import TiffHandle
from lrmil_cli.units import Level0Px

#: What cannot be decoded is found to this many pixels where the file's own blocks are not known.
PART_PX = 64


class Slide:
    """An open slide. Use :func:`open_slide` to make one; it is a context manager.

    Attributes:
        source: what opened it, and what its metadata says.
        width, height: in level-0 px; levels: finest first.
        mpp: um per level-0 px; mpp_source: ``metadata``, ``option`` or ``manifest``.
        reader: ``tiffslide`` or ``openslide``, what reads it; workers: threads that read its pixels.
        on_bad_tile: ``fail``, or ``skip``: what cannot be decoded is left out of tiles, and is glass in overviews.
        notes: what the user should know of how it is read.
        damaged: levels below the first that did not decode when the slide was opened.
        lost: whether anything damaged passed for glass.
        given: what the user says of its tissue.
    """

    def __init__(
        self,
        path: Path,
        slide_id: str,
        source: Source,
        scale: Scale,
        workers: int = 1,
        on_bad_tile: str = "fail",
    ):
        self.path = path
        self.slide_id = slide_id
        self.source = source
        self.reader = source.choice.reader
        self.workers = workers
        self.mpp = scale.mpp
        self.mpp_source = scale.source
        self.on_bad_tile = on_bad_tile
        self.notes = list(source.notes)
        self.damaged: dict[int, InputError] = {}
        self.lost = False
        self.given = Given()
        self._handle = source.handle
        self._tiff = source.handle if isinstance(source.handle, TiffHandle) else None
        self.width, self.height = (Level0Px(int(v)) for v in self._handle.dimensions)
        sizes = [(int(w), int(h)) for w, h in self._handle.level_dimensions]
        self._blocks: dict[int, Blocks] = {}
        self._pool: ThreadPoolExecutor | None = None
        # Until all are settled, levels are as they stand in the file.
        self.levels = tuple(Level.of_size(size, sizes[0], i) for i, size in enumerate(sizes))
        settled, dropped = settle_levels(sizes, source.spacings, self.read)
        self._blocks.clear()
        self.levels = tuple(settled)
        by_size = [snap_downsample(full, own) for size in sizes for full, own in zip(sizes[0], size)]
        if dropped or [k for level in settled for k in (level.downsample_x, level.downsample_y)] != by_size:
            source.read_as["levels"] = [
                [level.index, round(level.downsample_x, 6), round(level.downsample_y, 6)] for level in settled
            ]
        if dropped:
            which = ", ".join("{} x {} px".format(*sizes[i]) for i in dropped)
            self.notes.append(f"what is stored as a level ({which}) does not show the slide, and is not read")

    def note(self, text: str) -> None:
        """Add to what the user should know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._handle.close()

    def each(self, work: Callable[[Any], Any], items: Sequence[Any], *, threads: bool = True) -> None:
        """Call ``work`` on every item, in the reader threads where there are several.

        An error of one is raised when all have ended.
        """
        if not threads or self.workers == 1 or len(items) < 2:
            for item in items:
                work(item)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, "reader")
        errors = [f.exception() for f in [self._pool.submit(work, item) for item in items]]
        for error in errors:
            if error is not None:
                raise error

    @property
    def vendor(self) -> str:
        """Scanner vendor as the reader names it, ``"unknown"`` if it does not."""
        return self.source.facts.vendor

    @property
    def objective(self) -> float | None:
        """Power of the objective as the metadata says it, or None."""
        return parse_number(self.source.objective)

    @property
    def bounds(self) -> list[int] | None:
        """OpenSlide's ``[x, y, width, height]`` of the scanned area, in level-0 px, or None."""
        return self.source.bounds

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the size and of samples of the file's bytes: another file or a changed one differs."""
        return fingerprint(self.path)

    def describe(self) -> dict[str, Any]:
        """The ``slide`` entry of file headers."""
        about = {
            "id": self.slide_id,
            "path": str(self.path.absolute()),
            "width": self.width,
            "height": self.height,
            "mpp": self.mpp,
            "mpp_source": self.mpp_source,
            "vendor": self.vendor,
            "fingerprint": self.fingerprint,
        }
        about |= {"bounds": self.bounds} if self.bounds else {}
        about |= {"painted": True} if self.source.facts.painted else {}
        return about | ({"read_as": self.read_as} if self.read_as else {})

    @property
    def made_of(self) -> dict[str, Any]:
        """What of the slide decides tiles and predictions, for digests."""
        own = {"slide": self.fingerprint, "mpp": repr(self.mpp)}
        return own | ({"read_as": self.read_as} if self.read_as else {}) | self.given.made_of

    @property
    def read_as(self) -> dict[str, Any]:
        """What of the way it is read is not the ordinary one for its format (slides/README 1.7); for digests too."""
        return self.source.read_as

    def read(
        self, level: int, x: int, y: int, width: int, height: int, *, threads: bool = False, bad_is_glass: bool = False
    ) -> np.ndarray:
        """Pixels of a rectangle of one level.

        Args:
            level: index into ``levels``.
            x, y, width, height: rectangle in the pixels of that level; may stick out of the slide.
            threads: use the reader threads, for a large rectangle; bad_is_glass: white where it cannot be decoded.

        Returns:
            uint8 [height, width, 3], white outside the slide.

        Raises:
            InputError: the file is damaged there.
        """
        size = self.levels[level]
        x0, y0 = min(max(x, 0), size.width), min(max(y, 0), size.height)
        x1, y1 = min(max(x + width, 0), size.width), min(max(y + height, 0), size.height)
        whole = (x0, y0, x1, y1) == (x, y, x + width, y + height)
        if whole and width and height:
            return self._read_inside(level, x, y, width, height, threads, bad_is_glass)
        out = np.full((height, width, 3), WHITE, np.uint8)
        if x1 > x0 and y1 > y0:
            inside = self._read_inside(level, x0, y0, x1 - x0, y1 - y0, threads, bad_is_glass)
            out[y0 - y : y1 - y, x0 - x : x1 - x] = inside
        return out

    def _read_inside(
        self, level: int, x: int, y: int, width: int, height: int, threads: bool, bad_is_glass: bool
    ) -> np.ndarray:
        blocks = self.blocks(level)
        if blocks is None:
            read = self._read_parts if bad_is_glass else self._read_region
            return read(level, x, y, width, height)
        out = new_block(height, width)

        def paste(row: int) -> None:
            memory = new_block(blocks.height, blocks.width)
            for col in range(x // blocks.width, -(-(x + width) // blocks.width)):
                index = row * blocks.cols + col
                try:
                    pixels = self.block(level, index, memory)
                except InputError:
                    if not bad_is_glass:
                        raise
                    self.lost = True
                    memory[:] = WHITE
                    pixels = memory
                paste_block(out, x, y, pixels, *blocks.rect(index)[:2])

        self.each(paste, range(y // blocks.height, -(-(y + height) // blocks.height)), threads=threads)
        return out

    def _read_parts(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A rectangle with glass where it is damaged, to within :data:`PART_PX`: halved until its parts can be
        read."""
        try:
            return self._read_region(level, x, y, width, height)
        except InputError:
            if max(width, height) <= PART_PX:
                self.lost = True
                return np.full((height, width, 3), WHITE, np.uint8)
        if width >= height:
            half = width // 2
            left = self._read_parts(level, x, y, half, height)
            return np.concatenate([left, self._read_parts(level, x + half, y, width - half, height)], axis=1)
        half = height // 2
        top = self._read_parts(level, x, y, width, half)
        return np.concatenate([top, self._read_parts(level, x, y + half, width, height - half)], axis=0)

    def blocks(self, level: int) -> Blocks | None:
        """The blocks of a level; None where pixels must come from ``read_region`` of the library that opened the
        slide.

        Raises:
            InputError: the header of the level is damaged.
        """
        if self._tiff is None:
            return None
        if level not in self._blocks:
            above = self.blocks(level - 1) if level and self.vendor == "aperio" else None
            try:
                self._blocks[level] = open_blocks(self._tiff.image.levels[self.levels[level].index], above)
            except Exception as e:  # tags may hold anything
                raise self._damaged(level, 0, 0, e) from e
        return self._blocks[level]

    def block(self, level: int, index: int, out: np.ndarray) -> np.ndarray:
        """Pixels of one block, where :meth:`blocks` has some.

        A block that the file leaves out is white, as viewers show it; on levels below the first of an Aperio slide
        OpenSlide fills it from the level above, and so does this.

        Args:
            out: uint8 [height, width, 3] to use where that is possible.

        Returns:
            uint8 [h, w, 3], ``out`` or another array; cut at the edge of the slide.

        Raises:
            InputError: the block is damaged.
        """
        blocks = self.blocks(level)
        assert blocks is not None and self._tiff is not None, "only levels with blocks are read by them"
        x, y, width, height = blocks.rect(index)
        if index in blocks.missing:
            return self._missing_block(level, x, y, width, height, out)
        try:
            pixels = self._tiff.to_rgb(self.levels[level].index, blocks.decode(index, out))
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as e:  # every codec has errors of its own
            raise self._damaged(level, x, y, e) from e
        rest_x, rest_y = self.levels[level].width - x, self.levels[level].height - y
        return pixels if pixels.shape[0] <= rest_y and pixels.shape[1] <= rest_x else pixels[:rest_y, :rest_x]

    def _missing_block(self, level: int, x: int, y: int, width: int, height: int, out: np.ndarray) -> np.ndarray:
        if level == 0 or self.vendor != "aperio":
            out[:] = WHITE
            return out
        of, finer = self.levels[level], self.levels[level - 1]
        left, right = (round(v * of.downsample_x / finer.downsample_x) for v in (x, x + width))
        top, bottom = (round(v * of.downsample_y / finer.downsample_y) for v in (y, y + height))
        above = self.read(level - 1, left, top, right - left, bottom - top)
        return cv2.resize(above, (width, height), dst=out, interpolation=cv2.INTER_AREA)

    def _damaged(self, level: int, x: int, y: int, error: BaseException) -> InputError:
        """What happens where pixels of a level cannot be decoded; x, y in px of the level."""
        of = self.levels[level]
        at = f"x={int(np.ceil(x * of.downsample_x))}, y={int(np.ceil(y * of.downsample_y))}"
        return InputError(
            f"{self.path}: damaged at level {level}, {at} ({type(error).__name__}); copy or export the slide again"
        )

    def _read_region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of a rectangle inside a level, by the library that opened the slide."""
        of = self.levels[level]
        # It takes level-0 coordinates and divides by its own downsample; rounding up lands in the pixel meant. Where
        # that is not the level's factor (padded levels), a rest would move the picture by more than a pixel.
        own = self._handle.level_downsamples[of.index]
        padded = abs(own - of.downsample) > 0.005 * of.downsample
        left, top = (_before_whole(v, own) if padded else 0 for v in (x, y))
        where = (math.ceil(round((x - left) * own, 6)), math.ceil(round((y - top) * own, 6)))
        try:
            pixels = self._handle.read_region(where, of.index, (width + left, height + top))
            return to_rgb8(pixels[top:, left:])
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as e:  # every codec has errors of its own
            raise self._damaged(level, x, y, e) from e


def _before_whole(at: int, factor: float) -> int:
    """How many px before ``at``, of 32, a multiple of ``factor`` is a whole number, or nearest below one."""
    products = [round((at - k) * factor, 6) for k in range(min(32, at + 1))]
    return min(range(len(products)), key=lambda k: math.ceil(products[k]) - products[k])


def default_workers() -> int:
    """Reader threads where the user says nothing: one a core, at most eight; more than that waits for the disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def open_slide(
    path: str | Path,
    *,
    slide_id: str | None = None,
    slide_mpp: float | None = None,
    manifest_mpp: float | None = None,
    workers: int | None = None,
    reader: str | None = None,
    image: int | None = None,
    on_bad_tile: str = "fail",
) -> Slide:
    """Open a slide and check that it can be used.

    Args:
        slide_id: defaults to the file's name without the suffix of a slide format.
        slide_mpp: level-0 um/px that wins over the metadata (``--slide-mpp``).
        manifest_mpp: the same from the manifest.
        workers: threads that read pixels; default by :func:`default_workers`.
        reader: ``auto`` (the default), ``tiffslide`` or ``openslide``, see slides/README 1.1.
        image: number of the image to read, of a TIFF with several; default: the largest.
        on_bad_tile: ``fail`` or ``skip``, see :class:`Slide`.

    Raises:
        InputError: no such file, not a slide, truncated, damaged, or without a usable mpp.
        MachineError: the format needs OpenSlide, which is not installed.
    """
    if on_bad_tile not in ("fail", "skip"):
        raise UsageError(f"--on-bad-tile {on_bad_tile}: choose fail or skip")
    path = Path(path)
    check_file(path)
    source = open_source(path, reader or "auto", image)
    try:
        mpp_x, mpp_y, _ = source.mpp
        scale = resolve_mpp(
            mpp_x, mpp_y, where=str(path), option=slide_mpp, manifest=manifest_mpp, objective=source.objective
        )
        slide = Slide(path, slide_id or slide_id_of(path), source, scale, workers or default_workers(), on_bad_tile)
        _check_levels(slide)
    except BaseException:
        source.handle.close()
        raise
    return slide


def reopening(about: dict[str, Any]) -> dict[str, Any]:
    """Arguments by which :func:`open_slide` reads a slide as a table of it says, from the ``slide`` of its header."""
    own = about.get("read_as", {})
    return {key: own[key] for key in ("reader", "image") if key in own}


def _check_levels(slide: Slide) -> None:
    """The first level must decode at both ends; of the others it is only kept in mind."""
    for i, level in enumerate(slide.levels):
        w, h = min(8, level.width), min(8, level.height)
        try:
            slide.read(i, 0, 0, w, h)
            slide.read(i, level.width - w, level.height - h, w, h)
        except InputError as e:
            if i == 0 and slide.on_bad_tile == "fail":
                raise
            slide.damaged[i] = e
