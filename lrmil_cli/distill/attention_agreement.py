"""How alike teacher and student look at a slide: their attention compared over regions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.distill.regions import region_scores
from lrmil_cli.heads import Bag, MILHead


def compare_attention(student: Tensor, teacher: Tensor, matched: Tensor, k: int) -> dict[str, Any]:
    """Rank correlation and top-k overlap of two score vectors over the matched regions.

    Args:
        student, teacher: [N_l] pre-softmax scores; matched: bool [N_l], regions of which the teacher says something.
        k: regions compared at the top; at most half of the matched ones.

    Returns:
        ``regions``; ``rank_correlation`` (Spearman; None for fewer than three regions, or where one side is constant);
        ``k``; ``overlap``, the share of the teacher's top k that is also in the student's; ``chance``, what two random
        choices would share (k / regions). Ties go by tile order.
    """
    from scipy.stats import spearmanr

    a, b = (t[matched].cpu().double().numpy() for t in (student, teacher))
    n = len(a)
    k = min(k, n // 2)
    correlation = None
    if n >= 3 and np.ptp(a) > 0 and np.ptp(b) > 0:
        correlation = float(spearmanr(a, b).statistic)
    if k < 1:
        return {"regions": n, "rank_correlation": correlation, "k": 0, "overlap": None, "chance": None}
    top = [set(np.argsort(-v, kind="stable")[:k].tolist()) for v in (a, b)]
    return {"regions": n, "rank_correlation": correlation, "k": k, "overlap": len(top[0] & top[1]) / k, "chance": k / n}


def teacher_regions(teacher: MILHead, hr: Bag, parent: Tensor, n_lr: int, how: str) -> tuple[Tensor, Tensor]:
    """The teacher's region scores [N_l] and bool [N_l], which regions have HR tiles.

    Args:
        hr: N_h tiles; parent: int64 [N_h], LR tile of each, -1 for none; how: as in ``region_scores``.
    """
    with torch.inference_mode():
        return region_scores(teacher(*hr).scores, parent, n_lr, how)


def slide_agreement(region: Tensor, matched: Tensor, student: MILHead, lr: Bag, k: int) -> dict[str, Any]:
    """:func:`compare_attention` of one slide; ``region, matched`` of :func:`teacher_regions`, ``lr`` its N_l tiles."""
    with torch.inference_mode():
        return compare_attention(student(*lr).scores, region, matched, k)
