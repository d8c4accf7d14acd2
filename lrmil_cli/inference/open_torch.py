"""A model of any method, opened for torch: which predictor is its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from lrmil_cli.device import pick_device
from lrmil_cli.encoders.compiled import compile_encoder
from lrmil_cli.encoders.pipeline import BatchSize
from lrmil_cli.errors import UsageError
from lrmil_cli.evaluation.unlike_training import training_features
from lrmil_cli.files.tensors import read_tensor_header
from lrmil_cli.inference.low_resolution import LowResolutionPredictor
from lrmil_cli.inference.prediction import Predictor
from lrmil_cli.models.model_file import Model, load_model

#: Methods whose models pick the HR tiles that are read.
SCREENED = ("ahdmil", "hdmil")
ZOOM = "zoommil"
EAGLE = "eagle"


def open_torch(
    path: str,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    allow_upsample: bool = False,
    compile: bool = False,
    budget: dict[str, float] | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Predictor:
    """Load a model of any method onto a device.

    Args:
        budget: fields of :class:`lrmil_cli.inference.screened.Budget` that differ from its defaults.

    Raises:
        InputError: not a model file, or damaged.
        UsageError: a budget for a model that reads no HR tiles, or one that makes no sense.
        MachineError: the device.
    """
    where = pick_device(device)
    batch = BatchSize(batch_size, where, warn)
    method = read_tensor_header(path, "model").get("method", "lrmil")
    if method in SCREENED:
        from lrmil_cli.inference.screened import Budget, ScreenedPredictor
        from lrmil_cli.selective.model_parts import load_screened

        allowed = Budget(**(budget or {}))
        loaded = load_screened(path).to(where)
        if allow_upsample:
            loaded.base.tiles = replace(loaded.base.tiles, allow_upsample=True)
            loaded.hr_tiles = replace(loaded.hr_tiles, allow_upsample=True)
        _compile(loaded.base, loaded.hr_tiles.tile_px, where, compile)
        if allowed != Budget() and training_features(loaded.base.header, path) is not None:
            warn(
                f"{path}: with --keep-min, --keep-max or --keep-threshold other tiles are read than those of the "
                "training slides, so whether a slide is unlike these is not looked at (nor does --abstain)"
            )
        return ScreenedPredictor(path, loaded.base, where, batch, loaded, allowed)
    if budget:
        raise UsageError(
            f"--keep-min, --keep-max and --keep-threshold are for models that pick HR tiles; {path} is of method "
            f"{method}"
        )
    if method == ZOOM:
        from lrmil_cli.inference.zoomed import ZoomPredictor
        from lrmil_cli.selective.model_parts import load_zoom

        zoom = load_zoom(path).to(where)
        if allow_upsample:
            zoom.base.tiles, *zoom.levels = (replace(t, allow_upsample=True) for t in (zoom.base.tiles, *zoom.levels))
        _compile(zoom.base, zoom.base.tiles.tile_px, where, compile)
        return ZoomPredictor(path, zoom.base, where, batch, zoom)
    if method == EAGLE:
        from lrmil_cli.inference.eagle import EaglePredictor
        from lrmil_cli.selective.model_parts import load_eagle

        eagle = load_eagle(path).to(where)
        if allow_upsample:
            eagle.base.tiles, eagle.hr_tiles = (
                replace(t, allow_upsample=True) for t in (eagle.base.tiles, eagle.hr_tiles)
            )
        _compile(eagle.picker, eagle.base.tiles.tile_px, where, compile)
        _compile(eagle.base, eagle.hr_tiles.tile_px, where, compile)
        return EaglePredictor(path, eagle.base, where, batch, eagle)
    plain = load_model(path).to(where)
    if allow_upsample:
        plain.tiles = replace(plain.tiles, allow_upsample=True)
    _compile(plain, plain.tiles.tile_px, where, compile)
    return LowResolutionPredictor(path, plain, where, batch)


def _compile(model: Model, tile_px: int, where: torch.device, wanted: bool) -> None:
    if wanted:
        for encoder in model.encoders:
            compile_encoder(encoder, tile_px, where)
