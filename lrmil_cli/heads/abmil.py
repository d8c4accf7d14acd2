"""ABMIL: attention-based MIL (Ilse, Tomczak, Welling 2018), plain and gated."""

from __future__ import annotations

import torch
from torch import Tensor

from lrmil_cli.heads.base import MILHead, MILOutput, Scorer, check_bag, register
from lrmil_cli.heads.chebyshev import DEGREE, make_classifier
from lrmil_cli.heads.parts import embedding


@register("abmil")
class ABMIL(MILHead):
    """Attention-weighted mean of the instances, plain or gated.

    ``h = x`` (or ``ReLU(W x)``), ``s = A(h)``, ``alpha = softmax(s)``, ``logits = W sum(alpha h) + b``.

    LRMIL's teacher and student use it plain, hidden width 128, without projection or dropout (heads/README 3.2).

    Args:
        hidden: width of the scorer; gated: tanh * sigmoid instead of tanh; dropout: in projection and scorer.
        embed_dim: width of a shared projection Linear + ReLU in front; None for none.
        classifier: "linear" or "cka" (Chebyshev polynomials); degree: of cka.
    """

    attention_kind = "native"
    classes_only = ""
    sources = {
        "hidden": "official code (of LRMIL; Ilse et al. have the same)",
        "gated": "official code (of LRMIL)",
        "embed_dim": "official code (of LRMIL)",
        "dropout": "official code (of LRMIL)",
        "classifier": "official code (of LRMIL)",
        "degree": "official code (of HDMIL)",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        of_classes: bool = True,
        *,
        hidden: int = 128,
        gated: bool = False,
        embed_dim: int | None = None,
        dropout: float = 0.0,
        classifier: str = "linear",
        degree: int = DEGREE,
    ):
        super().__init__(in_dim, num_classes, of_classes)
        width = embed_dim or in_dim
        self.project = embedding(in_dim, embed_dim, dropout)
        self.scorer = Scorer(width, hidden, gated=gated, dropout=dropout)
        self.classifier = make_classifier(classifier, width, num_classes, degree)

    def forward(
        self, features: Tensor, coords: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> MILOutput:
        check_bag(features, self.in_dim)
        h = self.project(features)
        scores = self.scorer(h)[0].float()
        attention = torch.softmax(scores, dim=0)
        bag = attention.to(h.dtype) @ h
        return MILOutput(self.classifier(bag).float(), scores, attention, bag, extra={"instances": h})
