"""Whether our decoding of a TIFF is right: a few blocks, compared with what OpenSlide makes of them.

OpenSlide decodes by other code (libtiff, OpenJPEG, its own rules for each vendor), so that it does not share a mistake
of tifffile and imagecodecs, as tiffslide would, which stands on both.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from lrmil_cli.slides.blocks import Blocks, new_block, open_blocks
from lrmil_cli.slides.openslides import OpenSlideHandle
from lrmil_cli.slides.samples import to_rgb8
from lrmil_cli.slides.tiff import TiffHandle

#: Gray levels that two decoders may differ by on the average.
MAX_DIFFERENCE = 2.0
#: Side in px of what is compared of a block.
_COMPARED_PX = 256
#: Blocks that are tried, where some are damaged.
_TRIES = 8


def difference(own: TiffHandle, other: OpenSlideHandle) -> float | None:
    """Mean difference, in gray levels of the worst colour, between our blocks and an open OpenSlide's pixels.

    One block is compared of each way in which levels are coded, and the worst counts.

    Returns:
        None where nothing can be compared: OpenSlide shows another picture, or samples that it understands otherwise
        (more than 8 bits, more than three of them, a page a colour).
    """
    facts = own.facts
    if facts.bits != 8 or facts.extra or len(own.image.levels[0]) > 1 or other.dimensions != own.dimensions:
        return None
    if sum((page.imagewidth, page.imagelength) == own.dimensions for page in own.pages) > 1:
        return None  # nobody knows which of them OpenSlide shows
    theirs = {tuple(size): level for level, size in enumerate(other.level_dimensions)}
    seen: set[tuple[int, ...]] = set()
    found: list[float] = []
    for level, pages in enumerate(own.image.levels):
        page = pages[0]
        coding = (int(page.compression), int(page.photometric), int(page.planarconfig))
        at = theirs.get((int(page.imagewidth), int(page.imagelength)))
        if coding in seen or at is None:
            continue
        seen.add(coding)
        try:
            blocks = open_blocks(own.image.levels[level], None)
        except Exception:  # a damaged level says nothing of the others
            continue
        if (one := _compare(own, level, blocks, other, at)) is not None:
            found.append(one)
    return max(found, default=None)


def _compare(own: TiffHandle, level: int, blocks: Blocks, other: OpenSlideHandle, at: int) -> float | None:
    width, height = own.level_dimensions[level]
    scale = other.level_downsamples[at]
    for index in islice(_candidates(blocks), _TRIES):
        x, y, w, h = blocks.rect(index)
        if abs(x * scale - round(x * scale)) > 1e-3 or abs(y * scale - round(y * scale)) > 1e-3:
            continue  # OpenSlide would have to interpolate
        w, h = min(w, width - x, _COMPARED_PX), min(h, height - y, _COMPARED_PX)
        try:
            mine = own.to_rgb(level, blocks.decode(index, new_block(blocks.height, blocks.width)))[:h, :w]
            seen = to_rgb8(other.read_region((round(x * scale), round(y * scale)), at, (w, h)))
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception:  # a damaged block says nothing of the others, whoever finds it
            continue
        return float(np.abs(mine.astype(np.int16) - seen).mean(axis=(0, 1)).max())
    return None


def _candidates(blocks: Blocks) -> Iterator[int]:
    """Numbers of blocks, those of the most bytes first: tissue shows a mistake that glass would hide."""
    count = blocks.cols * blocks.rows
    sizes = np.zeros(count, np.int64)
    if blocks.raw is None:
        page, first = blocks.parts[0]
        known = page.databytecounts[first : first + count]
        sizes[: len(known)] = known
    middle = np.abs(np.arange(count) - (blocks.rows // 2 * blocks.cols + blocks.cols // 2))
    for index in np.lexsort((middle, -sizes)).tolist():
        if index not in blocks.missing:
            yield index
