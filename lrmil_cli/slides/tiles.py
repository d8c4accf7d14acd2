"""From a slide to its tile table: tissue mask, grid, the tiles with enough tissue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from lrmil_cli.errors import InputError, NoTissueError
from lrmil_cli.slides.grid import Grid, choose_level, finer, make_grid, tile_boxes
from lrmil_cli.slides.reader import overview
from lrmil_cli.slides.region import Region, inside_shares
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tissue import TissueSettings, tissue_fractions, tissue_mask
from lrmil_cli.units import LevelPx, Mpp

if TYPE_CHECKING:
    import pandas as pd

#: A mask of more pixels is made at half the resolution.
MAX_MASK_PIXELS = 2_500_000

#: More tissue than this on a slide of at least so many square micrometres (5 x 5 mm) is rather glass taken for tissue.
MAX_TISSUE, LARGE_UM2 = 0.9, 25e6


@dataclass(frozen=True)
class TileSettings:
    """All that decides which tiles a slide gives. ``min_tissue`` is a share of the tile. Defaults: slides/README 4."""

    mpp: Mpp = Mpp(2.0)
    tile_px: LevelPx = LevelPx(256)
    min_tissue: float = 0.1
    allow_upsample: bool = False
    tissue: TissueSettings = field(default_factory=TissueSettings)

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON types, for headers and digests."""
        return asdict(self)


def settings_from_json(values: dict[str, Any], where: str) -> TileSettings:
    """The inverse of :meth:`TileSettings.as_json`.

    Raises:
        InputError: unknown or missing keys (a file of another version).
    """
    try:
        return TileSettings(**{**values, "tissue": TissueSettings(**values["tissue"])})
    except (TypeError, KeyError) as e:
        raise InputError(
            f"{where}: its tile settings do not fit this version of lrmil ({e}); make the file again"
        ) from e


@dataclass(frozen=True)
class TissueMap:
    """Tissue of one slide: ``mask`` bool [H, W], level-0 px per mask px, and the overview it came from."""

    mask: np.ndarray
    scale_x: float
    scale_y: float
    image: np.ndarray


def find_tissue(slide: Slide, settings: TissueSettings) -> TissueMap:
    """Tissue mask of a slide at about ``settings.mask_mpp`` um/px, or the one that is given.

    At twice that where the slide is so large that the mask would cost memory (twice again for the largest); tissue is
    the same to within a percent.

    Raises:
        InputError: the slide is damaged.
    """
    mpp: float = settings.mask_mpp
    while slide.width * slide.height * (slide.mpp / mpp) ** 2 > MAX_MASK_PIXELS:
        mpp *= 2
    image, scale_x, scale_y = overview(slide, mpp)
    if slide.given.mask is not None:
        share = cv2.resize(slide.given.mask.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_AREA)
        return TissueMap(share >= 0.5, scale_x, scale_y, image)
    mask = tissue_mask(image, Mpp(slide.mpp * (scale_x + scale_y) / 2), settings)
    if is_much(slide, mask):
        slide.note(
            f"{mask.mean():.0%} of it is tissue, which is much for a whole slide: glass may pass for tissue; look at "
            "`lrmil tile --thumbnail`, and use --roi or --mask"
        )
    return TissueMap(mask, scale_x, scale_y, image)


def is_much(slide: Slide, mask: np.ndarray) -> bool:
    """Whether more of a slide is tissue than is likely, so that its glass may have been taken for tissue."""
    return bool(mask.mean() > MAX_TISSUE) and slide.width * slide.height * slide.mpp**2 >= LARGE_UM2


def slide_level(slide: Slide, settings: TileSettings) -> int:
    """The pyramid level to read tiles from.

    Raises:
        InputError: the slide is coarser than the mpp asked for, or that level is damaged.
    """
    level = choose_level(
        [l.downsample for l in slide.levels],
        slide.mpp,
        settings.mpp,
        allow_upsample=settings.allow_upsample,
        where=str(slide.path),
    )
    if level in slide.damaged and slide.on_bad_tile == "fail":
        raise slide.damaged[level]
    return level


def select_tiles(
    tissue: TissueMap, grid: Grid, min_tissue: float, *, bare: bool = False, span: int = 1
) -> dict[str, np.ndarray]:
    """Columns of the tile table: tiles whose tissue share is at least ``min_tissue``, in raster order.

    Args:
        bare: also tiles without any tissue.
        span: cells of the grid along a side of a tile, which begins at any of them.

    Returns:
        ``x, y, width, height, col, row`` int64 [N] in level-0 px and grid indices, ``tissue`` float64 [N].
    """
    row, col = (a.ravel() for a in np.indices((grid.rows, grid.cols)))
    side = np.full(col.size, span * grid.step)
    x, y = col * grid.step, row * grid.step
    share = tissue_fractions(tissue.mask, tissue.scale_x, tissue.scale_y, x, y, side, side)
    # A share of zero is glass whatever the threshold says, unless the user says where to look.
    keep = (share >= min_tissue) & (bare | (share > 0))
    col, row = col[keep], row[keep]
    return {**tile_boxes(grid, col, row, span), "col": col, "row": row, "tissue": np.round(share[keep], 4)}


def find_tiles(
    slide: Slide,
    settings: TileSettings,
    region: Region | None = None,
    *,
    tissue: TissueMap | None = None,
    chosen: bool = False,
) -> tuple[dict[str, np.ndarray], int, TissueMap]:
    """Tile one slide, or the part of it that lies in ``region``; with 0 as the least share of tissue, all of that part.

    Args:
        tissue: of the slide by ``settings.tissue``, where it was looked for before.
        chosen: the user chose the part that counts, and it is picked out of the answer later.

    Returns:
        the columns of the tile table, level read from, the tissue.

    Raises:
        NoTissueError: no tile has enough tissue, or none of those lies inside the region.
        InputError: the slide is damaged, or coarser than ``settings.mpp``.
    """
    level = slide_level(slide, settings)
    tissue = find_tissue(slide, settings.tissue) if tissue is None else tissue
    grid = make_grid(slide.width, slide.height, slide.mpp, settings.mpp, settings.tile_px)
    tiles = _tiles_of(slide, settings, tissue, grid, 1, region, chosen)
    if not len(tiles["x"]):
        found = f"{tissue.mask.mean():.1%} of the slide is tissue"
        raise NoTissueError(
            f"{slide.path}: no tile with at least {_least(slide, settings):.0%} tissue ({found}); look at "
            "`lrmil tile --thumbnail`, and lower --min-tissue, or say where the tissue is: --mask, or --roi and "
            "--min-tissue 0"
        )
    return tiles, level, tissue


def shifted_tiles(
    slide: Slide, settings: TileSettings, pieces: int, region: Region | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Grid]:
    """Tiles of the slide's grid and of those shifted by every ``1 / pieces`` of a tile, to the right, down and both.

    Args:
        pieces: a power of two; region: as of :func:`find_tiles`.

    Returns:
        the tiles, whose ``col, row`` say in cells of the finer grid where they begin; the cells with enough tissue; the
        finer grid.

    Raises:
        NoTissueError, InputError: as :func:`find_tiles`.
    """
    tissue = find_tissue(slide, settings.tissue)
    grid = finer(make_grid(slide.width, slide.height, slide.mpp, settings.mpp, settings.tile_px), pieces)
    tiles, cells = (_tiles_of(slide, settings, tissue, grid, span, region) for span in (pieces, 1))
    return tiles, cells, grid


def _least(slide: Slide, settings: TileSettings) -> float:
    return settings.min_tissue if slide.given.min_tissue is None else slide.given.min_tissue


def _tiles_of(
    slide: Slide,
    settings: TileSettings,
    tissue: TissueMap,
    grid: Grid,
    span: int,
    region: Region | None,
    chosen: bool = False,
) -> dict[str, np.ndarray]:
    least = _least(slide, settings)
    bare = least == 0 and (chosen or region is not None)
    tiles = select_tiles(tissue, grid, least, bare=bare, span=span)
    return tiles if region is None or not len(tiles["x"]) else _inside(tiles, slide, region, bare)


def _inside(tiles: dict[str, np.ndarray], slide: Slide, region: Region, bare: bool) -> dict[str, np.ndarray]:
    """The tiles that lie inside a region; at the slide's edge the part of a tile that is on the slide counts.

    Raises:
        NoTissueError: none does.
    """
    x, y = tiles["x"], tiles["y"]
    width, height = np.minimum(tiles["width"], slide.width - x), np.minimum(tiles["height"], slide.height - y)
    share = inside_shares(region.area, x, y, width, height)
    keep = (share >= region.min_inside) & (share > 0)
    if not keep.any():
        raise NoTissueError(
            f"{slide.path}: none of {len(x)} tiles{'' if bare else ' with tissue'} lies at least "
            f"{region.min_inside:.0%} inside the regions of {region.about['file']} (the best {share.max():.0%}); lower "
            "--min-inside, draw larger regions over tissue"
            + ("" if bare else ", or take all tiles of the regions (--min-tissue 0, or min_tissue in a manifest)")
        )
    return {k: v[keep] for k, v in tiles.items()}


def boxes_of(tiles: Mapping[str, Any] | pd.DataFrame) -> np.ndarray:
    """``x, y, width, height`` of tiles, int64 [N, 4] in level-0 px, from columns or a DataFrame."""
    return np.stack([np.asarray(tiles[k], np.int64) for k in ("x", "y", "width", "height")], axis=1)


def tile_slide(
    slide: Slide, settings: TileSettings, region: Region | None = None
) -> tuple[pd.DataFrame, int, TissueMap]:
    """As :func:`find_tiles`, with the tiles as a DataFrame."""
    import pandas as pd

    tiles, level, tissue = find_tiles(slide, settings, region)
    return pd.DataFrame(tiles), level, tissue
