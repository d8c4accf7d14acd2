"""LRMIL by torch: a slide is predicted from its LR tiles alone. ``onnx_predictor`` does the same by ONNX."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from functools import cached_property

import numpy as np
import torch

from lrmil_cli.encoders.embed import embed_tiles, features_settings
from lrmil_cli.encoders.pipeline import Seconds, Tiles, read_ahead
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.heads import Bag
from lrmil_cli.inference.plain import encode, predict_plain
from lrmil_cli.inference.prediction import Prediction, expected_seconds
from lrmil_cli.inference.torch_predictor import TorchPredictor, ensemble_bags
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import boxes_of, find_tiles


class LowResolutionPredictor(TorchPredictor):
    """LRMIL: LR tissue, LR tiles, LR encoder, the student's head of each fold; no HR pixel (inference/README 3.1)."""

    runtime = "torch"

    @cached_property
    def encoder_keys(self) -> list[str]:
        """Of each encoder, all that decides its features: weights, embedding, size. It reads all weights."""
        return [json.dumps(features_settings(e)) for e in self.base.encoders]

    @property
    def encoder_key(self) -> str:
        return "|".join(self.encoder_keys)

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        clock = time.perf_counter()
        tiles, level, _ = find_tiles(slide, self.tiles, region)
        tissue = time.perf_counter() - clock
        return expected_seconds(boxes_of(tiles), self.batch.now, tissue, lambda some: encode(self, slide, some, level))

    def reading(self, slide: Slide, boxes: np.ndarray, level: int, bad: list[int]) -> Tiles:
        return read_ahead(slide, boxes, level, self.tiles.tile_px, device=self.where, batch=self.batch, bad=bad)

    def encode_for(
        self,
        models: Sequence[LowResolutionPredictor],
        batches: Tiles,
        count: int,
        seconds: dict[str, float],
    ) -> list[list[np.ndarray]]:
        if len(models) == 1:
            keys = [[str(n) for n in range(len(models[0].base.encoders))]]
        else:
            keys = [m.encoder_keys for m in models]
        once: dict[str, Encoder] = {}
        for model, own in zip(models, keys):
            once |= {key: e for key, e in zip(own, model.base.encoders) if key not in once}
        found = embed_tiles(
            list(once.values()),
            batches,
            count,
            device=self.where,
            batch=self.batch,
            seconds=Seconds(seconds),
        )
        of = dict(zip(once, found))
        return [[of[key] for key in own] for own in keys]

    def classify(
        self, features: list[np.ndarray], boxes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        corners = torch.from_numpy(boxes[:, :2])
        return ensemble_bags(self.base, [Bag(torch.from_numpy(f), corners).to(self.where) for f in features])

    def predict(self, slide: Slide, region: Region | None) -> Generator[None, None, Prediction]:
        return (yield from predict_plain([self], slide, region))[0]
