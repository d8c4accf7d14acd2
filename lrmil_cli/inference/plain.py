"""LRMIL whatever runs it: a slide's LR tiles are read once, encoded, and classified by one model or by several.

Nothing here imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lrmil_cli.evaluation.head_calibration import calibrated_heads
from lrmil_cli.inference.prediction import Prediction, Predictor, unlike_record
from lrmil_cli.slides.reader import without_bad
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import TileSettings, boxes_of, find_tiles

#: Rows of the tiles, and their pixels uint8 [B, P, P, 3], batch by batch.
Batches = Any
Ensemble = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]


@runtime_checkable
class PlainPredictor(Protocol):
    """A predictor that encodes tiles wherever they lie, and classifies them: LRMIL, by torch or by ONNX."""

    @property
    def path(self) -> str: ...
    @property
    def header(self) -> dict[str, Any]: ...
    @property
    def tiles(self) -> TileSettings: ...
    @property
    def device(self) -> str: ...
    @property
    def runtime(self) -> str:
        """As a record says it: torch, onnx or onnx-int8."""

    @property
    def encoder_key(self) -> str:
        """What decides the features of its encoders besides the tiles; of another kind it is never the same."""

    def reading(self, slide: Slide, boxes: np.ndarray, level: int, bad: list[int]) -> AbstractContextManager[Batches]:
        """Begin to read tiles; ``bad`` as of :func:`lrmil_cli.slides.reader.iter_batches`."""

    def encode_for(
        self,
        models: Sequence[Any],
        batches: Batches,
        count: int,
        seconds: dict[str, float],
    ) -> list[list[np.ndarray]]:
        """Features of ``count`` tiles for each of some models of this kind, float32 [N, D] of each of its encoders.
        Encoders that are the same run once. ``seconds`` is filled with ``read`` and ``encode``."""

    def classify(self, features: list[np.ndarray], boxes: np.ndarray) -> Ensemble:
        """As :func:`lrmil_cli.inference.prediction.ensemble`, of the features of one bag and the boxes of its tiles."""


def plain_part(predictor: Predictor) -> PlainPredictor | None:
    """What a predictor reads the slide by, without what was put around it; None of a model that picks what it reads."""
    inner: Any = predictor
    while inner is not None and not isinstance(inner, PlainPredictor):
        inner = getattr(inner, "base", None)
    return inner


def encode(
    model: PlainPredictor,
    slide: Slide,
    boxes: np.ndarray,
    level: int,
    seconds: dict[str, float] | None = None,
    bad: list[int] | None = None,
) -> list[np.ndarray]:
    """Features float32 [N, D] of each encoder of a model, in the order of ``boxes``."""
    with model.reading(slide, boxes, level, [] if bad is None else bad) as batches:
        return model.encode_for([model], batches, len(boxes), {} if seconds is None else seconds)[0]


@dataclass(frozen=True)
class Encoded:
    """The tiles of a slide, or of all slides of a patient, as the encoders of some models see them.

    Attributes:
        tiles: columns of the tile table; boxes: int64 [N, 4], of the same tiles.
        features: of each model the features [N, D] of each of its encoders.
        bad: tiles that cannot be decoded, which were left out; seconds: by phase.
    """

    tiles: dict[str, np.ndarray]
    boxes: np.ndarray
    features: list[list[np.ndarray]]
    bad: int
    seconds: dict[str, float]


def encode_slide(
    models: Sequence[PlainPredictor], slide: Slide, region: Region | None
) -> Generator[None, None, Encoded]:
    """Read the tiles of a slide once, and encode them for models of one kind whose tiles are the same.

    Raises:
        as :meth:`lrmil_cli.inference.prediction.Predictor.predict`.
    """
    first = models[0]
    clock = time.perf_counter()
    tiles, level, _ = find_tiles(slide, first.tiles, region)
    seconds = {"tissue": time.perf_counter() - clock}
    boxes = boxes_of(tiles)
    bad: list[int] = []
    with first.reading(slide, boxes, level, bad) as batches:
        yield
        features = first.encode_for(models, batches, len(boxes), seconds)
    rows = without_bad(len(boxes), bad, slide.path)
    kept = [[f[rows] for f in own] for own in features]
    return Encoded({k: v[rows] for k, v in tiles.items()}, boxes[rows], kept, len(bad), seconds)


def predict_plain(
    models: Sequence[PlainPredictor], slide: Slide, region: Region | None
) -> Generator[None, None, list[Prediction]]:
    """Classify one slide by models of one kind whose tiles are the same (inference/README 1, 10).

    Raises:
        as :meth:`lrmil_cli.inference.prediction.Predictor.predict`.
    """
    return classified(models, (yield from encode_slide(models, slide, region)))


def classified(models: Sequence[PlainPredictor], bag: Encoded) -> list[Prediction]:
    """What each of the models says of a bag that was encoded for them."""
    out = []
    for model, own in zip(models, bag.features):
        clock = time.perf_counter()
        raw, attention, class_scores = model.classify(own, bag.boxes)
        spent = bag.seconds | {"head": time.perf_counter() - clock}
        out.append(
            Prediction(
                raw,
                calibrated_heads(model.header, raw),
                attention,
                class_scores,
                bag.tiles,
                {k: round(v, 3) for k, v in spent.items()},
                {
                    "tiles_read": {"lr": len(bag.boxes)},
                    "bad_tiles": bag.bad,
                    "runtime": model.runtime,
                    **({"int8": model.header.get("int8")} if model.runtime == "onnx-int8" else {}),
                    **unlike_record(model.header, model.path, own[0]),
                },
            )
        )
    return out


def predict_together(
    predictors: Sequence[Predictor], slide: Slide, region: Region | None
) -> Generator[None, None, list[Prediction]]:
    """Classify one slide by several models, read once for all of a kind whose tiles are the same (inference/README 10).

    Returns:
        a prediction a predictor, each what the predictor alone would say.

    Raises:
        as :meth:`lrmil_cli.inference.prediction.Predictor.predict`.
    """
    if len(predictors) == 1:
        return [(yield from predictors[0].predict(slide, region))]
    yield  # what could be begun ahead would be one reading of several
    out: dict[int, Prediction] = {}
    for members in _groups(predictors):
        models = [m for n in members if (m := plain_part(predictors[n])) is not None]
        if len(members) == 1:
            out[members[0]] = finished(predictors[members[0]].predict(slide, region))
            continue
        for n, p in zip(members, finished(predict_plain(models, slide, region))):
            out[n] = judged(predictors[n], p)
            out[n].record["read_with"] = [predictors[other].path for other in members if other != n]
    return [out[n] for n in range(len(predictors))]


def plan_together(predictors: Sequence[Predictor], slide: Slide, region: Region | None) -> tuple[int, float]:
    """As :meth:`lrmil_cli.inference.prediction.Predictor.plan`, of several models that read a slide together."""
    tiles, seconds = 0, 0.0
    for members in _groups(predictors):
        plain = [p for n in members if (p := plain_part(predictors[n])) is not None]
        keys = [p.encoder_key for p in plain] if len(members) > 1 else [""]  # to know it, all weights are read
        plans = [predictors[members[keys.index(key)]].plan(slide, region) for key in dict.fromkeys(keys)]
        tiles, seconds = tiles + plans[0][0], seconds + sum(s for _, s in plans)
    return tiles, seconds


def _groups(predictors: Sequence[Predictor]) -> list[list[int]]:
    """Predictors that read the same tiles by the same means."""
    groups: dict[str, list[int]] = {}
    for n, predictor in enumerate(predictors):
        plain = plain_part(predictor)
        key = f"alone {n}"
        if plain is not None and getattr(predictor, "high", None) is None and len(predictors) > 1:
            key = f"{plain.runtime} {plain.device} {plain.tiles}"
        groups.setdefault(key, []).append(n)
    return list(groups.values())


def judged(predictor: Any, p: Prediction) -> Prediction:
    """The answer of a predictor's plain part with what all that was put around it adds, from the inside out."""
    return p if isinstance(predictor, PlainPredictor) else predictor.judged(judged(predictor.base, p))


def finished(work: Generator[None, None, Any]) -> Any:
    """What a generator returns, run to its end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
