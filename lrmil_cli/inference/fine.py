"""A finer map for people's eyes: the attention of a model on the slide's grid and on shifted ones (inference/README 9).

The answer stays that of the slide's own grid; nothing here imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.header import last_digest, make_header, step
from lrmil_cli.inference.plain import PlainPredictor, encode, plain_part
from lrmil_cli.inference.prediction import Predictor
from lrmil_cli.inference.record import SHORT, attention_rows
from lrmil_cli.slides.grid import Grid
from lrmil_cli.slides.reader import without_bad
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import boxes_of, shifted_tiles, slide_level

#: Cells along a side of a tile that may be asked for.
PIECES = (2, 4)
#: Name of the further attention table: ``<slide>.fine.attention.csv``.
NAME = "fine"


@dataclass(frozen=True)
class FinePlan:
    """What a finer map takes.

    Attributes:
        pieces: cells along a side of a tile; grid: of the cells.
        tiles: columns of all tiles, those of the slide's own grid too; cells: of the cells with enough tissue.
        level: to read from.
    """

    pieces: int
    grid: Grid
    tiles: dict[str, np.ndarray]
    cells: dict[str, np.ndarray]
    level: int

    @property
    def of_grid(self) -> np.ndarray:
        """int64 [N]: which of the ``pieces ** 2`` grids a tile is of; 0 is the slide's own."""
        return self.tiles["row"] % self.pieces * self.pieces + self.tiles["col"] % self.pieces

    @property
    def more(self) -> int:
        """How many tiles are read besides those of the answer."""
        return int((self.of_grid > 0).sum())


def shiftable(predictor: Predictor) -> PlainPredictor:
    """What a predictor reads the slide by.

    Raises:
        UsageError: a model that picks what it reads; its tiles cannot be shifted.
    """
    if (plain := plain_part(predictor)) is not None:
        return plain
    raise UsageError(
        f"--fine shifts the tiles that a model classifies; {predictor.path} is of method "
        f"{predictor.header.get('method')}, which picks 20x tiles and has a map of those; leave out --fine"
    )


def plan_fine(model: PlainPredictor, slide: Slide, region: Region | None, pieces: int) -> FinePlan:
    """Find the tiles of the shifted grids.

    Raises:
        NoTissueError, InputError: as :func:`lrmil_cli.slides.tiles.find_tiles`.
    """
    tiles, cells, grid = shifted_tiles(slide, model.tiles, pieces, region)
    return FinePlan(pieces, grid, tiles, cells, slide_level(slide, model.tiles))


def fine_map(
    model: PlainPredictor, slide: Slide, plan: FinePlan, base: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The attention of each cell: the mean over all tiles that cover it, each as a multiple of what its own grid would
    give every tile, were all looked at alike.

    Args:
        base: ``x, y, attention`` of the slide's own grid, as the answer has them.

    Returns:
        columns of the table, with ``multiple`` (the mean) and ``tiles`` (of how many) a cell; seconds by phase.

    Raises:
        InputError: the slide is damaged, or no cell is covered.
    """
    seconds: dict[str, float] = {}
    bad: list[int] = []
    shifted = np.flatnonzero(plan.of_grid > 0)
    boxes = boxes_of(plan.tiles)[shifted]
    features = encode(model, slide, boxes, plan.level, seconds, bad)
    read = without_bad(len(boxes), bad, slide.path) if len(boxes) else np.zeros(0, np.int64)
    clock = time.perf_counter()
    total, count = np.zeros((plan.grid.rows, plan.grid.cols)), np.zeros((plan.grid.rows, plan.grid.cols), np.int64)
    _spread(plan, *_begins(plan, base), _multiples(_nine_digits(base["attention"])), total, count)
    own = plan.of_grid[shifted]
    for k in np.unique(own[read]).tolist():
        rows = read[own[read] == k]
        _, attention, _ = model.classify([f[rows] for f in features], boxes[rows])
        at = shifted[rows]
        _spread(plan, plan.tiles["col"][at], plan.tiles["row"][at], _multiples(attention), total, count)
    col, row = plan.cells["col"], plan.cells["row"]
    there = count[row, col] > 0
    if not there.any():
        raise InputError(f"{slide.path}: no tile lies over tissue that is enough for a finer map; leave out --fine")
    col, row = col[there], row[there]
    multiple = total[row, col] / count[row, col]
    if not multiple.sum() > 0:
        raise InputError(f"{slide.path}: the model attends to no cell of the finer map")
    columns = attention_rows(boxes_of(plan.cells)[there], multiple / multiple.sum())
    columns |= {"multiple": multiple, "tiles": count[row, col]}
    seconds["head"] = time.perf_counter() - clock
    return columns, {k: round(v, 3) for k, v in seconds.items()}


def fine_step(predictor: Predictor, header: dict[str, Any], pieces: int) -> dict[str, Any]:
    """How a finer map is made; its digest decides whether one is up to date.

    Args:
        header: of the answer's attention table.
    """
    return step("predict", {**predictor.settings, "fine": pieces}, {"prediction": last_digest(header)})


def fine_header(
    header: dict[str, Any], made: dict[str, Any], plan: FinePlan, seconds: dict[str, float]
) -> dict[str, Any]:
    """Header of the table of a finer map."""
    return make_header(
        "attention",
        slide=header["slide"],
        settings=header["settings"],
        history=[*header["history"], made],
        roi=header.get("roi"),
        prediction={k: v for k, v in header.get("prediction", {}).items() if k in SHORT},
        attention_kind=header.get("attention_kind"),
        tables=[],
        fine={"pieces": plan.pieces, "tiles_read": plan.more, "seconds": seconds},
    )


def _nine_digits(values: Any) -> np.ndarray:
    """As a table has them that was written and read again, so that a map made later is the same."""
    return np.array([float(f"{v:.9g}") for v in np.asarray(values, np.float64).tolist()])


def _multiples(attention: np.ndarray) -> np.ndarray:
    return attention * len(attention) / attention.sum()


def _begins(plan: FinePlan, base: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Column and row, in cells, where tiles of the slide's own grid begin."""
    col, row = (np.rint(np.asarray(base[axis]) / plan.grid.step).astype(np.int64) for axis in ("x", "y"))
    return col, row


def _spread(
    plan: FinePlan, col: np.ndarray, row: np.ndarray, multiple: np.ndarray, total: np.ndarray, count: np.ndarray
) -> None:
    """Add tiles to all cells that they cover; no two tiles of one grid share a cell."""
    for down in range(plan.pieces):
        for right in range(plan.pieces):
            on = (row + down < plan.grid.rows) & (col + right < plan.grid.cols)
            at = (row[on] + down, col[on] + right)
            total[at] += multiple[on]
            count[at] += 1
