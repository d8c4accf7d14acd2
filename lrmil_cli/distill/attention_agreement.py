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


def slide_agreement(
    teacher: MILHead, student: MILHead, hr: Bag, lr: Bag, parent: Tensor, k: int, how: str = "logmeanexp"
) -> dict[str, Any]:
    """:func:`compare_attention` of one slide.

    Args:
        hr, lr: its N_h and N_l tiles; parent: int64 [N_h], LR tile of each HR tile, -1 for none.
        how: from HR tiles to regions, as in ``region_scores``.
    """
    with torch.inference_mode():
        scores, own = teacher(*hr).scores, student(*lr).scores
    region, matched = region_scores(scores, parent, len(lr.features), how)
    return compare_attention(own, region, matched, k)
