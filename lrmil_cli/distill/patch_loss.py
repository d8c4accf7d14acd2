"""The loss of a batch of stage 1: equations 1 and 2 over all layers, and the final loss where it is on.

``student_loss.py`` is its counterpart in stage 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrmil_cli.distill.losses import final_loss, masked_region_mean, patch_errors
from lrmil_cli.distill.settings import Stage1Settings


def batch_loss(
    learner: nn.Module,
    tiles: Tensor,
    targets: Tensor,
    mask: Tensor,
    settings: Stage1Settings,
    final_targets: Tensor | None = None,
    attention: Tensor | None = None,
    scale: tuple[float | Tensor, float | Tensor] = (1.0, 1.0),
) -> tuple[Tensor, dict[str, Tensor]]:
    """``L_patch`` (eq. 2), plus the final loss (distill/README 4.4) where it is on.

    Args:
        learner: a :class:`lrmil_cli.distill.learner.Learner`, bare or with its gradients averaged over processes.
        tiles: uint8 [B, P, P, 3]; targets: [B, K, |layers|, D]; mask: bool [B, K].
        final_targets: [B, K, D_e], needed by the final loss; attention: [B, K], None weighs HR tiles alike.
        scale: of the layers' losses and of the final one.

    Returns:
        scalar loss, and per-layer ``loss_<l>`` and ``cosine_<l>`` (detached).
    """
    of_layers, final = learner(tiles, settings.final_loss != "none")
    total = tiles.new_zeros((), dtype=torch.float32)
    parts: dict[str, Tensor] = {}
    for i, layer in enumerate(settings.layers):
        means = of_layers[layer]
        loss = masked_region_mean(patch_errors(means, targets[:, :, i], settings.normalize), mask, settings.weighting)
        total = total + scale[0] * loss / len(settings.layers)
        with torch.no_grad():
            cosine = torch.cosine_similarity(means.detach(), targets[:, :, i].float(), dim=-1)
            parts[f"loss_{layer}"] = loss.detach()
            parts[f"cosine_{layer}"] = masked_region_mean(cosine, mask, "child")
    if settings.final_loss != "none":
        assert final_targets is not None, "load_targets gives them whenever the final loss is on"
        loss = final_loss(final, final_targets, mask, attention)
        total = total + scale[1] * settings.lambda_final * loss
        parts["loss_final"] = loss.detach()
    return total, parts
