"""Mean-pool and max-pool: the two baselines without attention. Theirs is derived from what an instance says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrmil_cli.errors import UsageError
from lrmil_cli.heads.base import MILHead, MILOutput, check_bag, register
from lrmil_cli.heads.parts import embedding, evidence


class _Pooling(MILHead):
    """``h_i = E(x_i)``, ``z_i = W h_i + b``; subclasses say which of it are the logits of the bag."""

    attention_kind = "derived"

    def __init__(self, in_dim: int, num_classes: int, of_classes: bool, embed_dim: int | None, dropout: float):
        super().__init__(in_dim, num_classes, of_classes)
        self.project = embedding(in_dim, embed_dim, dropout)
        self.classifier = nn.Linear(embed_dim or in_dim, num_classes)

    def pool(self, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Instances [N, L] and their logits [N, C] -> bag logits [C], bag embedding [L], extras."""
        raise TypeError(f"{type(self).__name__} defines no pool")

    def forward(
        self, features: Tensor, coords: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> MILOutput:
        check_bag(features, self.in_dim)
        h = self.project(features)
        z = self.classifier(h)
        logits, bag, extra = self.pool(h, z)
        scores = evidence(z, logits, self.of_classes).float()
        return MILOutput(
            logits.float(), scores, torch.softmax(scores, 0), bag, instance_logits=z, extra={"instances": h, **extra}
        )


@register("meanpool")
class MeanPool(_Pooling):
    """Mean of the instances.

    ``logits = W mean_i(h_i) + b``, which is the mean of the instance logits.

    Args:
        embed_dim: width of E; None for a linear probe on the mean feature. dropout: of E.
    """

    classes_only = ""
    sources = {
        "embed_dim": "ours: as maxpool, so that the two differ in nothing but the pooling",
        "dropout": "ours: as maxpool, so that the two differ in nothing but the pooling",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        of_classes: bool = True,
        *,
        embed_dim: int | None = 512,
        dropout: float = 0.25,
    ):
        super().__init__(in_dim, num_classes, of_classes, embed_dim, dropout)

    def pool(self, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        bag = h.mean(0)
        return self.classifier(bag), bag, {"pool_weights": torch.full_like(h[:, 0], 1 / h.shape[0])}


@register("maxpool")
class MaxPool(_Pooling):
    """The one instance that is surest of a class, or the channelwise maximum.

    The "MIL" baseline of the CLAM paper: the logits of that instance are the bag's.

    ``p_i = softmax(z_i)``; two classes: ``i* = argmax_i p_i[1]``, so class 1 is the positive one; more:
    ``(i*, c*) = argmax p_i[c]``. With ``mode="feature"`` instead the channelwise maximum of ``h`` is classified.

    Args:
        embed_dim, dropout: of E; mode: "instance" or "feature".
    """

    classes_only = (
        "it answers by the one instance that is surest of a class, and none is sure of a number; take meanpool"
    )
    sources = {
        "embed_dim": "official code (of CLAM)",
        "dropout": "official code (of CLAM: its training script, the class has none)",
        "mode": "official code (of CLAM)",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        embed_dim: int | None = 512,
        dropout: float = 0.25,
        mode: str = "instance",
    ):
        if mode not in ("instance", "feature"):
            raise UsageError(f"maxpool option mode={mode}: choose instance or feature")
        super().__init__(in_dim, num_classes, True, embed_dim, dropout)
        self.mode = mode

    def pool(self, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        if self.mode == "feature":
            bag = h.max(0).values
            return self.classifier(bag), bag, {}
        p = torch.softmax(z, dim=1)
        top = p[:, 1].argmax() if self.num_classes == 2 else p.max(1).values.argmax()
        return z[top], h[top], {"top_index": top}
