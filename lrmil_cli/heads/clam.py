"""CLAM (Lu et al. 2021): attention pooling with clustering of the most and least attended instances."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrmil_cli.errors import UsageError
from lrmil_cli.heads.base import MILHead, MILOutput, Scorer, bag_cross_entropy, check_bag, register
from lrmil_cli.heads.chebyshev import DEGREE, make_classifier, own_logits
from lrmil_cli.heads.parts import clustering_loss, embedding, xavier

#: Width of the scorer.
SIZES = {"small": 256, "big": 384}


class _CLAM(MILHead):
    """What both forms share: E, a gated scorer of one row (or one a class), an instance classifier ``L -> 2`` a class.

    Args:
        embed_dim, dropout: of E; inside the scorer the dropout is 0.25 wherever ``dropout`` is not 0.
        size: "small" or "big" scorer; hidden: its width, in place of ``size``; gated: tanh * sigmoid.
        k: instances at either end of the attention; subtyping: classes exclude each other, so that the most attended
            instances are also examples of what the other classes do not look like.
        inst_loss: "ce" or "svm" (smooth top-1 SVM, what the published commands and ``--recipe published`` use).
        bag_weight: of the bag loss; the instance loss has the rest. init: "default" or "xavier".
        classifier: of bags, "linear" or "cka" (Chebyshev polynomials); degree: of cka.
    """

    attention_kind = "native"
    classes_only = (
        "its instances are examples of the slide's class; take abmil with --head-option gated=true and "
        "--head-option embed_dim=512, which is clam_sb without them"
    )
    multi_branch = False
    sources = {
        "embed_dim": "official code",
        "dropout": "official code (its training script, the class has none)",
        "size": "official code",
        "hidden": "ours: None leaves it to size",
        "gated": "official code",
        "k": "official code",
        "subtyping": "official code",
        "inst_loss": "official code (the class; the published commands and --recipe published say svm)",
        "bag_weight": "official code",
        "init": "official code (since April 2024, xavier before)",
        "classifier": "official code",
        "degree": "official code (of HDMIL)",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        embed_dim: int = 512,
        dropout: float = 0.25,
        size: str = "small",
        hidden: int | None = None,
        gated: bool = True,
        k: int = 8,
        subtyping: bool = False,
        inst_loss: str = "ce",
        bag_weight: float = 0.7,
        init: str = "default",
        classifier: str = "linear",
        degree: int = DEGREE,
    ):
        for name, value, choices in (
            ("size", size, SIZES),
            ("inst_loss", inst_loss, ("ce", "svm")),
            ("init", init, ("default", "xavier")),
        ):
            if value not in choices:
                raise UsageError(f"{self.name} option {name}={value}: choose one of {', '.join(choices)}")
        super().__init__(in_dim, num_classes)
        self.k, self.subtyping, self.inst_loss, self.bag_weight = k, subtyping, inst_loss, bag_weight
        self.project = embedding(in_dim, embed_dim, dropout)
        self.scorer = Scorer(
            embed_dim,
            hidden or SIZES[size],
            num_classes if self.multi_branch else 1,
            gated=gated,
            dropout=0.25 if dropout else 0.0,
        )
        self.classifier = make_classifier(classifier, embed_dim, num_classes, degree, separate=self.multi_branch)
        self.instance_classifiers = nn.ModuleList(nn.Linear(embed_dim, 2) for _ in range(num_classes))
        if init == "xavier":
            xavier(self)
            if self.multi_branch and isinstance(self.classifier, nn.Linear):  # C separate layers of one output each
                nn.init.normal_(self.classifier.weight, std=(2 / (embed_dim + 1)) ** 0.5)

    def loss_terms(
        self, out: MILOutput, label: Tensor, class_weights: Tensor | None = None
    ) -> dict[str, tuple[float, Tensor]]:
        return {
            "bag": (self.bag_weight, bag_cross_entropy(out.logits, label, class_weights)),
            "instance": (1 - self.bag_weight, self.instance_loss(out, int(label))),
        }

    def instance_loss(self, out: MILOutput, label: int) -> Tensor:
        """``L_inst``, see :func:`lrmil_cli.heads.parts.clustering_loss`."""
        h, rows, svm = out.extra["instances"], out.extra["rows"].detach(), self.inst_loss == "svm"
        return clustering_loss(h, rows, label, self.instance_classifiers, k=self.k, subtyping=self.subtyping, svm=svm)


@register("clam_sb")
class CLAMSB(_CLAM):
    """Attention pooling, and clustering of the most and the least attended instances.

    Single branch: one attention row, ``logits = W sum(alpha h) + b``. Options: see ``_CLAM``.
    """

    def forward(
        self, features: Tensor, coords: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> MILOutput:
        check_bag(features, self.in_dim)
        h = self.project(features)
        rows = self.scorer(h).float()
        attention = torch.softmax(rows[0], 0)
        bag = attention.to(h.dtype) @ h
        return MILOutput(self.classifier(bag).float(), rows[0], attention, bag, extra={"instances": h, "rows": rows})


@register("clam_mb")
class CLAMMB(_CLAM):
    """As clam_sb, with an attention row a class.

    Multi branch: ``logits_c = w_c . sum(alpha_c h) + b_c``. Options: see ``_CLAM``.
    """

    multi_branch = True

    def forward(
        self, features: Tensor, coords: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> MILOutput:
        check_bag(features, self.in_dim)
        h = self.project(features)
        rows = self.scorer(h).float()
        bags = torch.softmax(rows, 1).to(h.dtype) @ h
        logits = own_logits(self.classifier, bags).float()
        scores = rows[logits.argmax()]
        return MILOutput(
            logits, scores, torch.softmax(scores, 0), bags, class_scores=rows, extra={"instances": h, "rows": rows}
        )
