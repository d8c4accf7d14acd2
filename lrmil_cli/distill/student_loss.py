"""The loss of the student head besides the labels (eq. 6): what of it is on, slide by slide.

``patch_loss.py`` is its counterpart in stage 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lrmil_cli.distill.losses import bag_distillation, hard_attention, hard_feature, soft_attention
from lrmil_cli.distill.settings import DistillSettings
from lrmil_cli.distill.teacher_targets import Target
from lrmil_cli.heads import MILOutput
from lrmil_cli.targets.regression import regression_distillation
from lrmil_cli.targets.survival import cox_distillation, hazard_distillation
from lrmil_cli.training.loop import ExtraTerms
from lrmil_cli.training.objectives import CoxRisks, Hazards, Numbers, Objective

#: (slides of a step, logits [K] of the student, of the teacher) -> distance of what the two say.
BagDistance = Callable[[Sequence[int], list[Tensor], list[Tensor]], Tensor]


def bag_distance(objective: Objective, settings: DistillSettings) -> BagDistance:
    """Eq. 3, or what stands in its place where labels are no classes (targets/README 1)."""
    if isinstance(objective, Hazards):
        own, heat = objective, settings.temperature_bag
        return lambda index, s, t: hazard_distillation(
            own.shifted(s[0]), own.shifted(t[0]), own.interval[index[0]], heat
        )
    if isinstance(objective, CoxRisks):
        return lambda index, s, t: cox_distillation(torch.cat(s), torch.cat(t))
    if isinstance(objective, Numbers):
        return lambda index, s, t: regression_distillation(s[0], t[0])
    return lambda index, s, t: bag_distillation(s[0], t[0], settings.temperature_bag)


def attention_terms(
    out: MILOutput, target: Target, settings: DistillSettings, classifier: nn.Linear | None = None
) -> dict[str, tuple[float, Tensor]]:
    """The terms of eq. 6 that speak of where a slide is looked at: ``{name: (lambda, loss)}``, only those that are on.

    Args:
        classifier: of the instances, needed by ``hard="feature"``.
    """
    s = settings
    terms: dict[str, tuple[float, Tensor]] = {}
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


def terms_of_fold(
    targets: dict[int, Target], settings: DistillSettings, seed: int, lr: float, distance: BagDistance
) -> ExtraTerms:
    """The function that the training loop calls for each step: all terms of eq. 6 besides the supervised one.

    Of a step of several bags (risk sets) the terms of attention are means over those that the teacher speaks of.

    The classifier of ``hard="feature"`` belongs to no head; it is trained by its own optimiser inside the closure, at
    the head's learning rate ``lr`` (distill/README 6.2).
    """
    classifier: nn.Linear | None = None
    optimizer: torch.optim.Optimizer | None = None

    def terms(index: Sequence[int], outs: Sequence[MILOutput]) -> dict[str, tuple[float, Tensor]]:
        nonlocal classifier, optimizer
        taught = [(i, out) for i, out in zip(index, outs) if i in targets]
        if not taught:
            return {}
        out = taught[0][1]
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
        found: dict[str, tuple[float, Tensor]] = {}
        if settings.lambda_bag:  # eq. 3
            said = [own.logits for _, own in taught], [targets[i].logits for i, _ in taught]
            found["bag_kd"] = (settings.lambda_bag, distance([i for i, _ in taught], *said))
        looks = [attention_terms(own, targets[i], settings, classifier) for i, own in taught]
        for name, (weight, _) in {k: v for terms in looks for k, v in terms.items()}.items():
            own = [terms[name][1] for terms in looks if name in terms]
            found[name] = (weight, own[0] if len(own) == 1 else torch.stack(own).mean())
        return found

    return terms
