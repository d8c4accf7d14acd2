"""AHDMIL and HDMIL: HR tiles are read only where a screener says so.

LR pixels first, then the decision, then exactly the HR tiles that any fold keeps, each read and encoded once
(inference/README 3.2).
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.encoders.embed import embed_tiles
from lrmil_cli.encoders.pipeline import Seconds, read_ahead
from lrmil_cli.errors import InputError, NoTissueError, UsageError
from lrmil_cli.evaluation.head_calibration import calibrated_heads
from lrmil_cli.inference.prediction import Prediction, ensemble, expected_seconds, unlike_record
from lrmil_cli.inference.record import percentiles
from lrmil_cli.inference.torch_predictor import TorchPredictor, stacked
from lrmil_cli.matching.children import find_children
from lrmil_cli.selective.model_parts import ScreenedModel
from lrmil_cli.selective.screener import Screening, screen, screening_of
from lrmil_cli.selective.screening_images import windows_of_overview, windows_of_tiles
from lrmil_cli.slides.reader import without_bad
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import TileSettings, boxes_of, find_tiles


@dataclass(frozen=True)
class Budget:
    """What the user allows of the screener's decision.

    Attributes:
        least, most: share of the candidates that is read at least and at most, chosen by score.
        threshold: a class keeps a tile whose score has a larger sigmoid.
    """

    least: float = 0.0
    most: float = 1.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most <= 1 or not self.most:
            raise UsageError(
                f"--keep-min {self.least:g} and --keep-max {self.most:g}: give shares from 0 to 1, the first not above "
                "the second, the second above 0"
            )
        if not 0 < self.threshold < 1:
            raise UsageError(f"--keep-threshold {self.threshold:g}: give a number between 0 and 1")

    def as_json(self) -> dict[str, float]:
        return dict(vars(self))


@dataclass
class Candidates:
    """HR tiles that may be read: those with tissue, by the low-resolution mask, inside an LR tile.

    Attributes:
        lr_boxes, boxes: int64 [., 4] in level-0 px; lr_level, level: to read them from.
        parent: int64 [N], row of ``lr_boxes``; cell: int64 [N], row-major in it.
    """

    lr_boxes: np.ndarray
    lr_level: int
    boxes: np.ndarray
    level: int
    parent: np.ndarray
    cell: np.ndarray


def find_candidates(slide: Slide, lr: TileSettings, hr: TileSettings, ratio: int, region: Region | None) -> Candidates:
    """The HR tiles that the pairs table of a slide would hold, from its low-resolution tissue mask alone.

    Raises:
        NoTissueError: there are none. InputError: the slide is damaged, or too coarse.
    """
    low, lr_level, tissue = find_tiles(slide, lr, region)
    known = tissue if hr.tissue == lr.tissue else None
    high = find_children(slide, low, hr, ratio, known, chosen=region is not None)
    if not high.parent.size:
        raise NoTissueError(
            f"{slide.path}: no HR tile with tissue lies in an LR tile; look at `lrmil tile --thumbnail`"
        )
    return Candidates(boxes_of(low), lr_level, boxes_of(high.tiles), high.level, high.parent, high.cell)


def within_budget(screenings: list[Screening], budget: Budget) -> list[Screening]:
    """The decisions of all folds, so that together they keep a share of the candidates that lies in the budget.

    Tiles are dropped and added by the mean over folds of their largest class score; one that is added is seen by every
    class (inference/README 3.2).
    """
    n = screenings[0].mask.shape[1]
    order = torch.stack([s.scores.amax(0) for s in screenings]).mean(0).argsort(descending=True, stable=True)
    kept = torch.stack([s.used.any(0) for s in screenings]).any(0)
    most = max(1, math.floor(budget.most * n))
    least = min(math.ceil(budget.least * n), most)
    if most >= int(kept.sum()) >= least:
        return screenings
    ranked = order[kept[order]]
    if len(ranked) > most:
        allowed = torch.zeros_like(kept)
        allowed[ranked[:most]] = True
        return [_only(s, allowed) for s in screenings]
    added = torch.zeros_like(kept)
    added[order[~kept[order]][: least - len(ranked)]] = True
    return [Screening(s.scores, s.mask, s.used | added, s.empty) for s in screenings]


def _only(s: Screening, allowed: Tensor) -> Screening:
    """A decision among the tiles ``allowed`` bool [N] alone.

    A class with none of its own gets what the others have, or all.
    """
    used = s.used & allowed
    instead = used.any(0) if bool(used.any()) else allowed
    empty = ~used.any(1)
    return Screening(s.scores, s.mask, torch.where(empty[:, None], instead, used), s.empty | empty)


@dataclass
class ScreenedPredictor(TorchPredictor):
    """AHDMIL and HDMIL. All folds look at the same tiles: what one of them keeps is read once."""

    model: ScreenedModel
    budget: Budget

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "budget": self.budget.as_json()}

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        clock = time.perf_counter()
        c = find_candidates(slide, self.tiles, self.model.hr_tiles, self.model.ratio, region)
        tissue = time.perf_counter() - clock

        def encode(some: np.ndarray) -> None:
            with read_ahead(
                slide, some, c.level, self.model.hr_tiles.tile_px, device=self.where, batch=self.batch, bad=[]
            ) as pixels:
                embed_tiles(self.model.base.encoders, pixels, len(some), device=self.where, batch=self.batch)

        n, seconds = expected_seconds(c.boxes, self.batch.now, 0.0, encode)
        share = min(max(float(self.header.get("kept_rate") or 1.0), self.budget.least), self.budget.most)
        return len(c.lr_boxes) + round(share * n), tissue + share * seconds

    def predict(self, slide: Slide, region: Region | None) -> Generator[None, None, Prediction]:
        seconds, model, hr = Seconds(), self.model, self.model.hr_tiles
        clock = time.perf_counter()
        c = find_candidates(slide, self.tiles, hr, model.ratio, region)
        seconds.add("tissue", time.perf_counter() - clock)
        yield
        clock = time.perf_counter()
        images, there = self._images(slide, c)
        seconds.add("lr_read", time.perf_counter() - clock)
        # What cannot be screened is no candidate.
        lr_bad = len(np.unique(c.parent[~there]))
        images, c = images[there], replace(c, boxes=c.boxes[there], parent=c.parent[there], cell=c.cell[there])
        if not there.any():
            raise InputError(f"{slide.path}: none of its LR tiles can be decoded; copy or export the slide again")
        clock = time.perf_counter()
        pictures = torch.from_numpy(images).to(self.where)
        cut = math.log(self.budget.threshold / (1 - self.budget.threshold))
        decided = within_budget([screening_of(screen(s, pictures).scores, cut) for s in model.screeners], self.budget)
        chosen = torch.stack([s.used.any(0) for s in decided]).any(0).nonzero().flatten().cpu().numpy()
        seconds.add("screen", time.perf_counter() - clock)
        bad: list[int] = []
        with (
            read_ahead(
                slide, c.boxes[chosen], c.level, hr.tile_px, device=self.where, batch=self.batch, bad=bad
            ) as pixels,
        ):
            (features,) = embed_tiles(
                model.base.encoders,
                pixels,
                len(chosen),
                device=self.where,
                batch=self.batch,
                seconds=seconds,
            )
        rows = without_bad(len(chosen), bad, slide.path)
        clock = time.perf_counter()
        read = chosen[rows]
        bag = torch.from_numpy(features[rows]).to(self.where)
        index = torch.from_numpy(read).to(self.where)
        with torch.inference_mode():
            outs = [head.select(bag, s.used[:, index]) for head, s in zip(model.heads, decided)]
        logits, looks = (stacked([getattr(o, of) for o in outs]) for of in ("logits", "attention"))
        own = [o.class_scores for o in outs if o.class_scores is not None]  # DMIN has one row a class
        raw, attention, class_scores = ensemble(self.header, logits, looks, stacked(own) if own else None)
        outputs = self.classes or [f"output {n}" for n in range(1, logits.shape[1] + 1)]
        seconds.add("head", time.perf_counter() - clock)
        record = {
            "tiles_read": {"lr": len(c.lr_boxes) - lr_bad, "hr": len(read)},
            "candidates": len(c.boxes),
            "kept_rate": round(len(read) / len(c.boxes), 6),
            "fallback": {
                "empty_classes": sorted({c for s in decided for c, e in zip(outputs, s.empty.tolist()) if e}),
                "empty_folds": sum(bool(s.empty.all()) for s in decided),
            },
            "bad_tiles": lr_bad + len(bad),
            # Another budget picks other tiles, which were never measured.
            **(unlike_record(self.header, self.path, features[rows]) if self.budget == Budget() else {}),
            "runtime": "torch",
        }
        columns = dict(zip(("x", "y", "width", "height"), c.boxes[read].T))
        return Prediction(
            raw,
            calibrated_heads(self.header, raw),
            attention,
            class_scores,
            columns,
            seconds.rounded(),
            record,
            {"screen": self._screen_table(c, decided, read, attention)},
        )

    def _images(self, slide: Slide, c: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Screening images uint8 [N, s, s, 3] of the candidates, and which of them there are, bool [N]."""
        m = self.model
        if m.source == "thumbnail":
            side = m.hr_tiles.tile_px * m.hr_tiles.mpp / slide.mpp
            return windows_of_overview(slide, c.boxes, side, m.screen_px), np.ones(len(c.boxes), bool)
        return windows_of_tiles(
            slide, c.lr_boxes, c.lr_level, self.tiles.tile_px, c.parent, c.cell, m.ratio, m.screen_px
        )

    def _screen_table(
        self, c: Candidates, decided: list[Screening], read: np.ndarray, attention: np.ndarray
    ) -> dict[str, np.ndarray]:
        """All candidates: attention and its percentile among the tiles that were read (0 where not read), whether they
        were read, and the screener's score.

        The score is the sigmoid of the largest class's, mean over folds.
        """
        whole, percentile, kept = np.zeros((3, len(c.boxes)))
        whole[read], percentile[read], kept[read] = attention, percentiles(attention).round(4), 1.0
        scores = torch.sigmoid(torch.stack([s.scores.amax(0) for s in decided])).mean(0).cpu().double().numpy()
        columns = dict(zip(("x", "y", "width", "height"), c.boxes.T))
        return {**columns, "attention": whole, "percentile": percentile, "kept": kept, "screening": scores}
