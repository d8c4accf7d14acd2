"""The model file: LR encoder(s) and one head a fold in one safetensors file, and what it predicts of a slide (method 7)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.encoders.embed import Seconds, embed_tiles
from lrmil_cli.encoders.spec import build_encoder
from lrmil_cli.encoders.vit import Encoder, info_from_json
from lrmil_cli.errors import InputError
from lrmil_cli.files.tensors import load_tensors, save_tensors
from lrmil_cli.heads import Bag, MILHead
from lrmil_cli.heads.checkpoint import rebuild_head
from lrmil_cli.slides.slide import Slide
from lrmil_cli.slides.tiles import TileSettings, settings_from_json, tile_slide


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
class Prediction:
    """Of one slide: ``probabilities`` [C] (mean over folds), ``per_fold`` [F, C], ``attention`` [N] (sums to 1), and
    ``class_scores`` [C, N] where the head has them; ``tiles`` is the DataFrame they belong to."""

    probabilities: np.ndarray
    per_fold: np.ndarray
    attention: np.ndarray
    class_scores: np.ndarray | None
    tiles: Any
    seconds: dict[str, float]


def save_model(path: str | Path, header: dict[str, Any], encoders: list[Encoder], heads: list[MILHead], encoder_of: list[int]) -> None:
    """Write a model file.

    Raises:
        MachineError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for e, encoder in enumerate(encoders):
        tensors |= {f"encoder{e}.{k}": v for k, v in encoder.weights().items()}
    for h, head in enumerate(heads):
        tensors |= {f"head{h}.{k}": v for k, v in head.state_dict().items()}
    about = {"encoders": [e.info.as_json() for e in encoders], "heads": [h.config() for h in heads], "encoder_of": encoder_of}
    # safetensors refuses tensors that share memory; two folds never do, but two names of one encoder would.
    save_tensors(path, {k: v.clone() for k, v in tensors.items()}, {**header, **about})


def load_model(path: str | Path) -> Model:
    """Open a model file on the CPU, in evaluation mode.

    Raises:
        InputError: not a model file, or damaged.
    """
    header, tensors = load_tensors(path, "model")

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
    return Model(header, encoders, heads, of, classes, settings_from_json(tiles, str(path)))


def predict_bags(model: Model, bags: list[Bag]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Ensemble over folds: probabilities [F, C], mean attention [N], mean class scores [C, N] or None.

    Args:
        bags: one for each encoder of the model.
    """
    with torch.inference_mode():
        outs = [head(*bags[n]) for n, head in zip(model.encoder_of, model.heads)]
    per_fold = np.stack([torch.softmax(o.logits.double(), 0).cpu().numpy() for o in outs])
    attention = np.mean([o.attention.double().cpu().numpy() for o in outs], axis=0)
    rows = [o.class_scores for o in outs]
    class_scores = None if any(r is None for r in rows) else np.mean([r.double().cpu().numpy() for r in rows], axis=0)
    return per_fold, attention / attention.sum(), class_scores


def predict_slide(
    model: Model, slide: Slide, *, device: torch.device, batch_size: int = 16, progress: Callable[[int], None] = lambda n: None
) -> Prediction:
    """Classify one slide from its LR tiles alone.

    Raises:
        NoTissueError: no tile has enough tissue.
        InputError: the slide is damaged, or coarser than the model's mpp.
    """
    seconds = Seconds()
    clock = time.perf_counter()
    tiles, level, _ = tile_slide(slide, model.tiles)
    seconds.add("tissue", time.perf_counter() - clock)
    corners = torch.from_numpy(tiles[["x", "y"]].to_numpy(np.int64, copy=True))
    bags = [
        Bag(torch.from_numpy(embed_tiles(e, slide, tiles, level, model.tiles.tile_px, device=device, batch_size=batch_size,
                                         seconds=seconds, progress=progress)), corners).to(device)
        for e in model.encoders
    ]
    clock = time.perf_counter()
    per_fold, attention, class_scores = predict_bags(model, bags)
    seconds.add("head", time.perf_counter() - clock)
    return Prediction(per_fold.mean(0), per_fold, attention, class_scores, tiles, seconds.rounded())


def plan_slide(model: Model, slide: Slide, *, device: torch.device, batch_size: int = 16) -> tuple[int, float]:
    """Tiles of a slide, and the seconds that :func:`predict_slide` would take: the tissue in full, and two batches of tiles from all
    over the slide stand for the rest.

    Raises:
        NoTissueError, InputError: as :func:`predict_slide`, as far as those tiles show it.
    """
    clock = time.perf_counter()
    tiles, level, _ = tile_slide(slide, model.tiles)
    tissue = time.perf_counter() - clock
    some = tiles.iloc[np.unique(np.linspace(0, len(tiles) - 1, 2 * batch_size).astype(int))]
    first, rest = some.iloc[:batch_size], some.iloc[batch_size:]
    clock = time.perf_counter()
    for e in model.encoders:
        embed_tiles(e, slide, first, level, model.tiles.tile_px, device=device, batch_size=batch_size)
    seconds, done = time.perf_counter() - clock, len(first)
    if len(rest):  # the first batch of a run sets things up; the second is the better measure
        clock = time.perf_counter()
        for e in model.encoders:
            embed_tiles(e, slide, rest, level, model.tiles.tile_px, device=device, batch_size=batch_size)
        seconds, done = time.perf_counter() - clock, len(rest)
    return len(tiles), tissue + seconds / done * len(tiles)


def percentiles(attention: np.ndarray) -> np.ndarray:
    """Rank of each tile within its slide as 0..100 (ties share their mean rank); 100 for a single tile."""
    from scipy.stats import rankdata

    n = len(attention)
    return np.full(1, 100.0) if n == 1 else (rankdata(attention) - 1) / (n - 1) * 100
