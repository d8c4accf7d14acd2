"""The model file: LR encoder(s) and one head a fold in one safetensors file, and what it predicts of a slide (method 7)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.device import device_label
from lrmil_cli.encoders.embed import embed_tiles
from lrmil_cli.encoders.pipeline import BatchSize, Seconds, read_ahead, slides_ahead
from lrmil_cli.encoders.spec import build_encoder
from lrmil_cli.encoders.vit import Encoder, info_from_json
from lrmil_cli.errors import InputError
from lrmil_cli.files.header import last_digest
from lrmil_cli.files.tensors import load_tensors, save_tensors
from lrmil_cli.heads import Bag, MILHead
from lrmil_cli.heads.checkpoint import rebuild_head
from lrmil_cli.inference.prediction import Prediction, ensemble, expected_seconds
from lrmil_cli.slides.reader import without_bad
from lrmil_cli.slides.region import Region
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import TileSettings, boxes_of, find_tiles, settings_from_json


@dataclass
class Model:
    """A deployed classifier.

    Attributes:
        encoders: one, or one a fold; heads: one a fold; encoder_of: which encoder each head reads.
        classes: names in logit order; tiles: how a slide is tiled for it.
    """

    header: dict[str, Any]
    encoders: list[Encoder]
    heads: list[MILHead]
    encoder_of: list[int]
    classes: tuple[str, ...]
    tiles: TileSettings

    def to(self, device: torch.device) -> Model:
        for module in (*self.encoders, *self.heads):
            module.to(device)
        return self


@dataclass
class OnDevice:
    """What predictors by torch share, whatever their method.

    Attributes:
        path: of the model file; base: its encoders, heads and lowest tiles; where: the device; batch: tiles encoded at a time.
    """

    path: str
    base: Model
    where: torch.device
    batch: BatchSize

    @property
    def header(self) -> dict[str, Any]:
        return self.base.header

    @property
    def classes(self) -> tuple[str, ...]:
        return self.base.classes

    @property
    def tiles(self) -> TileSettings:
        return self.base.tiles

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": last_digest(self.header), "tiles": self.tiles.as_json()}

    @property
    def device(self) -> str:
        return device_label(self.where)

    @property
    def ahead(self) -> int:
        return slides_ahead(self.where)


def save_model(
    path: str | Path, header: dict[str, Any], encoders: list[Encoder], heads: list[MILHead], encoder_of: list[int], rest: dict[str, Tensor] | None = None
) -> None:
    """Write a model file; ``rest`` are the tensors that a method has besides.

    Raises:
        MachineError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = dict(rest or {})
    for e, encoder in enumerate(encoders):
        tensors |= {f"encoder{e}.{k}": v for k, v in encoder.weights().items()}
    for h, head in enumerate(heads):
        tensors |= {f"head{h}.{k}": v for k, v in head.state_dict().items()}
    about = {"encoders": [e.info.as_json() for e in encoders], "heads": [h.config() for h in heads], "encoder_of": encoder_of}
    # safetensors refuses tensors that share memory; two folds never do, but two names of one encoder would.
    save_tensors(path, {k: v.clone() for k, v in tensors.items()}, {**header, **about})


def load_model(path: str | Path) -> Model:
    """Open a model file of LRMIL on the CPU, in evaluation mode.

    Raises:
        InputError: not a model file, of another method, or damaged.
    """
    return load_parts(path, ("lrmil",))[0]


def load_parts(path: str | Path, methods: Collection[str] | None = None) -> tuple[Model, dict[str, Tensor]]:
    """Encoders and heads of a model file of any of ``methods`` (None: of all there are), and all its tensors.

    Raises:
        InputError: as :func:`load_model`.
    """
    header, tensors = load_tensors(path, "model")
    method = header.get("method", "lrmil")
    if methods is not None and method not in methods:
        raise InputError(f"{path}: a model of method {method}; here one of {' or '.join(methods)} is needed (distill-student --method)")

    def part(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        infos, configs, of = header["encoders"], header["heads"], [int(i) for i in header["encoder_of"]]
        classes, tiles = tuple(header["classes"]), header["tiles"]
        if len(of) != len(configs) or not of or not all(0 <= i < len(infos) for i in of):
            raise ValueError("heads and encoders do not fit")
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path}: the model's metadata is incomplete ({e}); run `lrmil distill-student` again") from e
    encoders = [build_encoder(info_from_json(i, str(path)), part(f"encoder{n}."), str(path)).eval().requires_grad_(False)
                for n, i in enumerate(infos)]
    heads = [rebuild_head(c, part(f"head{n}."), str(path)) for n, c in enumerate(configs)]
    for n, head in zip(of, heads):
        if head.in_dim != encoders[n].embed_dim or head.num_classes != len(classes):
            raise InputError(f"{path}: head and encoder do not fit; run `lrmil distill-student` again")
    return Model(header, encoders, heads, of, classes, settings_from_json(tiles, str(path))), tensors


def predict_bags(model: Model, bags: list[Bag]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Ensemble over folds: probabilities [F, C], mean attention [N], mean class scores [C, N] or None.

    Args:
        bags: one for each encoder of the model.
    """
    with torch.inference_mode():
        outs = [head(*bags[n]) for n, head in zip(model.encoder_of, model.heads)]
    stacked = (torch.stack([o.logits for o in outs]), torch.stack([o.attention for o in outs]),
               None if any(o.class_scores is None for o in outs) else torch.stack([o.class_scores for o in outs]))
    return ensemble(*(None if v is None else v.float().cpu().numpy() for v in stacked))


def predict_slide(
    model: Model, slide: Slide, *, device: torch.device, batch: BatchSize, region: Region | None = None,
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
            features = embed_tiles(model.encoders, pixels, len(boxes), device=device, batch=batch, seconds=seconds, progress=step)
    rows = without_bad(len(boxes), bad, slide.path)
    clock = time.perf_counter()
    corners = torch.from_numpy(boxes[rows, :2])
    per_fold, attention, class_scores = predict_bags(model, [Bag(torch.from_numpy(f[rows]), corners).to(device) for f in features])
    seconds.add("head", time.perf_counter() - clock)
    return Prediction(per_fold.mean(0), per_fold, attention, class_scores, {k: v[rows] for k, v in tiles.items()}, seconds.rounded(),
                      {"tiles_read": {"lr": len(rows)}, "bad_tiles": len(bad), "runtime": "torch"})


def plan_slide(model: Model, slide: Slide, *, device: torch.device, batch: BatchSize, region: Region | None = None) -> tuple[int, float]:
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
