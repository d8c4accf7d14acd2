"""Prediction by ZoomMIL: the lowest level whole, then only the children of the tiles that were picked, level by level."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lrmil_cli.distill.model import Model, OnDevice, load_parts
from lrmil_cli.distill.pairs import find_children
from lrmil_cli.distill.prediction import Prediction, Progress, attention_rows, ensemble, expected_seconds
from lrmil_cli.encoders.embed import embed_tiles
from lrmil_cli.encoders.pipeline import Seconds, read_ahead
from lrmil_cli.errors import InputError
from lrmil_cli.heads import PyramidBag
from lrmil_cli.slides.reader import without_bad
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import TileSettings, boxes_of, find_tiles, settings_from_json


@dataclass
class ZoomModel:
    """``base`` with the encoder, the heads and the lowest level's tiles; the tiles of the deeper ``levels``, and tiles along a side of a parent."""

    base: Model
    levels: list[TileSettings]
    ratios: list[int]

    def to(self, device: torch.device) -> ZoomModel:
        self.base.to(device)
        return self


def load_zoom(path: str | Path) -> ZoomModel:
    """Open a model file of ZoomMIL on the CPU, in evaluation mode.

    Raises:
        InputError: not such a file, or damaged.
    """
    base, _ = load_parts(path, ("zoommil",))
    try:
        levels = [settings_from_json(t, str(path)) for t in base.header["level_tiles"]]
        ratios = [int(r) for r in base.header["ratios"]]
        if not len(levels) == len(ratios) == base.heads[0].levels - 1:
            raise ValueError("levels")
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise InputError(f"{path}: the model's metadata is incomplete ({e}); run `lrmil distill-student` again") from e
    return ZoomModel(base, levels, ratios)


@dataclass
class Level:
    """Tiles of one level of a slide: boxes int64 [N, 4] in level-0 px, the pyramid level to read, and ``children`` [N, r * r], rows of the next."""

    tiles: dict[str, np.ndarray]
    boxes: np.ndarray
    read_from: int
    children: np.ndarray | None = None


def find_levels(slide: Slide, model: ZoomModel, region: Region | None) -> list[Level]:
    """All tiles that might be read, by the low-resolution tissue mask: the pyramid that the pairs tables of the slide would give.

    Raises:
        NoTissueError: the lowest level has none. InputError: the slide is damaged, or too coarse.
    """
    own = model.base.tiles
    tiles, level, tissue = find_tiles(slide, own, region)
    out = [Level(tiles, boxes_of(tiles), level)]
    for settings, ratio in zip(model.levels, model.ratios):
        above = out[-1]
        found = find_children(slide, above.tiles, settings, ratio, tissue if settings.tissue == own.tissue else None)
        above.children = np.full((len(above.boxes), ratio**2), -1, np.int64)
        above.children[found.parent, found.cell] = np.arange(len(found.parent))
        out.append(Level(found.tiles, boxes_of(found.tiles), found.level))
    return out


@dataclass
class ZoomPredictor(OnDevice):
    """ZoomMIL. All folds look at the same tiles: what one of them picks is read once."""

    model: ZoomModel

    def plan(self, slide: Slide, region: Region | None) -> tuple[int, float]:
        clock = time.perf_counter()
        levels = find_levels(slide, self.model, region)
        tissue = time.perf_counter() - clock

        def encode(some: np.ndarray) -> None:
            with read_ahead(slide, some, levels[0].read_from, self.tiles.tile_px, device=self.where, batch=self.batch) as pixels:
                embed_tiles(self.model.base.encoders, pixels, len(some), device=self.where, batch=self.batch)

        n, seconds = expected_seconds(levels[0].boxes, self.batch.now, 0.0, encode)
        deeper, folds = 0, len(self.model.base.heads)
        for level, ratio in zip(levels[1:], self.model.ratios):
            deeper += min(len(level.boxes), folds * self.model.base.heads[0].k * ratio**2)
        return n + deeper, tissue + seconds * (n + deeper) / n

    def predict(self, slide: Slide, region: Region | None, progress: Progress) -> Generator[None, None, Prediction]:
        clock = time.perf_counter()
        levels = find_levels(slide, self.model, region)
        seconds = {"tissue": time.perf_counter() - clock}
        yield
        heads, width = self.model.base.heads, self.model.base.encoders[0].embed_dim
        children = tuple(torch.from_numpy(level.children).to(self.where) for level in levels[:-1])
        features: list[torch.Tensor] = []
        read: list[np.ndarray] = []
        bad_tiles, outs = 0, []
        wanted = np.arange(len(levels[0].boxes))
        for t, level in enumerate(levels):
            px = (self.tiles, *self.model.levels)[t].tile_px
            own, bad = Seconds(), []
            with read_ahead(slide, level.boxes[wanted], level.read_from, px, device=self.where, batch=self.batch, bad=bad) as pixels, progress() as step:
                (found,) = embed_tiles(self.model.base.encoders, pixels, len(wanted), device=self.where, batch=self.batch, seconds=own, progress=step)
            rows = np.delete(np.arange(len(wanted)), bad) if t else without_bad(len(wanted), bad, slide.path)
            bad_tiles += len(bad)
            whole = np.zeros((len(level.boxes), width), np.float32)
            whole[wanted[rows]] = found[rows]
            features.append(torch.from_numpy(whole).to(self.where))
            read.append(wanted[rows])
            seconds |= {f"{name}_{t}": round(v, 3) for name, v in own.phases.items()}
            if bad:  # what could not be decoded is no tile of the pyramid
                gone = torch.from_numpy(np.setdiff1d(wanted, wanted[rows])).to(self.where)
                if t:
                    children = (*children[: t - 1], torch.where(torch.isin(children[t - 1], gone), -1, children[t - 1]), *children[t:])
            clock = time.perf_counter()
            keep = torch.from_numpy(read[0]).to(self.where)
            pyramid = PyramidBag((features[0][keep], *features[1:]), (children[0][keep], *children[1:]))
            with torch.inference_mode():
                outs = [head(*pyramid) for head in heads]
            seconds["head"] = seconds.get("head", 0.0) + time.perf_counter() - clock
            if t + 1 < len(levels):
                picked = [o.extra[f"selected{t}"] for o in outs if f"selected{t}" in o.extra]
                if not picked:
                    break
                picked = torch.unique(torch.cat(picked))
                kin = pyramid.children[t][picked] if t == 0 else children[t][picked]
                wanted = torch.unique(kin[kin >= 0]).cpu().numpy()
        per_fold, attention, _ = ensemble(*(torch.stack([getattr(o, k) for o in outs]).float().cpu().numpy() for k in ("logits", "attention")), None)
        names = ["lr", "hr"] if len(levels) == 2 else ["lr", "mid", "hr"]
        counts = {name: len(read[t]) if t < len(read) else 0 for t, name in enumerate(names)}
        tables = {name: attention_rows(level.boxes[rows], np.full(len(rows), 1 / len(rows)))
                  for name, level, rows in zip(names[1:], levels[1:], read[1:]) if len(rows)}
        record = {"tiles_read": counts, "candidates": len(levels[-1].boxes), "bad_tiles": bad_tiles, "runtime": "torch"}
        return Prediction(per_fold.mean(0), per_fold, attention, None, {k: v[read[0]] for k, v in levels[0].tiles.items()},
                          {k: round(v, 3) for k, v in seconds.items()}, record, tables)
