"""The losses of LRMIL, each a small pure function. Equation numbers are the paper's (Shin and Jeong 2026).

Eq. 1 is in ``regions.py``, eq. 6 in ``student_loss.py``; all of them in formulas: distill/README 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_errors(means: Tensor, targets: Tensor, normalize: str = "none") -> Tensor:
    """Eq. 2, inner term: squared error of each HR tile, mean over D; means [B, K, D], targets [B, K, D] -> [B, K].

    ``normalize="ln"`` applies a parameter-free LayerNorm over D on both sides, for encoders with outlier channels.
    """
    if normalize == "ln":
        means, targets = (F.layer_norm(t.float(), t.shape[-1:]) for t in (means, targets))
    return ((means.float() - targets.float()) ** 2).mean(-1)


def masked_region_mean(errors: Tensor, mask: Tensor, weighting: str = "region") -> Tensor:
    """Eq. 2, outer means: of ``errors`` [B, K] over present children ``mask`` [B, K] (distill/README 4.2).

    ``region``: mean over the children of each region, then over regions that have any; ``child``: every child alike.
    A batch without any child gives 0.
    """
    mask = mask.to(errors.dtype)
    # Padded targets may hold anything, so they are cut out, not multiplied by zero.
    errors = torch.where(mask > 0, errors, torch.zeros_like(errors))
    if weighting == "child":
        return errors.sum() / mask.sum().clamp(min=1)
    per_region = errors.sum(1) / mask.sum(1).clamp(min=1)
    return per_region.sum() / (mask.sum(1) > 0).sum().clamp(min=1)


def final_loss(student: Tensor, targets: Tensor, mask: Tensor, attention: Tensor | None = None) -> Tensor:
    """``sum_k w_k (1/D) |f_k - s|^2`` of each region, mean over regions with children (distill/README 4.4).

    Args:
        student: [B, D_e], the LR tile's final embedding; targets: [B, K, D_e], of its HR tiles; mask: [B, K].
        attention: [B, K], the teacher's softmax attention on the HR tiles; None weighs them alike.
    """
    errors = ((student.float().unsqueeze(1) - targets.float()) ** 2).mean(-1)
    present = mask.to(errors.dtype)
    errors = torch.where(present > 0, errors, torch.zeros_like(errors))
    weights = present if attention is None else attention.float() * present
    total = weights.sum(1, keepdim=True)
    uniform = present / present.sum(1, keepdim=True).clamp(min=1)
    weights = torch.where(total > 0, weights / total.clamp(min=1e-30), uniform)
    return (weights * errors).sum() / (present.sum(1) > 0).sum().clamp(min=1)


def bag_distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Eq. 3: ``T^2 KL(softmax(y_T / T) || softmax(y_S / T))`` of logits [C]."""
    log_p = torch.log_softmax(student.float() / temperature, 0)
    log_q = torch.log_softmax(teacher.float() / temperature, 0)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum()


def soft_attention(
    student: Tensor, region: Tensor, matched: Tensor, temperature: float = 1.0, reduction: str = "sum"
) -> Tensor:
    """Eq. 4: ``T^2 sum_M q (log q - log p)`` over the matched regions M (distill/README 6.1).

    Args:
        student: [N_l] attention scores; region: [N_l] teacher scores; matched: bool [N_l].
        reduction: ``sum``, or ``instances`` (divided by |M|, the value of the official code).

    Returns:
        scalar; 0 where fewer than two regions are matched.
    """
    if int(matched.sum()) < 2:
        return student.sum() * 0
    log_p = torch.log_softmax(student[matched].float() / temperature, 0)
    log_q = torch.log_softmax(region[matched].float() / temperature, 0)
    loss = temperature**2 * (log_q.exp() * (log_q - log_p)).sum()
    return loss / matched.sum() if reduction == "instances" else loss


def select_regions(region: Tensor, matched: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """For eq. 5: indices of the k highest and the k lowest matched regions by teacher score (distill/README 5.4).

    ``k_eff = min(k, |M| // 2)``; ties go by tile order. None if ``k_eff < 1`` or all scores are equal.
    """
    index = torch.nonzero(matched).flatten()
    k = min(k, len(index) // 2)
    if k < 1:
        return None
    own = region[index]
    if bool((own == own[0]).all()):
        return None
    order = index[torch.argsort(own, descending=True, stable=True)]
    # Among equals the later tile is lowest, so that no region can be in both sets.
    return order[:k], order[len(order) - k :]


def hard_attention(student: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    """Eq. 5: ``-(1/2k) [sum_P log s(e) + sum_N log(1 - s(e))]`` on the student's attention scores [N_l]."""
    picked = torch.cat([student[top], student[bottom]]).float()
    target = torch.cat([torch.ones(len(top)), torch.zeros(len(bottom))]).to(picked)
    return F.binary_cross_entropy_with_logits(picked, target)


def hard_feature(instances: Tensor, classifier: torch.nn.Linear, top: Tensor, bottom: Tensor) -> Tensor:
    """Eq. 5 as the official code reads it: cross-entropy of a 2-class classifier on the features [N_l, L].

    Why that is not the default: distill/README 6.2.
    """
    logits = classifier(torch.cat([instances[top], instances[bottom]]))
    target = torch.cat([torch.ones(len(top)), torch.zeros(len(bottom))]).long().to(logits.device)
    return F.cross_entropy(logits.float(), target)
