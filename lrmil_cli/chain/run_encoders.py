"""The encoders of a run, loaded to know what a tile costs on either side (chain/README 4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from lrmil_cli.chain.plan import Settings
from lrmil_cli.device import autocast, pick_device, synchronize
from lrmil_cli.distill.small_student import load_student
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import Encoder


def run_encoders(settings: Settings, device: torch.device) -> tuple[Encoder, Encoder]:
    """The HR encoder, and what becomes the LR encoder: the same, or ``--student``.

    Raises:
        UsageError, InputError, MachineError: as what loads them in the steps.
    """
    own: dict[str, Any] = settings.of("train-teacher")
    stage1: dict[str, Any] = settings.of("distill-encoder")
    px = tile_px(settings)
    high = load_encoder(
        settings.encoder,
        tile_px=px,
        input_size=own.get("input-size"),
        embedding=own.get("embedding"),
        random_init=own.get("random-init", False),
    ).to(device)
    if "student" not in stage1:
        return high, high
    sides = settings.of("tile-hr").get("mpp", 0.5), settings.of("tile-lr").get("mpp", 2.0)
    low = load_student(
        stage1["student"],
        high,
        tile_px=px,
        ratio=round(float(str(sides[1])) / float(str(sides[0]))),
        input_size=stage1.get("student-input-size"),
        random_init=stage1.get("random-init", False),
        seed=stage1.get("seed", 0),
        allow_fractional=stage1.get("allow-fractional-regions", False),
        warn=lambda text: None,
    )
    return high, low.to(device)


def tile_px(settings: Settings) -> int:
    """Side of the tiles of a run."""
    return int(str(settings.of("tile-hr").get("tile-px", 256)))


def student_share(settings: Settings) -> float:
    """What a tile costs by the LR encoder, of what it costs by the HR encoder; 1 for a copy, and nothing is loaded."""
    if "student" not in settings.of("distill-encoder"):
        return 1.0
    device = pick_device(str(settings.of("distill-encoder").get("device", "auto")))
    high, low = (seconds_a_tile(e, tile_px(settings), device) for e in run_encoders(settings, device))
    return low / high


def seconds_a_tile(encoder: Encoder, px: int, device: torch.device) -> float:
    """Seconds that the encoder takes for a tile, of a batch of made-up ones; the first batch does not count."""
    batch = 16 if device.type == "cpu" else 64
    tiles = torch.randint(0, 256, (batch, px, px, 3), dtype=torch.uint8, device=device)
    with torch.inference_mode(), autocast(device):
        return second_time(lambda: encoder(tiles), device) / batch


def second_time(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of ``work`` when it is done again."""
    work()
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started
