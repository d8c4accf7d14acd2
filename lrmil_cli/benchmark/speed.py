"""HR against LR: the phases of a prediction, each on its own clock, beside what the encoder alone would take."""

from __future__ import annotations

import tempfile
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
from lrmil_cli.encoders.pipeline import BatchSize
from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.files.graphs import read_graph, write_graph
from lrmil_cli.files.header import make_header
from lrmil_cli.files.tensors import read_tensor_header
from lrmil_cli.heads import build_head
from lrmil_cli.inference.low_resolution import LowResolutionPredictor
from lrmil_cli.inference.plain import PlainPredictor, encode
from lrmil_cli.inference.runtime import graph_paths
from lrmil_cli.models.model_file import Model
from lrmil_cli.progress import phase
from lrmil_cli.slides.slide import Slide, open_slide
from lrmil_cli.slides.tiles import TileSettings, boxes_of, find_tiles

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
    header = make_header("model", settings={}, history=[], tiles=settings.as_json())
    return Model(header, [encoder], [head], [0], ("a", "b"), settings)


def in_torch(
    model: Model,
    settings: TileSettings,
    device: torch.device,
    batch_size: int | None,
    say: Callable[[str], None] = lambda text: None,
) -> PlainPredictor:
    """What predicts with a model, on the device, in tiles of these settings."""
    return LowResolutionPredictor(
        "", replace(model, tiles=settings).to(device), device, BatchSize(batch_size, device, say)
    )


def in_onnx(
    model: Model, settings: TileSettings, path: str | None, *, int8: bool, batch_size: int | None
) -> PlainPredictor:
    """The same by ONNX: the graphs beside the model's file, or, where it stands in none, made for once.

    Raises:
        as :func:`lrmil_cli.inference.onnx_predictor.open_graphs`,
        :func:`lrmil_cli.inference.onnx_export.export_model`.
    """
    from lrmil_cli.inference.onnx_predictor import open_graphs

    def opened(path: str, header: dict[str, Any] | None) -> PlainPredictor:
        graphs = graph_paths(path, int8=int8)
        found = open_graphs(*graphs, path, model=header, batch_size=batch_size, allow_upsample=False)
        return replace(found, tiles=settings)

    if path is not None:
        return opened(path, read_tensor_header(path, "model"))
    from lrmil_cli.inference.onnx_export import export_model, quantise

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.safetensors")
        graph, _ = export_model(model, path, "")
        if int8:
            write_graph(graph_paths(path, int8=True)[0], quantise(graph), read_graph(graph)[0])
        return opened(path, None)


def measure(
    path: str | Path,
    sides: dict[str, PlainPredictor],
    *,
    device: torch.device,
    workers: int | None,
    slide_mpp: float | None,
    most: int | None,
    rounds: int,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Side]:
    """Measure the sides of a slide in turn, ``rounds`` times after a warm-up: of each the round of the median total.

    Args:
        sides: name -> what predicts it, on the device; most: tiles measured at most.

    Raises:
        NoTissueError, InputError: the slide cannot be read as a side wants it.
    """
    on_cpu = device.type == "cpu"
    most = most or (MOST_ON_CPU if on_cpu else MOST_ON_GPU)
    memory: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in sides}
    for name, side in sides.items():
        with open_slide(path, slide_mpp=slide_mpp, workers=workers) as slide:
            boxes, level = _boxes(slide, side.tiles)
            some = middle_part(boxes, most)
            # Read to memory for the floor; the file is in the system's cache from here on.
            with side.reading(slide, some, level, []) as batches:
                for _, pixels in batches:  # numbered as they come, so that any first ones are a whole
                    start = sum(len(rows) for rows, _ in memory[name])
                    memory[name].append((np.arange(start, start + len(pixels)), pixels.copy()))
        say(f"{name}: {len(boxes)} tiles, {len(some)} of them measured")
    for name, warm in memory.items():
        for _ in range(2 if on_cpu else 12):  # a GPU's batch size is found meanwhile
            _floor(sides[name], warm[:1] if on_cpu else warm)
    seen: dict[str, list[Side]] = {name: [] for name in sides}
    with phase("measuring", rounds, "round") as told:
        for turn in range(rounds):
            for name, side in sides.items():
                told.item = name
                seen[name].append(_once(path, side, _floor(side, memory[name]), workers, slide_mpp, most))
                say(f"round {turn + 1} of {rounds}, {name}: {seen[name][-1].total:.1f} s")
            told.advance()
    return {name: sorted(own, key=lambda s: s.total)[(len(own) - 1) // 2] for name, own in seen.items()}


def _boxes(slide: Slide, settings: TileSettings) -> tuple[np.ndarray, int]:
    tiles, level, _ = find_tiles(slide, settings)
    return boxes_of(tiles), level


def _floor(side: PlainPredictor, pieces: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Seconds a tile of the encoder alone."""
    count = sum(len(rows) for rows, _ in pieces)
    began = time.perf_counter()
    side.encode_for([side], Prefetch(pieces, 0), count, {})
    return (time.perf_counter() - began) / count


def _once(
    path: str | Path, side: PlainPredictor, floor: float, workers: int | None, slide_mpp: float | None, most: int
) -> Side:
    """One prediction, with at most ``most`` tiles encoded; floor: seconds a tile."""
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    with open_slide(path, slide_mpp=slide_mpp, workers=workers) as slide:
        boxes, level = _boxes(slide, side.tiles)
        tissue = time.perf_counter() - began
        some = middle_part(boxes, most)
        features = encode(side, slide, some, level, seconds)
    began = time.perf_counter()
    side.classify([np.resize(f, (len(boxes), f.shape[1])) for f in features], boxes)
    scale, head = len(boxes) / len(some), time.perf_counter() - began
    phases = {"tissue": tissue, **{k: seconds[k] * scale for k in ("read", "encode")}, "head": head}
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
