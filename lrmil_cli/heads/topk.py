"""Perturbed top-k (Berthet et al. 2020, as ZoomMIL uses it): a selection of the k largest that has a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def top_rows(u: Tensor, k: int) -> Tensor:
    """Rows int64 [k] of the k largest of ``u`` [N], in ascending order."""
    return u.topk(k).indices.sort().values


def perturbed_topk(u: Tensor, k: int, sigma: float, noise: Tensor) -> Tensor:
    """Mean over draws of the one-hot rows of the k largest of ``u + sigma * noise``, each draw's rows sorted by index.

    Sorting gives every slot a fixed meaning; without it the mean over draws would be a blur.

    Args:
        u: [N]; noise: [S, N], standard normal.

    Returns:
        ``select`` [k, N], rows sum to 1. Its gradient is the diagonal of the Jacobian alone, as published:
        ``dL/du_n = sum_j g[j, n] (1 / (S sigma)) sum_s O_s[j, n] noise[s, n]``.
    """
    return _PerturbedTopK.apply(u, k, sigma, noise)


class _PerturbedTopK(torch.autograd.Function):
    """The draws are kept as indices [S, k] and scattered, since [S, k, N] would be large."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, k: int, sigma: float, noise: Tensor) -> Tensor:
        draws, n = noise.shape
        rows = (u + sigma * noise).topk(k, dim=1).indices.sort(dim=1).values
        ctx.save_for_backward(rows, noise)
        ctx.scale, ctx.k = draws * sigma, k
        return _scatter(rows, torch.ones_like(rows, dtype=u.dtype), k, n) / draws

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        rows, noise = ctx.saved_tensors
        summed = _scatter(rows, noise.gather(1, rows), ctx.k, noise.shape[1])
        return (grad * summed).sum(0) / ctx.scale, None, None, None


def _scatter(rows: Tensor, values: Tensor, k: int, n: int) -> Tensor:
    """[k, n] with ``values`` [S, k] added at slot j and row ``rows`` [S, k]."""
    slots = torch.arange(k, device=rows.device) * n
    return (
        torch.zeros(k * n, dtype=values.dtype, device=rows.device)
        .scatter_add_(0, (rows + slots).flatten(), values.flatten())
        .view(k, n)
    )
