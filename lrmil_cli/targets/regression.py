"""Regression: a number a slide (targets/README 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lrmil_cli.errors import InputError

#: Losses of a bag.
RegressionLoss = Literal["huber", "mse"]


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a number, by which heads see it: 0 is the mean, 1 a standard deviation."""

    mean: float
    sd: float

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """From the number's own unit to standard deviations from the mean."""
        return (np.asarray(values, float) - self.mean) / self.sd

    def own_unit(self, standardised: np.ndarray) -> np.ndarray:
        """What a head says, in the number's own unit."""
        return np.asarray(standardised, float) * self.sd + self.mean

    def as_json(self) -> dict[str, Any]:
        """As head and model files keep it."""
        return {"mean": self.mean, "sd": self.sd}


def fit_scale(values: Sequence[float]) -> Scale:
    """Mean and standard deviation (of n, not n - 1) of the training slides of a fold.

    Raises:
        InputError: all are equal, so that there is nothing to learn.
    """
    own = np.asarray(values, float)
    sd = float(own.std())
    if not sd > 1e-12 * max(1.0, float(np.abs(own).max(initial=0.0))):
        raise InputError(f"the number to learn is {own[0]:g} for all training slides; there is nothing to learn")
    return Scale(float(own.mean()), sd)


def regression_loss(output: Tensor, target: Tensor, loss: RegressionLoss = "huber") -> Tensor:
    """Loss of one bag, both in standard deviations: Huber's with delta 1, or the squared error.

    Args:
        output: [1] of a head; target: scalar.
    """
    error = output.float().view(()), target.float().view(())
    return F.huber_loss(*error) if loss == "huber" else F.mse_loss(*error)


def regression_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """In place of eq. 3: squared distance [1] to [1] of standardised predictions."""
    return ((student.float() - teacher.float()) ** 2).sum()


def target_bins(values: Sequence[float], bins: int = 4) -> np.ndarray:
    """int [n]: the quantile bin of each number, by which folds are stratified; fewer bins where numbers are tied."""
    own = np.asarray(values, float)
    borders = np.unique(np.quantile(own, np.arange(1, bins) / bins))
    return np.searchsorted(borders, own, side="right").astype(np.int64)


def as_tensor(scale: Scale, values: Sequence[float], device: torch.device) -> Tensor:
    """float32 [n], standardised."""
    return torch.as_tensor(scale.standardised(np.asarray(values, float)), dtype=torch.float32, device=device)
