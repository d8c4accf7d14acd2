"""DTFD-MIL (Zhang et al. 2022): pseudo-bags in tier 1, what is distilled from them in tier 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrmil_cli.errors import UsageError
from lrmil_cli.heads.base import MILHead, MILOutput, Scorer, bag_cross_entropy, check_bag, register

DISTILLATIONS = ("afs", "maxs", "maxmins")


class _Residual(nn.Module):
    """``h + ReLU(W2 ReLU(W1 h))``, no biases."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False), nn.ReLU()
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.inner(h)


@register("dtfd")
class DTFD(MILHead):
    """Two tiers: attention pooling of random pseudo-bags, then of what is distilled from them.

    ``h = ReLU(W x)``; the instances are dealt at random into ``G' = min(G, N)`` pseudo-bags, each classified from its
    attention-pooled ``b_g``; rows distilled from the pseudo-bags go, detached, to an ABMIL on top.

    Tier 1 learns from ``mean_g CE(t_g, y)`` alone and tier 2 from ``CE(logits, y)`` alone, as with two optimisers.

    Args:
        embed_dim: width of h; hidden: of both scorers; groups: G; residual_blocks: after the embedding.
        distill: "afs" (``b_g``), "maxs" (the instances of the highest class activation) or "maxmins" (and of the
            lowest).
        total_instances: distilled a bag in ``maxs`` and ``maxmins``; a pseudo-bag gives ``total_instances // G`` at
            each end.
        inference_groupings: groupings whose probabilities are averaged in evaluation; grouping_seed: of these.
    """

    attention_kind = "native"
    classes_only = (
        "each of its pseudo-slides gets the slide's label, which holds for a class and not for a number; "
        "take abmil or transmil"
    )
    sources = {
        "embed_dim": "official code",
        "hidden": "official code",
        "groups": "official code",
        "distill": "official code",
        "total_instances": "official code",
        "residual_blocks": "official code",
        "inference_groupings": "official code",
        "grouping_seed": "ours: published groupings are random in evaluation too",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        embed_dim: int = 512,
        hidden: int = 128,
        groups: int = 4,
        distill: str = "afs",
        total_instances: int = 4,
        residual_blocks: int = 0,
        inference_groupings: int = 1,
        grouping_seed: int = 0,
    ):
        if distill not in DISTILLATIONS:
            raise UsageError(f"dtfd option distill={distill}: choose one of {', '.join(DISTILLATIONS)}")
        if groups < 1 or inference_groupings < 1 or total_instances < groups and distill != "afs":
            raise UsageError("dtfd options: groups and inference_groupings at least 1, total_instances at least groups")
        super().__init__(in_dim, num_classes)
        self.groups, self.distill, self.per_group = groups, distill, max(1, total_instances // groups)
        self.inference_groupings, self.grouping_seed = inference_groupings, grouping_seed
        self.project = nn.Sequential(
            nn.Linear(in_dim, embed_dim, bias=False), nn.ReLU(), *(_Residual(embed_dim) for _ in range(residual_blocks))
        )
        self.scorer = Scorer(embed_dim, hidden, gated=True)
        self.classifier = nn.Linear(embed_dim, num_classes)
        self.scorer2 = Scorer(embed_dim, hidden, gated=True)
        self.classifier2 = nn.Linear(embed_dim, num_classes)

    def forward(
        self, features: Tensor, coords: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> MILOutput:
        check_bag(features, self.in_dim)
        if generator is None and not self.training:  # the same slide gives the same logits
            generator = torch.Generator().manual_seed(self.grouping_seed)
        h = self.project(features)
        scores = self.scorer(h)[0].float()
        rounds = [
            self._tier2(h, scores, self.deal(len(h), generator))
            for _ in range(1 if self.training else self.inference_groupings)
        ]
        logits = rounds[0][0]
        if len(rounds) > 1:
            logits = torch.log(torch.stack([torch.softmax(r[0], 0) for r in rounds]).mean(0).clamp(min=1e-12))
        _, bag, tier1, effective = rounds[0]
        extra = {"instances": h, "tier1_logits": torch.cat([r[2] for r in rounds])}
        if effective is not None:
            extra["effective"] = effective
        return MILOutput(logits, scores, torch.softmax(scores, 0), bag, extra=extra)

    def deal(self, n: int, generator: torch.Generator | None) -> list[Tensor]:
        """A random permutation of the instances, cut into ``min(G, N)`` pseudo-bags as equal as can be."""
        return list(torch.randperm(n, generator=generator).tensor_split(min(self.groups, n)))

    def _tier2(self, h: Tensor, scores: Tensor, chunks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Bag logits [C], bag embedding [L], tier-1 logits [G', C], and in ``afs`` the weight of each instance [N]."""
        tier1, rows, alphas = [], [], []
        for chunk in (c.to(h.device) for c in chunks):
            alpha = torch.softmax(scores[chunk], 0)
            weighted = alpha.unsqueeze(1).to(h.dtype) * h[chunk]
            pooled = weighted.sum(0)
            tier1.append(self.classifier(pooled))
            alphas.append((chunk, alpha))
            if self.distill == "afs":
                rows.append(pooled.unsqueeze(0))
            else:
                rows.append(h[chunk[self._distilled(weighted, tier1[-1])]])
        # Tier 2 must not train tier 1.
        picked = torch.cat(rows).detach()
        beta = torch.softmax(self.scorer2(picked)[0].float(), 0)
        bag = beta.to(h.dtype) @ picked
        effective = None
        if self.distill == "afs":
            effective = torch.zeros_like(scores)
            for b, (chunk, alpha) in zip(beta, alphas):
                effective[chunk] = (b * alpha).detach()
        return self.classifier2(bag).float(), bag, torch.stack(tier1).float(), effective

    def _distilled(self, weighted: Tensor, tier1: Tensor) -> Tensor:
        """Which instances of a pseudo-bag go up: by the class activation of their attention-weighted features."""
        activation = torch.softmax(nn.functional.linear(weighted, self.classifier.weight), dim=1)
        key = activation[:, -1 if self.num_classes == 2 else int(tier1.argmax())]
        order = key.argsort(descending=True, stable=True)
        k = min(self.per_group, len(order))
        return order[:k] if self.distill == "maxs" else torch.cat([order[:k], order[len(order) - k :]])

    def loss_terms(
        self, out: MILOutput, label: Tensor, class_weights: Tensor | None = None
    ) -> dict[str, tuple[float, Tensor]]:
        tier1 = torch.stack([bag_cross_entropy(t, label, class_weights) for t in out.extra["tier1_logits"]]).mean()
        return {"tier1": (1.0, tier1), "tier2": (1.0, bag_cross_entropy(out.logits, label, class_weights))}

    def clipped_parts(self) -> list[list[nn.Parameter]]:
        """Embedding, scorer and classifier of tier 1, and tier 2, each by itself (official code)."""
        parts = ((self.project,), (self.scorer,), (self.classifier,), (self.scorer2, self.classifier2))
        return [[p for module in part for p in module.parameters()] for part in parts]
