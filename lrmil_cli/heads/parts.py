"""What several heads are built from: embedding, derived attention, CLAM's SVM loss, initialisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Gap between the two largest logits, in units of the temperature, above which the SVM loss takes its hard form.
HARD_MARGIN = math.log(1000)


def embedding(in_dim: int, width: int | None, dropout: float) -> nn.Module:
    """``E(D -> L, p)``: Linear, ReLU, Dropout; the identity where ``width`` is None."""
    return nn.Sequential(nn.Linear(in_dim, width), nn.ReLU(), nn.Dropout(dropout)) if width else nn.Identity()


def log_odds(logits: Tensor, label: Tensor | int) -> Tensor:
    """``o_i = z_i[k] - logsumexp over c != k of z_i[c]``: logits [N, C], class k -> [N].

    Cross-entropy leaves a common shift of one instance's logits undetermined; log-odds remove it.
    """
    own = torch.arange(logits.shape[1], device=logits.device) == label
    # By masks, not by picking columns, so that a graph of fixed shapes can hold it.
    return torch.where(own, logits, 0).sum(1) - torch.logsumexp(logits.masked_fill(own, -torch.inf), dim=1)


def evidence(logits: Tensor, bag: Tensor, of_classes: bool) -> Tensor:
    """What instances say for their bag's answer (heads/README 2.3): logits [N, C] of them, [C] of the bag -> [N].

    Of classes the log-odds of the predicted one; else the mean over outputs, higher where an instance raises the number
    or the risk.
    """
    return log_odds(logits, bag.argmax()) if of_classes else logits.mean(1)


def smooth_svm(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Smooth top-1 SVM loss of CLAM's instance classifiers, margin 1: logits [n, C], target int64 [n] -> mean, scalar.

    ``tau log sum_c exp((z_c - z_y + [c != y]) / tau)``; where the two largest logits are ``tau ln 1000`` or more
    apart, the hard form ``max_c (z_c + [c != y]) - z_y``.

    Raises:
        ValueError: a target that is not [n]; [n, 1] would broadcast to a loss many times too large.
    """
    if target.shape != logits.shape[:1]:
        raise ValueError(f"targets must be [{len(logits)}], got {tuple(target.shape)}")
    own = logits.gather(1, target[:, None])
    margins = logits + 1 - torch.nn.functional.one_hot(target, logits.shape[1]) - own
    smooth = temperature * torch.logsumexp(margins / temperature, dim=1)
    top = logits.topk(2, dim=1).values
    hard = (top[:, 0] - top[:, 1]).detach() >= temperature * HARD_MARGIN
    return torch.where(hard, margins.max(1).values, smooth).mean()


def clustering_loss(
    h: Tensor, rows: Tensor, label: int, classifiers: nn.ModuleList, *, k: int, subtyping: bool, svm: bool
) -> Tensor:
    """CLAM's instance loss (heads/README 2.4): the ``k`` most attended instances of the slide's class are examples of
    it, the ``k`` least are not.

    The choice carries no gradient, the instances do. ``k' = min(k, N // 2)``, so that no instance is in both sets; a
    bag of one has loss 0.

    Args:
        h: instances [N, L]; rows: attention [C, N], or [1, N] for all classes; classifiers: ``L -> 2``, one a class.
        subtyping: classes exclude each other: the ``k`` most attended of the other classes are no examples of these.
        svm: smooth top-1 SVM in place of cross-entropy.
    """
    k = min(k, len(h) // 2)
    if k == 0:
        return h.sum() * 0
    total = h.new_zeros(())
    for c, classifier in enumerate(classifiers):
        order = rows[c if len(rows) > 1 else 0].argsort(descending=True, stable=True)
        if c == label:
            picked = torch.cat([order[:k], order[-k:]])
            target = torch.arange(2, device=h.device).flip(0).repeat_interleave(k)
        elif subtyping:
            picked, target = order[:k], torch.zeros(k, dtype=torch.long, device=h.device)
        else:
            continue
        logits = classifier(h[picked]).float()
        total = total + (smooth_svm(logits, target) if svm else torch.nn.functional.cross_entropy(logits, target))
    return total / len(classifiers) if subtyping else total


def xavier(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for every linear layer."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)


def orthogonal(module: nn.Module) -> None:
    """Orthogonal weights (convolutions flattened) and zero biases for every linear and convolution layer."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d)):
            nn.init.orthogonal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
