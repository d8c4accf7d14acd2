"""Regions: an LR tile with the HR tiles under it. Pooling of LR tokens, and teacher scores from tiles to regions."""

from __future__ import annotations

import torch
from torch import Tensor

from lrmil_cli.errors import UsageError

REGION_ATTENTION = ("logmeanexp", "mean-logit", "logsumexp", "max", "mean-weight")


def pooling_matrix(grid: int, ratio: int) -> Tensor:
    """``W`` float32 [r, g] with ``W[a, t] = overlap([t/g, (t+1)/g], [a/r, (a+1)/r]) * r`` (distill/README 3).

    Rows sum to 1. Where g divides by r this is plain block averaging; else border tokens are shared by area.
    """
    t = torch.arange(grid, dtype=torch.float64)
    a = torch.arange(ratio, dtype=torch.float64).unsqueeze(1)
    # In units of 1 / (g r) the borders are whole numbers, so the overlaps are exact.
    low = torch.maximum(t * ratio, a * grid)
    high = torch.minimum((t + 1) * ratio, (a + 1) * grid)
    return ((high - low).clamp(min=0) / grid).float()


def region_means(tokens: Tensor, pooling: Tensor) -> Tensor:
    """Eq. 1, LR side: the mean LR token under each HR tile.

    tokens [B, g, g, D], pooling [r, g] -> [B, r*r, D], row-major cells.
    """
    z = torch.einsum("ay,bx,nyxd->nabd", pooling, pooling, tokens.float())
    return z.flatten(1, 2)


def region_scores(scores: Tensor, parent: Tensor, regions: int, how: str = "logmeanexp") -> tuple[Tensor, Tensor]:
    """Teacher attention from HR tiles to LR regions (distill/README 5.2), by scatter, in O(N_h).

    Args:
        scores: float [N_h], the teacher's pre-softmax attention.
        parent: int64 [N_h], region of each tile, -1 for none.
        regions: N_l; how: one of :data:`REGION_ATTENTION`.

    Returns:
        float32 [N_l] pre-softmax region scores (0 where unmatched), bool [N_l] which regions have children.

    Raises:
        UsageError: unknown ``how``.
    """
    if how not in REGION_ATTENTION:
        raise UsageError(f"--region-attention {how}: choose one of {', '.join(REGION_ATTENTION)}")
    scores = scores.float()
    if how == "mean-weight":
        scores = torch.softmax(scores, 0)
    inside = parent >= 0
    own, where = scores[inside], parent[inside]
    count = torch.zeros(regions, device=scores.device).index_add_(0, where, torch.ones_like(own))
    matched = count > 0
    divisor = count.clamp(min=1)
    if how in ("mean-logit", "mean-weight"):
        out = torch.zeros(regions, device=scores.device).index_add_(0, where, own) / divisor
        return out, matched
    top = torch.full((regions,), -torch.inf, device=scores.device).scatter_reduce_(0, where, own, "amax")
    top = torch.where(matched, top, torch.zeros_like(top))
    if how == "max":
        return top, matched
    total = torch.zeros(regions, device=scores.device).index_add_(0, where, torch.exp(own - top[where]))
    out = top + torch.log(total.clamp(min=1e-45))
    if how == "logmeanexp":
        out = out - torch.log(divisor)
    return torch.where(matched, out, torch.zeros_like(out)), matched
