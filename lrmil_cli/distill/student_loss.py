"""The loss of the student head besides the labels (eq. 6): what of it is on, slide by slide.

``patch_loss.py`` is its counterpart in stage 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lrmil_cli.distill.losses import bag_distillation, hard_attention, hard_feature, soft_attention
from lrmil_cli.distill.settings import DistillSettings
from lrmil_cli.distill.teacher_targets import Target
from lrmil_cli.heads import MILOutput
from lrmil_cli.training.loop import ExtraTerms


def distillation_terms(
    out: MILOutput, target: Target, settings: DistillSettings, classifier: nn.Linear | None = None
) -> dict[str, tuple[float, Tensor]]:
    """The terms of eq. 6 besides the cross-entropy: ``{name: (lambda, loss)}``, only those that are on.

    Args:
        classifier: of the instances, needed by ``hard="feature"``.
    """
    s = settings
    terms: dict[str, tuple[float, Tensor]] = {}
    if s.lambda_bag:  # eq. 3
        terms["bag_kd"] = (s.lambda_bag, bag_distillation(out.logits, target.logits, s.temperature_bag))
    if s.lambda_soft:  # eq. 4
        loss = soft_attention(out.scores, target.region, target.matched, s.temperature_attention, s.soft_reduction)
        terms["soft"] = (s.lambda_soft, loss)
    if s.lambda_hard and target.selection is not None:  # eq. 5
        if s.hard == "feature":
            assert classifier is not None, "terms_of_fold makes one"
            loss = hard_feature(out.extra["instances"], classifier, *target.selection)
        else:
            loss = hard_attention(out.scores, *target.selection)
        terms["hard"] = (s.lambda_hard, loss)
    return terms


def terms_of_fold(targets: dict[int, Target], settings: DistillSettings, seed: int, lr: float = 1e-4) -> ExtraTerms:
    """The function that the training loop calls for each training bag.

    The classifier of ``hard="feature"`` belongs to no head; it is trained by its own optimiser inside the closure, at
    the head's learning rate ``lr`` (distill/README 6.2).
    """
    classifier: nn.Linear | None = None
    optimizer: torch.optim.Optimizer | None = None

    def terms(index: Sequence[int], outs: Sequence[MILOutput]) -> dict[str, tuple[float, Tensor]]:
        nonlocal classifier, optimizer
        (i,), (out,) = index, outs
        if i not in targets:
            return {}
        if settings.hard == "feature" and settings.lambda_hard and classifier is None:
            instances = out.extra["instances"]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                classifier = nn.Linear(instances.shape[1], 2).to(instances.device)
            optimizer = torch.optim.Adam(classifier.parameters(), lr=lr)
        elif optimizer is not None:
            # Gradients of the last backward pass are applied here, one step behind the head's.
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return distillation_terms(out, targets[i], settings, classifier)

    return terms
