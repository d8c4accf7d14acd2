"""ZoomMIL: the lowest level is read whole, then only the children of the tiles that were picked, level by level."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lrmil_cli.encoders.embed import embed_tiles
from lrmil_cli.encoders.pipeline import Seconds, read_ahead
from lrmil_cli.evaluation.head_calibration import calibrated_heads
from lrmil_cli.heads import MILOutput, PyramidBag
from lrmil_cli.heads.zoommil import ZoomMIL
from lrmil_cli.inference.prediction import Prediction, ensemble, expected_seconds, unlike_record
from lrmil_cli.inference.record import attention_rows
from lrmil_cli.inference.torch_predictor import TorchPredictor, stacked
from lrmil_cli.matching.children import find_children
from lrmil_cli.selective.model_parts import ZoomModel
from lrmil_cli.slides.reader import without_bad
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import boxes_of, find_tiles


@dataclass
class Level:
    """Tiles of one magnification of a slide.

    Attributes:
        boxes: int64 [N, 4] in level-0 px; read_from: level of the file.
        children: int64 [N, r * r], rows of the next finer level, -1 for a child that is not there; None for the last.
    """

    tiles: dict[str, np.ndarray]
    boxes: np.ndarray
    read_from: int
    children: np.ndarray | None = None


def find_levels(slide: Slide, model: ZoomModel, region: Region | None) -> list[Level]:
    """All tiles that might be read, by the low-resolution tissue mask.

    It is the pyramid that the pairs tables of the slide would give.

    Raises:
        NoTissueError: the lowest level has none. InputError: the slide is damaged, or too coarse.
    """
    own = model.base.tiles
    tiles, level, tissue = find_tiles(slide, own, region)
    out = [Level(tiles, boxes_of(tiles), level)]
    for settings, ratio in zip(model.levels, model.ratios):
        above = out[-1]
        known = tissue if settings.tissue == own.tissue else None
        found = find_children(slide, above.tiles, settings, ratio, known, chosen=region is not None)
        above.children = np.full((len(above.boxes), ratio**2), -1, np.int64)
        above.children[found.parent, found.cell] = np.arange(len(found.parent))
        out.append(Level(found.tiles, boxes_of(found.tiles), found.level))
    return out


@dataclass
class ZoomPredictor(TorchPredictor):
    """ZoomMIL (inference/README 3.3). All folds look at the same tiles: what one of them picks is read once."""

    model: ZoomModel

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        clock = time.perf_counter()
        levels = find_levels(slide, self.model, region)
        tissue = time.perf_counter() - clock

        def encode(some: np.ndarray) -> None:
            with read_ahead(
                slide, some, levels[0].read_from, self.tiles.tile_px, device=self.where, batch=self.batch, bad=[]
            ) as pixels:
                embed_tiles(self.model.base.encoders, pixels, len(some), device=self.where, batch=self.batch)

        n, seconds = expected_seconds(levels[0].boxes, self.batch.now, 0.0, encode)
        heads = [h for h in self.base.heads if isinstance(h, ZoomMIL)]
        picked = sum(h.k for h in heads)
        deeper = sum(min(len(v.boxes), picked * ratio**2) for v, ratio in zip(levels[1:], self.model.ratios))
        return n + deeper, tissue + seconds * (n + deeper) / n

    def predict(self, slide: Slide, region: Region | None) -> Generator[None, None, Prediction]:
        clock = time.perf_counter()
        levels = find_levels(slide, self.model, region)
        seconds = {"tissue": time.perf_counter() - clock}
        yield
        reading = [_Reading(level, self.model.base.encoders[0].embed_dim, self.where) for level in levels]
        good = self._read(slide, reading, 0, np.arange(len(levels[0].boxes)))
        without_bad(len(good), np.flatnonzero(~good).tolist(), slide.path)  # an error where nothing is left
        depth, looked = 0, 0.0
        while True:
            clock = time.perf_counter()
            outs, wanted = self._look(reading, depth)
            looked += time.perf_counter() - clock
            if wanted is None:
                break
            depth = max(depth, wanted[0])
            self._read(slide, reading, *wanted)
        logits, looks = (stacked([getattr(o, of) for o in outs]) for of in ("logits", "attention"))
        raw, attention, _ = ensemble(self.header, logits, looks, None)
        names = ["lr", "hr"] if len(levels) == 2 else ["lr", "mid", "hr"]
        rows = [np.flatnonzero(r.there) for r in reading]
        tables = {
            name: attention_rows(levels[t].boxes[rows[t]], deep_attention(outs, t, len(levels[t].boxes))[rows[t]])
            for t, name in enumerate(names)
            if t and len(rows[t])
        }
        record: dict[str, Any] = {
            "tiles_read": {name: len(own) for name, own in zip(names, rows)},
            "candidates": len(levels[-1].boxes),
            "bad_tiles": int(sum((r.tried & ~r.there).sum() for r in reading)),
            "runtime": "torch",
            **unlike_record(self.header, self.path, reading[0].features[reading[0].there].cpu().numpy()),
        }
        seconds |= {f"{phase}_{t}": v for t, r in enumerate(reading) for phase, v in r.seconds.phases.items()}
        seconds["head"] = looked
        return Prediction(
            raw,
            calibrated_heads(self.header, raw),
            attention,
            None,
            {k: v[rows[0]] for k, v in levels[0].tiles.items()},
            {k: round(v, 3) for k, v in seconds.items()},
            record,
            tables,
        )

    def _read(self, slide: Slide, reading: list[_Reading], t: int, wanted: np.ndarray) -> np.ndarray:
        """Read and encode the tiles ``wanted`` of level t; bool, those that could be decoded."""
        own = reading[t]
        bad: list[int] = []
        px = (self.tiles, *self.model.levels)[t].tile_px
        with (
            read_ahead(
                slide, own.level.boxes[wanted], own.level.read_from, px, device=self.where, batch=self.batch, bad=bad
            ) as pixels,
        ):
            (found,) = embed_tiles(
                self.model.base.encoders,
                pixels,
                len(wanted),
                device=self.where,
                batch=self.batch,
                seconds=own.seconds,
            )
        good = np.ones(len(wanted), bool)
        good[bad] = False
        own.tried[wanted], own.there[wanted[good]] = True, True
        own.features[torch.from_numpy(wanted[good]).to(self.where)] = torch.from_numpy(found[good]).to(self.where)
        return good

    def _look(self, reading: list[_Reading], depth: int) -> tuple[list[MILOutput], tuple[int, np.ndarray] | None]:
        """What the heads say of the levels up to ``depth``, and what they want to see that was not read: level, rows.

        Where tiles turn out to be damaged the heads may pick others, so the highest level that lacks any comes first.
        """
        rows = torch.from_numpy(np.flatnonzero(reading[0].there)).to(self.where)
        children = [
            torch.from_numpy(above.children_that_can_be_read(below)).to(self.where)
            for above, below in zip(reading, reading[1:])
        ]
        children[0] = children[0][rows]
        pyramid = PyramidBag(
            (reading[0].features[rows], *(r.features for r in reading[1 : depth + 1])), tuple(children)
        )
        with torch.inference_mode():
            outs = [head(*pyramid) for head in self.model.base.heads]
        for t, kin in enumerate(children[: depth + 1]):
            picked = [o.extra[f"selected{t}"] for o in outs if f"selected{t}" in o.extra]
            wanted = torch.unique(kin[torch.cat(picked)]).cpu().numpy() if picked else np.empty(0, np.int64)
            wanted = wanted[wanted >= 0]
            wanted = wanted[~reading[t + 1].tried[wanted]]
            if len(wanted):
                return outs, (t + 1, wanted)
        return outs, None


class _Reading:
    """What was read of a level.

    Attributes:
        features: [N, D], zero where nothing was read; tried: bool [N]; there: bool [N], those that could be decoded.
    """

    def __init__(self, level: Level, width: int, where: torch.device):
        self.level, self.seconds = level, Seconds()
        self.features = torch.zeros(len(level.boxes), width, device=where)
        self.tried, self.there = np.zeros(len(level.boxes), bool), np.zeros(len(level.boxes), bool)

    def children_that_can_be_read(self, below: _Reading) -> np.ndarray:
        """Rows of the level below, -1 also for tiles that cannot be decoded: they are no tiles of the pyramid."""
        children = self.level.children
        assert children is not None  # only the last level has none, and nothing is below it
        bad = np.append(below.tried & ~below.there, False)  # the last one stands for -1
        return np.where(bad[children], -1, children)


def deep_attention(outs: list[MILOutput], t: int, count: int) -> np.ndarray:
    """Attention float64 [count] over the tiles of a deeper level t, the mean over folds, with sum 1.

    What a fold did not look at has its attention 0.
    """
    whole = np.zeros(count + 1)  # the last one stands for a child that is not there
    for out in outs:
        if f"looked{t}" in out.extra:
            np.add.at(whole, out.extra[f"looked{t}"].cpu().numpy(), out.extra[f"attention{t}"].cpu().double().numpy())
    return whole[:-1] / max(whole[:-1].sum(), 1e-300)
