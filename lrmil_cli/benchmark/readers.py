"""Readers against each other: the same tiles of one slide, by blocks, through tiffslide, through OpenSlide."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError, MachineError
from lrmil_cli.slides.choice import Choice, Facts
from lrmil_cli.slides.handles import Source
from lrmil_cli.slides.mpp import Scale
from lrmil_cli.slides.reader import iter_batches
from lrmil_cli.slides.slide import Slide, open_slide
from lrmil_cli.units import Mpp

#: Tiles of a batch, as on a CPU.
BATCH = 16
#: How far off the blocks of the file a shifted grid lies, in px of the level.
SHIFT_PX = 100


def middle_part(boxes: np.ndarray, most: int) -> np.ndarray:
    """At most that many boxes that follow each other, from the middle of the slide."""
    first = max(0, (len(boxes) - most) // 2)
    return boxes[first : first + most]


def compare_readers(
    path: str | Path,
    mpp: float,
    boxes: np.ndarray,
    level: int,
    tile_px: int,
    *,
    workers: int,
    rounds: int,
    done: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], list[str]]:
    """Tiles a second of each reader, the median of ``rounds`` in which they take turns, after each has read all once.

    Args:
        mpp: of the slide; boxes: int64 [N, 4] in level-0 px; level: read from; done: called after each run.

    Returns:
        name -> tiles a second, the first one being ours with one thread; what could not be measured, and why.

    Raises:
        InputError: the slide is damaged at a tile.
    """
    notes: list[str] = []
    with ExitStack() as stack:
        slides: dict[str, Slide] = {}
        for name in ("lrmil", "tiffslide", "openslide"):
            if name == "tiffslide" and slides and next(iter(slides.values())).reader == "openslide":
                continue
            for threads in sorted({1, workers}):
                try:
                    slide = stack.enter_context(open_by(name, path, mpp, threads))
                except (InputError, MachineError) as e:
                    notes.append(f"{name}: {e}")
                    break
                if name == "lrmil" and slide.reader == "openslide" and threads > 1:
                    break
                own = (slide.levels[level].width, slide.levels[level].height) if level < len(slide.levels) else None
                if slides and own != next((s.levels[level].width, s.levels[level].height) for s in slides.values()):
                    notes.append(f"{name}: sees other levels than the others")
                    break
                slides[f"{name}, {threads} thread{'s' * (threads > 1)}"] = slide
                if name == "tiffslide":
                    break  # its threads wait for each other
        spent: dict[str, list[float]] = {name: [] for name in slides}
        for turn in range(rounds + 1):
            for name, slide in slides.items():
                began = time.perf_counter()
                for _ in iter_batches(slide, boxes, level, tile_px, BATCH):
                    pass
                if turn:
                    spent[name].append(time.perf_counter() - began)
                done()
    return {name: len(boxes) / statistics.median(seconds) for name, seconds in spent.items()}, notes


class _Regions:
    """A slide as tiffslide opens it, every region through it."""

    def __init__(self, path: Path):
        import tiffslide

        self.library = tiffslide.TiffSlide(str(path))
        self.dimensions, self.level_dimensions = self.library.dimensions, self.library.level_dimensions
        self.level_downsamples, self.close = self.library.level_downsamples, self.library.close

    def read_region(self, where: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        pixels: np.ndarray = self.library.read_region(where, level, size, as_array=True)
        return pixels


def open_by(name: str, path: str | Path, mpp: float, workers: int) -> Slide:
    """The slide, to be read by ``lrmil``, by ``tiffslide`` or by ``openslide``.

    Raises:
        InputError: it cannot be opened so; MachineError: OpenSlide is not there.
    """
    if name != "tiffslide":
        reader = "openslide" if name == "openslide" else "auto"
        return open_slide(path, slide_mpp=mpp, workers=workers, reader=reader)
    try:
        handle: Any = _Regions(Path(path))
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as e:  # tiffslide lets every kind of error through
        raise InputError(f"{path}: tiffslide cannot open it ({type(e).__name__})") from e
    source = Source(Choice("tiffslide", "to be compared"), handle, Facts("TIFF"), (None, None, ""))
    return Slide(Path(path), Path(path).stem, source, Scale(Mpp(mpp), "option"), workers)


def shifted(boxes: np.ndarray, downsample: float) -> np.ndarray:
    """The boxes off the blocks of the file."""
    return boxes + np.array([round(SHIFT_PX * downsample)] * 2 + [0, 0])
