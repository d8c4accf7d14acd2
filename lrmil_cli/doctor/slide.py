"""Checks of a slide: does it open, at what scale, is it damaged, how much tissue, how many tiles, how long."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from lrmil_cli.doctor.check import FAIL, PASS, WARN, Check, failed
from lrmil_cli.errors import InputError, LrmilError, NoScaleError
from lrmil_cli.slides.given import Given, read_mask
from lrmil_cli.slides.grid import make_grid
from lrmil_cli.slides.slide import Slide, open_slide
from lrmil_cli.slides.tiles import TileSettings, TissueMap, boxes_of, find_tissue, is_much, select_tiles, slide_level
from lrmil_cli.units import duration

#: Side in px of the blocks that are read to find damage.
BLOCK_PX = 256
#: A level may be this much finer than the tiles before shrinking them becomes the slow part.
MAX_SHRINK = 4.5


def check_slide(
    path: str | Path,
    settings: TileSettings,
    *,
    slide_id: str | None = None,
    slide_mpp: float | None = None,
    manifest_mpp: float | None = None,
    mask: Path | None = None,
    min_tissue: float | None = None,
    reader: str | None = None,
    image: int | None = None,
    blocks: int = 40,
    rate: float | None = None,
) -> list[Check]:
    """All checks of a slide.

    Args:
        settings: how it would be tiled; mask, min_tissue: what a manifest says of it.
        blocks: to read at each level; rate: tiles a second that are encoded, if known.
    """
    try:
        slide = open_slide(
            path, slide_id=slide_id, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp, reader=reader, image=image
        )
    except LrmilError as e:
        return _unopened(path, e, reader, image)
    with slide:
        checks = [_opened(slide), check_scale(slide), check_pyramid(slide, settings)]
        try:
            slide.given = Given() if mask is None else read_mask(mask, slide.width, slide.height)
        except InputError as e:
            return [*checks, failed("tissue", e, str(path))]
        settings = settings if min_tissue is None else replace(settings, min_tissue=min_tissue)
        try:
            tissue = find_tissue(slide, settings.tissue)  # reads all of one level
        except InputError as e:
            return [*checks, failed("damage", e, str(path))]
        checks.append(check_damage(slide, tissue, blocks))
        return checks if checks[2].status == FAIL else checks + check_tiles(slide, tissue, settings, rate)


def _opened(slide: Slide) -> Check:
    """Who reads it and why, and what the user should know of that."""
    source = slide.source
    count = sum("image" in image for image in source.images)
    which = f"image {source.image} of {count}, " if count > 1 and source.image is not None else ""
    found = f"{slide.reader} ({source.choice.why}), vendor {slide.vendor}, {which}{slide.width} x {slide.height} px"
    if slide.notes:
        return Check(
            "opens", WARN, f"{found}; {'; '.join(slide.notes)}", "see `lrmil info`; --image and --reader choose"
        )
    return Check("opens", PASS, found)


def _unopened(path: str | Path, error: LrmilError, reader: str | None, image: int | None) -> list[Check]:
    """Whether only the scale is missing, or the file cannot be used at all."""
    if isinstance(error, NoScaleError):
        try:
            with open_slide(path, slide_mpp=1.0, reader=reader, image=image) as slide:
                return [_opened(slide), failed("mpp", error, str(path))]
        except LrmilError:
            pass
    return [failed("opens", error, str(path))]


def check_scale(slide: Slide) -> Check:
    """The mpp, where it comes from, and whether the objective says the same (10 um/px divided by its power)."""
    found = f"{slide.mpp:.4g} um/px ({slide.mpp_source})"
    power = slide.objective
    if power and not 0.6 < slide.mpp * power / 10 < 1.7:
        found += f", but the objective is {power:g}x, usually {10 / power:g} um/px"
        return Check("mpp", WARN, found, "measure a scale bar, and give the right value with --slide-mpp")
    return Check("mpp", PASS, found + (f", objective {power:g}x" if power else ""))


def check_pyramid(slide: Slide, settings: TileSettings) -> Check:
    """The levels, and which of them the tiles are read from."""
    levels = ", ".join(f"{slide.mpp * l.downsample:.3g}" for l in slide.levels)
    found = f"{len(slide.levels)} level(s) at {levels} um/px"
    try:
        level = slide_level(slide, settings)
    except InputError as e:
        return failed("pyramid", e, str(slide.path))
    shrink = settings.mpp / (slide.mpp * slide.levels[level].downsample)
    tiles = f"tiles of {settings.mpp:g} um/px"
    if shrink > MAX_SHRINK:
        found += f"; {tiles} are shrunk {shrink:.1f} times from level {level}, which is slow"
        return Check("pyramid", WARN, found, "export the slide again with a level every factor of 4")
    if slide.damaged:
        which = ", ".join(map(str, sorted(slide.damaged)))
        found += f"; level {which} is damaged, {tiles} come from level {level}"
        return Check("pyramid", WARN, found, "copy the slide again, or export it again")
    return Check("pyramid", PASS, f"{found}; {tiles} come from level {level}")


def check_damage(slide: Slide, tissue: TissueMap, blocks: int) -> Check:
    """Read up to ``blocks`` blocks of every level, corners first, then tissue, then anywhere; the same in every run."""
    looked, bad = 0, []
    for n, level in enumerate(slide.levels):
        corners = {(x, y) for x in (0, max(0, level.width - BLOCK_PX)) for y in (0, max(0, level.height - BLOCK_PX))}
        for x, y in [*sorted(corners), *_places(slide, n, tissue, max(0, blocks - len(corners)))]:
            looked += 1
            try:
                slide.read(n, x, y, min(BLOCK_PX, level.width - x), min(BLOCK_PX, level.height - y))
            except InputError:
                bad.append((n, x, y))
    if bad:
        n, x, y = bad[0]
        found = f"{len(bad)} of {looked} blocks looked at cannot be decoded, the first at level {n}, x={x}, y={y} there"
        return Check("damage", FAIL, found, "copy the slide again, or export it again from the scanner's software")
    found = f"none in {looked} blocks of {BLOCK_PX} px on {len(slide.levels)} level(s); the rest was not looked at"
    return Check("damage", PASS, found)


def _places(slide: Slide, level: int, tissue: TissueMap, count: int) -> list[tuple[int, int]]:
    """Corners of ``count`` blocks of a level: two thirds on tissue, spread over the slide, the rest anywhere."""
    of, rng = slide.levels[level], np.random.default_rng(level)
    points = rng.random((count, 2)) * (of.width, of.height)
    if tissue.mask.any():
        row, col = np.nonzero(tissue.mask)
        on = 2 * count // 3
        pick = np.linspace(0, len(row) - 1, on).astype(int)  # raster order: from top to bottom
        points[:on, 0] = col[pick] * tissue.scale_x / of.downsample_x
        points[:on, 1] = row[pick] * tissue.scale_y / of.downsample_y
    last = (max(0, of.width - BLOCK_PX), max(0, of.height - BLOCK_PX))
    corners = np.unique(np.clip(points - BLOCK_PX / 2, 0, last).astype(int), axis=0)
    return [(x, y) for x, y in corners.tolist()]


def check_tiles(slide: Slide, tissue: TissueMap, settings: TileSettings, rate: float | None) -> list[Check]:
    """Share of tissue, tiles, and how long reading (timed here) and encoding them takes."""
    grid = make_grid(slide.width, slide.height, slide.mpp, settings.mpp, settings.tile_px)
    boxes, level = boxes_of(select_tiles(tissue, grid, settings.min_tissue)), slide_level(slide, settings)
    share = tissue.mask.mean()
    found = f"{share:.1%} of the slide"
    look = "look at the picture that `lrmil tile --thumbnail` makes"
    if not len(boxes):
        found += f"; no tile has {settings.min_tissue:.0%} of it"
        return [Check("tissue", FAIL, found, f"{look} of another slide, or lower --min-tissue")]
    unlikely = "little" if share < 0.01 else "much" if is_much(slide, tissue.mask) else ""
    out = [Check("tissue", WARN, f"{found}, which is {unlikely}", look) if unlikely else Check("tissue", PASS, found)]
    tiles = f"{len(boxes)} of {settings.tile_px} px at {settings.mpp:g} um/px"
    try:
        reading = reading_seconds(slide, boxes, level, settings.tile_px) * len(boxes)
    except InputError as e:
        return [*out, failed("tiles", e, str(slide.path))]
    if rate is None:
        return [*out, Check("tiles", PASS, f"{tiles}; reading takes about {duration(reading)}")]
    return [*out, Check("tiles", PASS, f"{tiles}; about {duration(reading + len(boxes) / rate)} on this machine")]


def reading_seconds(slide: Slide, boxes: np.ndarray, level: int, tile_px: int, count: int = 12) -> float:
    """Seconds to read one of the tiles ``boxes`` int64 [N, 4] (level-0 px), by ``count`` of them spread over the slide.

    Raises:
        InputError: the slide is damaged at one of them.
    """
    from lrmil_cli.slides.reader import read_rows

    some = boxes[np.unique(np.linspace(0, len(boxes) - 1, count).astype(int))]
    started = time.perf_counter()
    read_rows(slide, some, level, tile_px)
    return (time.perf_counter() - started) / len(some)
