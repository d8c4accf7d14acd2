"""What predictors by torch share, whatever their method: the model on its device, the ensemble over its folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.device import device_label
from lrmil_cli.encoders.pipeline import BatchSize, slides_ahead
from lrmil_cli.files.header import last_digest
from lrmil_cli.heads import Bag
from lrmil_cli.inference.prediction import ensemble
from lrmil_cli.models.model_file import Model
from lrmil_cli.slides.tiles import TileSettings


@dataclass
class TorchPredictor:
    """The part of a :class:`lrmil_cli.inference.prediction.Predictor` that does not depend on the method.

    Attributes:
        path: of the model file; base: its encoders, heads and lowest tiles.
        where: the device; batch: tiles encoded at a time.
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


def ensemble_bags(model: Model, bags: list[Bag]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Ensemble over folds: what each says [F, C], mean attention [N], mean class scores [C, N] or None.

    Args:
        bags: one for each encoder of the model.
    """
    with torch.inference_mode():
        outs = [head(*bags[n]) for n, head in zip(model.encoder_of, model.heads)]
    rows = [o.class_scores for o in outs if o.class_scores is not None]
    return ensemble(
        model.header,
        stacked([o.logits for o in outs]),
        stacked([o.attention for o in outs]),
        stacked(rows) if len(rows) == len(outs) else None,
    )


def stacked(parts: Sequence[Tensor]) -> np.ndarray:
    """float32 array [F, ...] of one tensor a fold."""
    return torch.stack(list(parts)).float().cpu().numpy()
