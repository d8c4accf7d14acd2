"""Models that read some HR tiles, opened from their files: what they have besides encoder and heads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrmil_cli.errors import InputError
from lrmil_cli.heads.dmin import DMIN
from lrmil_cli.heads.zoommil import ZoomMIL
from lrmil_cli.models.model_file import Model, load_parts, model_of
from lrmil_cli.selective.asymmetric_distillation import METHODS
from lrmil_cli.selective.screener import Screener
from lrmil_cli.slides.tiles import TileSettings, settings_from_json


@dataclass
class ScreenedModel:
    """A model of AHDMIL or HDMIL.

    Attributes:
        base: with the HR encoder and the LR tiles; heads: its own; screeners: one a fold; hr_tiles: what is read of HR.
        ratio: HR tiles along the side of an LR tile; screen_px, source: of the screening images.
    """

    base: Model
    heads: list[DMIN]
    screeners: list[Screener]
    hr_tiles: TileSettings
    ratio: int
    screen_px: int
    source: str

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
        heads = [h for h in base.heads if isinstance(h, DMIN)]
        if len(heads) < len(base.heads):
            raise ValueError("heads that keep no mask")
        for n, head in enumerate(heads):
            screener = Screener(head.num_classes, int(about["branches"]))
            own = f"screen{n}."
            screener.load_state_dict({k[len(own) :]: v for k, v in tensors.items() if k.startswith(own)})
            screeners.append(screener.eval().requires_grad_(False))
        return ScreenedModel(
            base,
            heads,
            screeners,
            settings_from_json(base.header["hr_tiles"], str(path)),
            int(base.header["ratio"]),
            int(about["px"]),
            str(about["source"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise InputError(
            f"{path}: the screener does not fit this version of lrmil ({' '.join(str(e).split())[:150]}); train again"
        ) from e


@dataclass
class ZoomModel:
    """A model of ZoomMIL.

    Attributes:
        base: with the encoder, the heads and the lowest level's tiles; levels: tiles of each deeper level.
        ratios: how many of them lie along the side of a parent.
    """

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
        for head in base.heads:
            if not isinstance(head, ZoomMIL) or not len(levels) == len(ratios) == head.levels - 1:
                raise ValueError("levels")
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path}: the model's metadata is incomplete ({e}); run `lrmil distill-student` again") from e
    return ZoomModel(base, levels, ratios)


@dataclass
class EagleModel:
    """A model of EAGLE.

    Attributes:
        base: with the HR encoder, the classifiers and the LR tiles; picker: the LR model whose attention picks.
        hr_tiles: what is read of HR; ratio: HR tiles along the side of an LR tile; top: how many are read.
    """

    base: Model
    picker: Model
    hr_tiles: TileSettings
    ratio: int
    top: int

    def to(self, device: torch.device) -> EagleModel:
        self.base.to(device)
        self.picker.to(device)
        return self


def picker_parts(picker: Model) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a model of EAGLE keeps of its picker: tensors, and the metadata to rebuild it from them."""
    modules: dict[str, torch.nn.Module] = {f"encoder{n}": e.model for n, e in enumerate(picker.encoders)}
    modules |= {f"head{n}": h for n, h in enumerate(picker.heads)}
    tensors = {f"picker.{name}.{k}": v for name, module in modules.items() for k, v in module.state_dict().items()}
    about: dict[str, Any] = {
        "encoders": [e.info.as_json() for e in picker.encoders],
        "heads": [h.config() for h in picker.heads],
        "encoder_of": picker.encoder_of,
        "classes": list(picker.classes),
        **{name: picker.header[name] for name in ("target", "outputs") if name in picker.header},
    }
    return tensors, about


def load_eagle(path: str | Path) -> EagleModel:
    """Open a model file of EAGLE on the CPU, in evaluation mode.

    Raises:
        InputError: not such a file, or damaged.
    """
    base, tensors = load_parts(path, ("eagle",))
    try:
        own = {k.removeprefix("picker."): v for k, v in tensors.items() if k.startswith("picker.")}
        picker = model_of({**base.header["picker"], "tiles": base.header["tiles"]}, own, path)
        hr_tiles = settings_from_json(base.header["hr_tiles"], str(path))
        return EagleModel(base, picker, hr_tiles, int(base.header["ratio"]), int(base.header["settings"]["top"]))
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path}: the model's metadata is incomplete ({e}); run `lrmil distill-student` again") from e
