"""Whether a slide looks like those that a model was trained on, by its features (evaluation/README 13).

Two questions: how far the mean feature of the slide lies from those of training slides, and how many of its tiles lie
farther from training tiles than nearly all tiles of slides that were held out. Labels have no say in it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrmil_cli.errors import InputError
from lrmil_cli.targets.task import SLIDE

#: Directions of the features that are kept one by one; of all others together the mean variance is.
AXES = 32
#: Share of held-out slides, and of their tiles, that lie within the bounds.
WITHIN = 0.99
#: Fewer held-out slides than this give no bound, fewer training slides no spread.
FEWEST = 10
#: Tiles that are kept in memory: of all slides together, and of one at least and at most.
TILES, FEWEST_TILES, MOST_TILES = 20_000, 8, 64


@dataclass(frozen=True)
class Spread:
    """A normal distribution of features, by its leading directions.

    Attributes:
        mean: [D]; axes: [R, D], orthonormal; variances: [R] along them; rest: the mean variance along all others.
    """

    mean: np.ndarray
    axes: np.ndarray
    variances: np.ndarray
    rest: float

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance [n] of features [n, D], over ``sqrt(D)``, so that about 1 is usual for any width."""
        away = features.astype(np.float64) - self.mean
        along = away @ self.axes.T
        beyond = np.maximum((away**2).sum(1) - (along**2).sum(1), 0.0)
        return np.sqrt(((along**2 / self.variances).sum(1) + beyond / self.rest) / self.mean.size)

    def as_json(self) -> dict[str, Any]:
        packed = {k: _packed(getattr(self, k)) for k in ("mean", "axes", "variances")}
        return {**packed, "rest": self.rest}


def spread_of(features: np.ndarray) -> Spread:
    """Mean and shrunken covariance (Ledoit and Wolf 2004) of features [n, D], n at least 2."""
    from sklearn.covariance import ledoit_wolf

    x = features.astype(np.float64)
    mean = x.mean(0)
    covariance, _ = ledoit_wolf(x - mean, assume_centered=True)
    d = len(mean)
    count = min(AXES, d - 1)
    # All of them by divide and conquer: the solver for a few gives up where many are equal, as with a few slides.
    values, vectors = (v[..., d - count :] for v in np.linalg.eigh(covariance))
    least = 1e-12 * max(float(np.trace(covariance)), 1e-8)  # of features that do not vary at all; float32 holds it
    rest = max((float(np.trace(covariance)) - float(values.sum())) / (d - count), least)
    # In float32, as the header of a model keeps them: who trains and who predicts measure alike.
    kept = [np.float32(v).astype(np.float64) for v in (mean, vectors.T, np.maximum(values, rest))]
    return Spread(kept[0], kept[1], kept[2], rest)


@dataclass(frozen=True)
class TrainingFeatures:
    """What slides that a model knows look like, and how far slides that it did not know lie from them.

    Attributes:
        slide, tile: of slide means, and of single tiles.
        slide_bound, tile_bound: 99th percentiles of the distance of held-out slides and of their tiles.
        share_bound: 99th percentile of the share of their tiles beyond ``tile_bound``.
        slides, held_out: how many slides there were.
    """

    slide: Spread
    tile: Spread
    slide_bound: float
    tile_bound: float
    share_bound: float
    slides: int
    held_out: int

    def judge(self, features: np.ndarray) -> dict[str, Any]:
        """``unlike_training`` of a prediction: whether a slide of tile features [N, D] is beyond a bound, and which."""
        distance = float(self.slide.distance(features.mean(0, dtype=np.float64)[None])[0])
        share = float((self.tile.distance(features) > self.tile_bound).mean())
        by = [
            name
            for name, beyond in (("slide", distance > self.slide_bound), ("tiles", share > self.share_bound))
            if beyond
        ]
        return {
            "unlike": bool(by),
            "by": by,
            "distance": round(distance, 4),
            "bound": round(self.slide_bound, 4),
            "tiles_beyond": round(share, 4),
            "tiles_bound": round(self.share_bound, 4),
        }

    def as_json(self) -> dict[str, Any]:
        own = {k: getattr(self, k) for k in ("slide_bound", "tile_bound", "share_bound", "slides", "held_out")}
        return {"slide": self.slide.as_json(), "tile": self.tile.as_json(), **own}


def describe_training(
    features: Callable[[int], np.ndarray], parts: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> dict[str, Any]:
    """``training_features`` of a model's header: :class:`TrainingFeatures`, or the reason why there are none.

    The spreads that are kept are of all training slides; what is measured against the bounds of a fold is its held-out
    slides by the spread of its training slides alone.

    Args:
        features: of a slide by its index, [N, D]; each is asked for once.
        parts: of each fold the indices of its training slides, and of those held out (validation and test).
    """
    known = sorted({i for train, _ in parts for i in train})
    held_out = sorted({i for _, out in parts for i in out})
    if min(len(known), len(held_out)) < FEWEST:
        few = f"{len(known)} training and {len(held_out)} held-out slides, {FEWEST} of each are needed"
        return {"reason": few}
    wanted = sorted({*known, *held_out})
    most = int(np.clip(TILES // len(wanted), FEWEST_TILES, MOST_TILES))
    mean, some = {}, {}
    for i in wanted:
        own = features(i)
        mean[i] = own.mean(0, dtype=np.float64)
        some[i] = own[np.unique(np.linspace(0, len(own) - 1, most).astype(int))].astype(np.float32)

    def spreads(index: Sequence[int]) -> tuple[Spread, Spread]:
        return spread_of(np.stack([mean[i] for i in index])), spread_of(np.concatenate([some[i] for i in index]))

    slide_far, tile_far = [], []
    for train, out in parts:
        if len(train) >= 2 and len(out):
            slide, tile = spreads(train)
            slide_far.append(slide.distance(np.stack([mean[i] for i in out])))
            tile_far += [tile.distance(some[i]) for i in out]
    # Slides have different numbers of tiles: each slide counts alike.
    tile_bound = _weighted_quantile(tile_far)
    shares = np.array([float((d > tile_bound).mean()) for d in tile_far])
    slide, tile = spreads(known)
    return TrainingFeatures(
        slide, tile, _bound(np.concatenate(slide_far)), tile_bound, _bound(shares), len(known), len(held_out)
    ).as_json()


def training_features(header: dict[str, Any], where: str) -> TrainingFeatures | None:
    """What a model's header keeps of its training slides; None where it keeps nothing.

    Raises:
        InputError: it is damaged.
    """
    about = header.get("training_features")
    if about is None or "reason" in about:
        return None
    try:
        slide, tile, share = bounds = [float(about[f"{k}_bound"]) for k in ("slide", "tile", "share")]
        if not np.isfinite(bounds).all():
            raise ValueError("bounds")
        counts = int(about["slides"]), int(about["held_out"])
        return TrainingFeatures(_spread(about["slide"]), _spread(about["tile"]), slide, tile, share, *counts)
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(
            f"{where}: what its header says of the training slides is damaged ({e!r}); copy or make the file again"
        ) from e


def unlike_text(found: dict[str, Any] | None) -> str | None:
    """Why a slide, or a patient by all slides, is unlike those of training, in words, from ``unlike_training`` of its
    prediction; None if not."""
    if not found or not found.get("unlike"):
        return None
    said, others = [], f"{found.get('of', SLIDE)}s"
    if "slide" in found["by"]:
        said.append(
            f"its mean feature lies {found['distance']:.3g} away, held-out {others} within {found['bound']:.3g}"
        )
    if "tiles" in found["by"]:
        said.append(
            f"{found['tiles_beyond']:.0%} of its tiles are strange, of held-out {others} {found['tiles_bound']:.0%}"
        )
    return f"unlike the training {others} ({'; '.join(said)})"


def _spread(about: dict[str, Any]) -> Spread:
    mean, variances = _unpacked(about["mean"]), _unpacked(about["variances"])
    axes = _unpacked(about["axes"]).reshape(len(variances), len(mean))
    rest = float(about["rest"])
    if not (np.isfinite(mean).all() and np.isfinite(axes).all() and (variances > 0).all() and rest > 0):
        raise ValueError("numbers")
    return Spread(mean, axes, variances, rest)


def _bound(values: np.ndarray) -> float:
    """The :data:`WITHIN` quantile of n values that a new one lies above with a chance of ``1 - WITHIN`` at most; of few
    values the largest, above which it lies with a chance of ``1 / (n + 1)``."""
    rank = min(len(values), math.ceil(WITHIN * (len(values) + 1) - 1e-9))
    return float(np.sort(values)[rank - 1])


def _weighted_quantile(groups: Sequence[np.ndarray]) -> float:
    """The :data:`WITHIN` quantile of all values, where each group weighs the same."""
    values = np.concatenate(groups)
    weights = np.concatenate([np.full(len(g), 1 / (len(g) * len(groups))) for g in groups])
    order = np.argsort(values)
    at = int(np.searchsorted(np.cumsum(weights[order]), WITHIN - 1e-9))
    return float(values[order[min(at, len(values) - 1)]])


def _packed(values: np.ndarray) -> str:
    """float32, little-endian, as base64: a header is text."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float64)
