"""Models that read some HR tiles, opened from their files: what they have besides encoder and heads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lrmil_cli.errors import InputError
from lrmil_cli.heads.dmin import DMIN
from lrmil_cli.models.model_file import Model, load_parts
from lrmil_cli.selective.asymmetric_distillation import (
    METHODS,
)
from lrmil_cli.selective.screener import Screener
from lrmil_cli.slides.tiles import TileSettings, settings_from_json


@dataclass
class ScreenedModel:
    """A model of AHDMIL or HDMIL: ``base`` with the HR encoder, DMIN heads and LR tiles; a screener a fold; the HR tiles."""

    base: Model
    screeners: list[Screener]
    hr_tiles: TileSettings
    ratio: int
    screen_px: int
    source: str

    @property
    def heads(self) -> list[DMIN]:
        return self.base.heads

    def to(self, device: torch.device) -> ScreenedModel:
        self.base.to(device)
        for s in self.screeners:
            s.to(device)
        return self


def load_screened(path: str | Path) -> ScreenedModel:
    """Open a model file of AHDMIL or HDMIL on the CPU, in evaluation mode.

    Raises:
        InputError: not such a file, or damaged.
    """
    base, tensors = load_parts(path, tuple(METHODS))
    try:
        about, screeners = base.header["screen"], []
        for n in range(len(base.heads)):
            screener = Screener(len(base.classes), int(about["branches"]))
            screener.load_state_dict(
                {k[len(f"screen{n}.") :]: v for k, v in tensors.items() if k.startswith(f"screen{n}.")}
            )
            screeners.append(screener.eval().requires_grad_(False))
        return ScreenedModel(
            base,
            screeners,
            settings_from_json(base.header["hr_tiles"], str(path)),
            int(base.header["ratio"]),
            int(about["px"]),
            str(about["source"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise InputError(
            f"{path}: the screener does not fit this version of lrmil ({' '.join(str(e).split())[:160]})"
        ) from e


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
