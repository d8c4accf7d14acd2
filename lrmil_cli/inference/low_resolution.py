"""LRMIL by torch: a slide is predicted from its LR tiles alone. ``onnx_predictor`` does the same by ONNX."""

from __future__ import annotations

import time
from collections.abc import Generator

import numpy as np
import torch

from lrmil_cli.encoders.embed import embed_tiles
from lrmil_cli.encoders.pipeline import Seconds, read_ahead
from lrmil_cli.evaluation.head_calibration import calibrated_heads
from lrmil_cli.heads import Bag
from lrmil_cli.inference.prediction import Prediction, expected_seconds, unlike_record
from lrmil_cli.inference.torch_predictor import TorchPredictor, ensemble_bags
from lrmil_cli.slides.reader import without_bad
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import boxes_of, find_tiles


class LowResolutionPredictor(TorchPredictor):
    """LRMIL: LR tissue, LR tiles, LR encoder, the student's head of each fold; no HR pixel (inference/README 3.1)."""

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        clock = time.perf_counter()
        tiles, level, _ = find_tiles(slide, self.tiles, region)
        tissue = time.perf_counter() - clock

        def encode(some: np.ndarray) -> None:
            with read_ahead(
                slide, some, level, self.tiles.tile_px, device=self.where, batch=self.batch, bad=[]
            ) as pixels:
                embed_tiles(self.base.encoders, pixels, len(some), device=self.where, batch=self.batch)

        return expected_seconds(boxes_of(tiles), self.batch.now, tissue, encode)

    def predict(self, slide: Slide, region: Region | None) -> Generator[None, None, Prediction]:
        where, batch, seconds = self.where, self.batch, Seconds()
        clock = time.perf_counter()
        tiles, level, _ = find_tiles(slide, self.tiles, region)
        seconds.add("tissue", time.perf_counter() - clock)
        boxes = boxes_of(tiles)
        bad: list[int] = []
        with read_ahead(slide, boxes, level, self.tiles.tile_px, device=where, batch=batch, bad=bad) as pixels:
            yield
            features = embed_tiles(self.base.encoders, pixels, len(boxes), device=where, batch=batch, seconds=seconds)
        rows = without_bad(len(boxes), bad, slide.path)
        clock = time.perf_counter()
        corners = torch.from_numpy(boxes[rows, :2])
        bags = [Bag(torch.from_numpy(f[rows]), corners).to(where) for f in features]
        raw, attention, class_scores = ensemble_bags(self.base, bags)
        seconds.add("head", time.perf_counter() - clock)
        return Prediction(
            raw,
            calibrated_heads(self.header, raw),
            attention,
            class_scores,
            {k: v[rows] for k, v in tiles.items()},
            seconds.rounded(),
            {
                "tiles_read": {"lr": len(rows)},
                "bad_tiles": len(bad),
                "runtime": "torch",
                **unlike_record(self.header, self.path, features[0][rows]),
            },
        )
