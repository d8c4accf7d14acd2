"""DSMIL (Li, Li, Eliceiri 2021): attention as similarity to the critical instance of each class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrmil_cli.errors import UsageError
from lrmil_cli.heads.base import MILHead, MILOutput, bag_cross_entropy, check_bag, register
from lrmil_cli.heads.parts import orthogonal


@register("dsmil")
class DSMIL(MILHead):
    """Similarity to the critical instance of each class, beside max-pooling of instance logits.

    Two streams: instance logits ``z_i = Wi x_i + bi`` with ``m_c = argmax_i z_i[c]``, and bag logits from
    ``s_ci = q(x_i) . q(x_mc) / sqrt(Q)``, ``B_c = sum softmax_i(s_c)_i v(x_i)``,
    ``logits_k = sum_cd F[k,c,d] B[c,d] + f_k``.

    Args:
        query_dim: Q; nonlinear_q: q is Linear, ReLU, Linear, tanh instead of one linear layer.
        passing_v: v(x) = ReLU(Wv Dropout(x) + bv) instead of x; dropout: inside it.
        loss: "ce" on both streams as for every other head, or "bce" with one-hot targets as published.
        average: in evaluation, the mean of the two streams' probabilities instead of the bag's alone.
        drop_instances: share of the instances left out of the pooling in each training step.
        init: "orthogonal" (of the current published script) or "default".
    """

    attention_kind = "native"
    classes_only = "its critical instances are those with the highest logit of each class; take abmil or transmil"
    sources = {
        "query_dim": "official code",
        "nonlinear_q": "official code",
        "passing_v": "official code",
        "dropout": "official code",
        "loss": "ours: that of every other head, so that probabilities and distilled logits mean the same",
        "average": "official code",
        "drop_instances": "official code",
        "init": "official code (its current training script)",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        query_dim: int = 128,
        nonlinear_q: bool = True,
        passing_v: bool = False,
        dropout: float = 0.0,
        loss: str = "ce",
        average: bool = False,
        drop_instances: float = 0.0,
        init: str = "orthogonal",
    ):
        for name, value, choices in (("loss", loss, ("ce", "bce")), ("init", init, ("orthogonal", "default"))):
            if value not in choices:
                raise UsageError(f"dsmil option {name}={value}: choose one of {', '.join(choices)}")
        if not 0 <= drop_instances < 1:
            raise UsageError(f"dsmil option drop_instances={drop_instances}: a share from 0 to below 1")
        super().__init__(in_dim, num_classes)
        self.loss, self.average, self.drop_instances = loss, average, drop_instances
        self.instance_classifier = nn.Linear(in_dim, num_classes)
        self.query = (
            nn.Sequential(nn.Linear(in_dim, query_dim), nn.ReLU(), nn.Linear(query_dim, query_dim), nn.Tanh())
            if nonlinear_q
            else nn.Linear(in_dim, query_dim)
        )
        self.value = (
            nn.Sequential(nn.Dropout(dropout), nn.Linear(in_dim, in_dim), nn.ReLU()) if passing_v else nn.Identity()
        )
        # Every logit sees the embedding of every class: a kernel as wide as the feature.
        self.fuse = nn.Conv1d(num_classes, num_classes, in_dim)
        if init == "orthogonal":
            orthogonal(self)

    def forward(
        self, features: Tensor, coords: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> MILOutput:
        check_bag(features, self.in_dim)
        kept = self._kept(features.shape[0], generator).to(features.device)
        z = self.instance_classifier(features)
        critical = kept[z[kept].argmax(0)]
        q = self.query(features)
        rows = (q[critical] @ q.T / q.shape[1] ** 0.5).float()
        bags = torch.softmax(rows[:, kept], 1).to(features.dtype) @ self.value(features)[kept]
        bag_logits = self.fuse(bags.unsqueeze(0)).flatten().float()
        top = z[critical, torch.arange(self.num_classes, device=z.device)].float()
        logits = bag_logits
        if self.average and not self.training:
            squash = torch.sigmoid if self.loss == "bce" else lambda v: torch.softmax(v, 0)
            logits = torch.log(((squash(bag_logits) + squash(top)) / 2).clamp(min=1e-12))
        scores = rows[logits.argmax()]
        return MILOutput(
            logits,
            scores,
            torch.softmax(scores, 0),
            bags,
            class_scores=rows,
            instance_logits=z,
            extra={"instances": features, "critical": critical, "max": top},
        )

    def _kept(self, n: int, generator: torch.Generator | None) -> Tensor:
        if not (self.training and self.drop_instances):
            return torch.arange(n)
        keep = max(1, round(n * (1 - self.drop_instances)))
        return torch.randperm(n, generator=generator)[:keep].sort().values

    def loss_terms(
        self, out: MILOutput, label: Tensor, class_weights: Tensor | None = None
    ) -> dict[str, tuple[float, Tensor]]:
        def loss(logits: Tensor) -> Tensor:
            if self.loss == "ce":
                return bag_cross_entropy(logits, label, class_weights)
            value = F.binary_cross_entropy_with_logits(logits, F.one_hot(label, self.num_classes).to(logits))
            return value if class_weights is None else value * class_weights[label]

        return {"bag": (0.5, loss(out.logits)), "max": (0.5, loss(out.extra["max"]))}
