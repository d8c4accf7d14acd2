"""Regression: a number a slide (targets/README 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from lrmil_cli.errors import InputError
from lrmil_cli.targets.outputs import Scale

#: Losses of a bag.
RegressionLoss = Literal["huber", "mse"]


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
