"""HR against LR: the phases of a prediction, each on its own clock, beside what the encoder alone would take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrmil_cli.ahead import Prefetch
from lrmil_cli.benchmark.readers import middle_part
from lrmil_cli.device import autocast, synchronize
from lrmil_cli.encoders.embed import embed_tiles
from lrmil_cli.encoders.pipeline import BatchSize, Seconds, read_ahead
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.heads import Bag, build_head
from lrmil_cli.inference.torch_predictor import ensemble_bags
from lrmil_cli.models.model_file import Model
from lrmil_cli.progress import phase
from lrmil_cli.slides.reader import iter_batches
from lrmil_cli.slides.slide import Slide, open_slide
from lrmil_cli.slides.tiles import TileSettings, boxes_of, find_tiles
from lrmil_cli.units import Mpp

#: Tiles that are measured at most, unless the user says otherwise; the rest is extrapolated.
MOST_ON_CPU, MOST_ON_GPU = 128, 2048
#: Side of the matrices whose product stands for what the device can do.
MATRIX_SIDE = 2048


@dataclass(frozen=True)
class Side:
    """One slide at one resolution, seconds without imports and without loading the model.

    Attributes:
        tiles: of the slide; measured: of these.
        tissue: opening the slide, tissue and grid; head: on all tiles.
        read, encode: extrapolated from the measured tiles.
        encoder_floor: the encoder alone, with the tiles in memory, extrapolated likewise.
    """

    tiles: int
    measured: int
    tissue: float
    read: float
    encode: float
    head: float
    total: float
    encoder_floor: float


def bare_model(encoder: Encoder, settings: TileSettings) -> Model:
    """A model with an untrained head, since its weights do not change what it costs."""
    head = build_head("abmil", encoder.embed_dim, 2).eval().requires_grad_(False)
    return Model({}, [encoder], [head], [0], ("a", "b"), settings)


def measure(
    path: str | Path,
    models: dict[str, Model],
    sides: dict[str, TileSettings],
    *,
    device: torch.device,
    batch_size: int | None,
    workers: int | None,
    slide_mpp: float | None,
    most: int | None,
    rounds: int,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Side]:
    """Measure the sides of a slide in turn, ``rounds`` times after a warm-up: of each the round of the median total.

    Args:
        models: of each side, on the device; sides: name -> how the slide is tiled; most: tiles measured at most.

    Raises:
        NoTissueError, InputError: the slide cannot be read as a side wants it.
    """
    most = most or (MOST_ON_CPU if device.type == "cpu" else MOST_ON_GPU)
    batch = BatchSize(batch_size, device, say)
    memory = {}
    for name, settings in sides.items():
        with open_slide(path, slide_mpp=slide_mpp, workers=workers) as slide:
            boxes, level = _boxes(slide, settings)
            some = middle_part(boxes, most)
            # Read to memory for the floor; the file is in the system's cache from here on.
            memory[name] = [(r, p.copy()) for r, p in iter_batches(slide, some, level, settings.tile_px, batch.piece)]
        say(f"{name}: {len(boxes)} tiles, {len(some)} of them measured")
    for name, warm in memory.items():
        for _ in range(2 if device.type == "cpu" else 12):  # a GPU's batch size is found meanwhile
            _floor(models[name], warm if device.type != "cpu" else warm[:1], device, batch)
    seen: dict[str, list[Side]] = {name: [] for name in sides}
    with phase("measuring", rounds, "round") as told:
        for turn in range(rounds):
            for name, settings in sides.items():
                told.item = name
                floor = _floor(models[name], memory[name], device, batch)
                seen[name].append(_once(path, models[name], settings, floor, device, batch, workers, slide_mpp, most))
                say(f"round {turn + 1} of {rounds}, {name}: {seen[name][-1].total:.1f} s")
            told.advance()
    return {name: sorted(own, key=lambda s: s.total)[(len(own) - 1) // 2] for name, own in seen.items()}


def _boxes(slide: Slide, settings: TileSettings) -> tuple[np.ndarray, int]:
    tiles, level, _ = find_tiles(slide, settings)
    return boxes_of(tiles), level


def _floor(model: Model, pieces: list[tuple[np.ndarray, np.ndarray]], device: torch.device, batch: BatchSize) -> float:
    """Seconds a tile of the encoder alone."""
    # Rows count from 0 where only some of the pieces are taken.
    *starts, count = np.cumsum([0, *(len(r) for r, _ in pieces)]).tolist()
    in_memory = Prefetch([(np.arange(len(r)) + start, p) for (r, p), start in zip(pieces, starts)], 0)
    began = time.perf_counter()
    embed_tiles(model.encoders, in_memory, count, device=device, batch=batch)
    synchronize(device)
    return (time.perf_counter() - began) / count


def _once(
    path: str | Path,
    model: Model,
    settings: TileSettings,
    floor: float,
    device: torch.device,
    batch: BatchSize,
    workers: int | None,
    slide_mpp: float | None,
    most: int,
) -> Side:
    """One prediction, with at most ``most`` tiles encoded; floor: seconds a tile."""
    seconds = Seconds()
    began = time.perf_counter()
    with open_slide(path, slide_mpp=slide_mpp, workers=workers) as slide:
        boxes, level = _boxes(slide, settings)
        seconds.add("tissue", time.perf_counter() - began)
        some = middle_part(boxes, most)
        with read_ahead(slide, some, level, settings.tile_px, device=device, batch=batch) as tiles:
            features = embed_tiles(model.encoders, tiles, len(some), device=device, batch=batch, seconds=seconds)
    began = time.perf_counter()
    corners = torch.from_numpy(boxes[:, :2].copy())
    bags = [Bag(torch.from_numpy(np.resize(f, (len(boxes), f.shape[1]))), corners).to(device) for f in features]
    ensemble_bags(model, bags)
    seconds.add("head", time.perf_counter() - began)
    scale = len(boxes) / len(some)
    phases = {**seconds.phases, "read": seconds.phases["read"] * scale, "encode": seconds.phases["encode"] * scale}
    return Side(len(boxes), len(some), **phases, total=sum(phases.values()), encoder_floor=floor * len(boxes))


def arithmetic(model: Model, device: torch.device, *, batch_size: int, tile_px: int, rounds: int) -> dict[str, float]:
    """What the encoder makes of the device's arithmetic: 10^9 operations a second of it and of a large matrix product.

    Taken in turn, medians; see :func:`operations`. On a CPU in fp32; on a GPU both by autocast.

    Returns:
        ``encoder``, ``matrix_product``, and ``share``, the first in the second.
    """
    tiles = torch.randint(0, 256, (batch_size, tile_px, tile_px, 3), dtype=torch.uint8, device=device)
    a, b = torch.randn(2, MATRIX_SIDE, MATRIX_SIDE, device=device)
    works = {"encoder": lambda: [e(tiles) for e in model.encoders], "matrix_product": lambda: a @ b}
    rates: dict[str, list[float]] = {name: [] for name in works}
    with torch.inference_mode(), autocast(device):
        counts = {name: operations(work) for name, work in works.items()}
        for _ in range(max(5, rounds)):
            for name, work in works.items():
                synchronize(device)
                began = time.perf_counter()
                work()
                synchronize(device)
                rates[name].append(counts[name] / (time.perf_counter() - began) / 1e9)
    share = np.median([e / m for e, m in zip(rates["encoder"], rates["matrix_product"])])
    return {**{name: float(np.median(own)) for name, own in rates.items()}, "share": float(share)}


def operations(work: Callable[[], Any]) -> int:
    """Operations of matrix products and convolutions in ``work``; a multiplication with its addition counts as two."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # torch counts the attention of a CPU only where it is done as plain matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


def as_record(sides: dict[str, Side]) -> dict[str, Any]:
    """What ``--json`` prints of the sides ``lr`` and ``hr``; seconds."""
    out: dict[str, Any] = {
        name: {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(s).items()} for name, s in sides.items()
    }
    lr, hr = sides["lr"], sides["hr"]
    return {
        **out,
        "ratio": hr.total / lr.total,
        "tile_ratio": hr.tiles / lr.tiles,
        "lr_overhead": lr.total / lr.encoder_floor,
        "hr_overhead": hr.total / hr.encoder_floor,
    }


def side_settings(base: TileSettings, hr_mpp: float) -> dict[str, TileSettings]:
    """The two ways to tile the slide."""
    return {"lr": base, "hr": replace(base, mpp=Mpp(hr_mpp))}
