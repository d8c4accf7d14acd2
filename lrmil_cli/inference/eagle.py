"""EAGLE: all LR tiles are read, then the HR tiles that the picker's attention picks, whose mean is classified."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from lrmil_cli.encoders.embed import embed_tiles
from lrmil_cli.encoders.pipeline import Seconds, read_ahead
from lrmil_cli.errors import InputError
from lrmil_cli.evaluation.head_calibration import calibrated_heads
from lrmil_cli.heads import Bag
from lrmil_cli.inference.prediction import Prediction, ensemble, expected_seconds, unlike_record
from lrmil_cli.inference.record import attention_rows
from lrmil_cli.inference.torch_predictor import TorchPredictor, ensemble_bags, stacked
from lrmil_cli.matching.children import Children, find_children
from lrmil_cli.selective.model_parts import EagleModel
from lrmil_cli.selective.picked_tiles import pick_tiles
from lrmil_cli.slides.reader import without_bad
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import boxes_of, find_tiles


@dataclass
class EaglePredictor(TorchPredictor):
    """EAGLE (inference/README 3.4). All folds judge the same HR tiles, those of the pickers' mean attention."""

    model: EagleModel

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        clock = time.perf_counter()
        tiles, level, _ = find_tiles(slide, self.tiles, region)
        tissue = time.perf_counter() - clock
        encoders = [*self.model.picker.encoders]

        def encode(some: np.ndarray) -> None:
            px = self.tiles.tile_px
            with read_ahead(slide, some, level, px, device=self.where, batch=self.batch, bad=[]) as pixels:
                embed_tiles(encoders, pixels, len(some), device=self.where, batch=self.batch)

        n, seconds = expected_seconds(boxes_of(tiles), self.batch.now, 0.0, encode)
        # At most: an HR tile is taken to cost what one of LR does, by an encoder of its size.
        sizes = [sum(p.numel() for e in own for p in e.parameters()) for own in (self.base.encoders, encoders)]
        most = min(self.model.top, n * self.model.ratio**2)
        return n + most, tissue + seconds * (1 + most / n * sizes[0] / sizes[1])

    def predict(self, slide: Slide, region: Region | None) -> Generator[None, None, Prediction]:
        where, batch, model = self.where, self.batch, self.model
        seconds = {side: Seconds() for side in ("lr", "hr")}
        clock = time.perf_counter()
        tiles, level, tissue = find_tiles(slide, self.tiles, region)
        known = tissue if model.hr_tiles.tissue == self.tiles.tissue else None
        found = find_children(slide, tiles, model.hr_tiles, model.ratio, known, chosen=region is not None)
        phases = {"tissue": time.perf_counter() - clock}
        if not len(found.parent):
            raise InputError(f"{slide.path}: no HR tile with tissue enough lies in an LR tile of it")
        boxes = boxes_of(tiles)
        bad: list[int] = []
        with read_ahead(slide, boxes, level, self.tiles.tile_px, device=where, batch=batch, bad=bad) as pixels:
            yield
            features = embed_tiles(
                model.picker.encoders, pixels, len(boxes), device=where, batch=batch, seconds=seconds["lr"]
            )
        rows = without_bad(len(boxes), bad, slide.path)
        clock = time.perf_counter()
        corners = torch.from_numpy(boxes[rows, :2])
        bags = [Bag(torch.from_numpy(f[rows]), corners).to(where) for f in features]
        _, attention, _ = ensemble_bags(model.picker, bags)
        looked = time.perf_counter() - clock
        picked = self._pick(attention, rows, len(boxes), found, slide)
        hr_boxes, hr_bad = boxes_of(found.tiles)[picked], list[int]()
        px = model.hr_tiles.tile_px
        with read_ahead(slide, hr_boxes, found.level, px, device=where, batch=batch, bad=hr_bad) as pixels:
            (high,) = embed_tiles(
                self.base.encoders, pixels, len(picked), device=where, batch=batch, seconds=seconds["hr"]
            )
        good = without_bad(len(picked), hr_bad, slide.path)
        clock = time.perf_counter()
        mean = torch.from_numpy(high[good]).float().mean(0, keepdim=True).to(where)
        with torch.inference_mode():
            outs = [head(mean, torch.zeros(1, 2, dtype=torch.int64, device=where)) for head in self.base.heads]
        raw, attention, _ = ensemble(self.header, stacked([o.logits for o in outs]), attention[None], None)
        phases |= {f"{phase}_{side}": v for side, own in seconds.items() for phase, v in own.phases.items()}
        phases["head"] = looked + time.perf_counter() - clock
        return Prediction(
            raw,
            calibrated_heads(self.header, raw),
            attention,
            None,
            {k: v[rows] for k, v in tiles.items()},
            {k: round(v, 3) for k, v in phases.items()},
            {
                "tiles_read": {"lr": len(rows), "hr": len(good)},
                "candidates": len(found.parent),
                "bad_tiles": len(bad) + len(hr_bad),
                "runtime": "torch",
                **unlike_record(self.header, self.path, features[0][rows]),
            },
            {"hr": attention_rows(hr_boxes[good], np.full(len(good), 1 / len(good)))},
        )

    def _pick(self, attention: np.ndarray, rows: np.ndarray, count: int, found: Children, slide: Slide) -> np.ndarray:
        """Rows of ``found``; attention is that of the LR tiles ``rows`` of ``count``, which could be decoded."""
        place = np.full(count, -1, np.int64)
        place[rows] = np.arange(len(rows))
        parent = place[found.parent]
        if not (parent >= 0).any():
            raise InputError(f"{slide.path}: no HR tile lies in an LR tile that can be decoded")
        return pick_tiles(attention, parent, found.cell, found.tiles["tissue"], self.model.top)
