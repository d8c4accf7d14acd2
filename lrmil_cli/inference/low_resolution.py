"""LRMIL predicts a slide: its LR tiles alone, by torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from lrmil_cli.encoders.embed import embed_tiles
from lrmil_cli.encoders.pipeline import BatchSize, Seconds, read_ahead
from lrmil_cli.heads import Bag
from lrmil_cli.inference.on_device import OnDevice, ensemble_bags
from lrmil_cli.inference.prediction import Prediction, Progress, expected_seconds
from lrmil_cli.models.model_file import Model
from lrmil_cli.slides.reader import without_bad
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import boxes_of, find_tiles


def predict_slide(
    model: Model,
    slide: Slide,
    *,
    device: torch.device,
    batch: BatchSize,
    region: Region | None = None,
    progress: Callable[[], AbstractContextManager[Callable[[int], None]]] = lambda: nullcontext(lambda n: None),
) -> Generator[None, None, Prediction]:
    """Classify one slide, or a region of it, from its LR tiles alone.

    A generator for :func:`lrmil_cli.ahead.in_turn`: what stands before its ``yield`` can be done ahead of its turn.

    Args:
        progress: opened when it is the slide's turn, gives a function that is called with the number of tiles done.

    Raises:
        NoTissueError: no tile has enough tissue, or none lies in the region.
        InputError: the slide is damaged, or coarser than the model's mpp.
    """
    seconds = Seconds()
    clock = time.perf_counter()
    tiles, level, _ = find_tiles(slide, model.tiles, region)
    seconds.add("tissue", time.perf_counter() - clock)
    boxes, bad = boxes_of(tiles), []
    with read_ahead(slide, boxes, level, model.tiles.tile_px, device=device, batch=batch, bad=bad) as pixels:
        yield
        with progress() as step:
            features = embed_tiles(
                model.encoders, pixels, len(boxes), device=device, batch=batch, seconds=seconds, progress=step
            )
    rows = without_bad(len(boxes), bad, slide.path)
    clock = time.perf_counter()
    corners = torch.from_numpy(boxes[rows, :2])
    per_fold, attention, class_scores = ensemble_bags(
        model, [Bag(torch.from_numpy(f[rows]), corners).to(device) for f in features]
    )
    seconds.add("head", time.perf_counter() - clock)
    return Prediction(
        per_fold.mean(0),
        per_fold,
        attention,
        class_scores,
        {k: v[rows] for k, v in tiles.items()},
        seconds.rounded(),
        {"tiles_read": {"lr": len(rows)}, "bad_tiles": len(bad), "runtime": "torch"},
    )


def plan_slide(
    model: Model, slide: Slide, *, device: torch.device, batch: BatchSize, region: Region | None = None
) -> tuple[int, float]:
    """Tiles of a slide, and the seconds that :func:`predict_slide` would take: the tissue in full, and two batches of tiles from all
    over the slide stand for the rest.

    Raises:
        NoTissueError, InputError: as :func:`predict_slide`, as far as those tiles show it.
    """
    clock = time.perf_counter()
    tiles, level, _ = find_tiles(slide, model.tiles, region)
    tissue = time.perf_counter() - clock

    def encode(some: np.ndarray) -> None:
        with read_ahead(slide, some, level, model.tiles.tile_px, device=device, batch=batch, bad=[]) as pixels:
            embed_tiles(model.encoders, pixels, len(some), device=device, batch=batch)

    return expected_seconds(boxes_of(tiles), batch.now, tissue, encode)


class LowResolution(OnDevice):
    """LRMIL: LR tiles alone (method 7)."""

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        return plan_slide(self.base, slide, device=self.where, batch=self.batch, region=region)

    def predict(self, slide: Slide, region: Region | None, progress: Progress) -> Generator[None, None, Prediction]:
        return predict_slide(self.base, slide, device=self.where, batch=self.batch, region=region, progress=progress)
