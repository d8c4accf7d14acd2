"""DMIN, the dynamic multi-instance network of HDMIL and AHDMIL (Dong et al. 2025): classify from what is worth it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrmil_cli.errors import UsageError
from lrmil_cli.heads.base import Apart, MILHead, MILOutput, Scorer, bag_cross_entropy, check_bag, register
from lrmil_cli.heads.chebyshev import DEGREE, make_classifier, own_logits
from lrmil_cli.heads.parts import clustering_loss, embedding, xavier

#: Share of the instances that is kept, by mean score, where the mask keeps none.
FALLBACK_SHARE = 0.05
#: Uniform draws stay this far off 0 and 1, so that the noise is finite.
UNIFORM_EPS = 1e-6
#: Above the largest kept score by this much, the weight that a dropped instance would have had counts no further
#: (gradient only).
EXPONENT_LIMIT = 10.0
#: What the attention of the student branch is divided by in training: the sum of its class, or of all classes.
NORMALISE = ("per-class", "published")


@register("dmin")
class DMIN(MILHead):
    """Attention row a class (or output), each over the instances that its mask keeps.

    ``h = E(x)``, raw scores ``A`` [C, N] by a gated scorer, ``E_c = sum_n beta_cn h_n`` with the softmax ``beta_c``
    over the kept instances, ``logits_c = Phi_c(E_c)`` (heads/README 3.7). In training a teacher branch (all instances)
    and a student branch (Gumbel masks) share all parameters and learn from each other; in evaluation the student branch
    answers, with the mask ``A > 0``.

    Args:
        embed_dim: width of h; hidden: of the scorer; dropout: of both; tau: temperature of the Gumbel masks.
        retention: share of the instances that the masks of training should keep.
        classifier: "cka" or "linear", of bags and instances; degree: of cka.
        k, subtyping: of CLAM's instance loss, see clam_sb.
        bag_weight, instance_weight, kl_weight, embed_weight, rate_weight: of the five losses.
        detach_teacher: the student branch learns from the teacher branch alone, not the other way round too.
        normalise: of the student branch's attention in training: "per-class", as in evaluation, or "published", by the
            sum over all classes.
    """

    attention_kind = "native"
    classes_only = ""
    sources = {
        "embed_dim": "official code",
        "hidden": "official code",
        "dropout": "official code",
        "retention": "official code (0.7 for two of its four data sets)",
        "classifier": "paper",
        "degree": "official code (16 for one of its data sets)",
        "k": "official code (8 for one of its data sets)",
        "subtyping": "official code (on for its subtyping data sets)",
        "tau": "official code",
        "bag_weight": "official code",
        "instance_weight": "official code",
        "kl_weight": "official code",
        "embed_weight": "official code",
        "rate_weight": "official code",
        "detach_teacher": "official code",
        "normalise": "ours: as in evaluation; the official code divides by the sum over all classes in training",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        of_classes: bool = True,
        *,
        embed_dim: int = 512,
        hidden: int = 256,
        dropout: float = 0.25,
        retention: float = 0.6,
        classifier: str = "cka",
        degree: int = DEGREE,
        k: int = 32,
        subtyping: bool = False,
        tau: float = 0.7,
        bag_weight: float = 0.7,
        instance_weight: float = 0.3,
        kl_weight: float = 0.5,
        embed_weight: float = 0.5,
        rate_weight: float = 2.0,
        detach_teacher: bool = False,
        normalise: str = "per-class",
    ):
        if not 0 < retention <= 1 or tau <= 0 or k < 1:
            raise UsageError("dmin options: retention must be above 0 and at most 1, tau above 0, k at least 1")
        if normalise not in NORMALISE:
            raise UsageError(f"dmin option normalise {normalise!r}: choose one of {', '.join(NORMALISE)}")
        super().__init__(in_dim, num_classes, of_classes)
        self.joint = normalise == "published"
        self.retention, self.k, self.subtyping = retention, k, subtyping
        self.tau, self.detach_teacher = tau, detach_teacher
        self.weights = {
            "bag": bag_weight,
            "instance": instance_weight,
            "kl": kl_weight,
            "embed": embed_weight,
            "rate": rate_weight,
        }
        self.project = embedding(in_dim, embed_dim, dropout)
        self.scorer = Scorer(embed_dim, hidden, num_classes, gated=True, dropout=dropout)
        self.classifier = make_classifier(classifier, embed_dim, num_classes, degree, separate=True)
        self.instance_classifiers = nn.ModuleList(
            make_classifier(classifier, embed_dim, 2, degree) for _ in range(num_classes if of_classes else 0)
        )
        xavier(self)
        if isinstance(self.classifier, nn.Linear):  # C layers of one output each
            nn.init.normal_(self.classifier.weight, std=(2 / (embed_dim + 1)) ** 0.5)

    def forward(
        self, features: Tensor, coords: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> MILOutput:
        check_bag(features, self.in_dim)
        h = self.project(features)
        rows = self.scorer(h).float()
        if not self.training:
            return self._from_mask(h, rows, rows > 0)
        mask = gumbel_mask(rows, self.tau, generator)
        full = torch.softmax(rows, 1).to(h.dtype) @ h
        kept = masked_softmax(rows, settle(mask, rows.detach())[0], joint=self.joint).to(h.dtype) @ h
        logits = own_logits(self.classifier, full).float()
        extra = {
            "instances": h,
            "rows": rows,
            "mask": mask.detach() > 0.5,
            "rate": union_rate(mask),
            "student_embedding": kept,
            "student_logits": own_logits(self.classifier, kept).float(),
        }
        return self._answer(logits, rows, full, extra)

    def relevance(self, features: Tensor) -> Tensor:
        """Raw scores A [C, N] of instances [N, D]; above 0 a class keeps the instance."""
        check_bag(features, self.in_dim)
        return self.scorer(self.project(features)).float()

    def select(self, features: Tensor, mask: Tensor) -> MILOutput:
        """The student branch with somebody else's mask, such as the screener's.

        Args:
            features: [N, D]; mask: bool [C, N], the instances that each class sees.
        """
        check_bag(features, self.in_dim)
        h = self.project(features)
        return self._from_mask(h, self.scorer(h).float(), mask)

    def _from_mask(self, h: Tensor, rows: Tensor, mask: Tensor) -> MILOutput:
        used, empty = settle(mask.to(rows.dtype), rows.detach())
        bags = masked_softmax(rows, used).to(h.dtype) @ h
        logits = own_logits(self.classifier, bags).float()
        extra = {
            "instances": h,
            "rows": rows,
            "mask": mask,
            "rate": mask.any(0).float().mean(),
            "used": used > 0.5,
            "empty_classes": empty,
            "empty": empty.all(),
        }
        return self._answer(logits, rows, bags, extra)

    def _answer(self, logits: Tensor, rows: Tensor, bags: Tensor, extra: dict[str, Tensor]) -> MILOutput:
        """The attention is the predicted class's; where there are none, that of the mean score."""
        scores = rows[logits.argmax()] if self.of_classes else rows.mean(0)
        own = rows if self.of_classes else None
        return MILOutput(logits, scores, torch.softmax(scores, 0), bags, class_scores=own, extra=extra)

    def loss_terms(
        self, out: MILOutput, label: Tensor, class_weights: Tensor | None = None
    ) -> dict[str, tuple[float, Tensor]]:
        """CE of the teacher branch, instance loss, KL and MSE between the branches, kept rate (heads/README 3.7).

        Of an output of evaluation mode, which has one branch, the cross-entropy alone.
        """
        bag = bag_cross_entropy(out.logits, label, class_weights)
        terms = self.target_terms(out, bag, _divergence)
        if "student_logits" in out.extra:
            h, rows, instance = out.extra["instances"], out.extra["rows"].detach(), self.instance_classifiers
            loss = clustering_loss(h, rows, int(label), instance, k=self.k, subtyping=self.subtyping, svm=True)
            terms = {"bag": terms.pop("bag"), "instance": (self.weights["instance"], loss), **terms}
        return terms

    def target_terms(self, out: MILOutput, loss: Tensor, apart: Apart) -> dict[str, tuple[float, Tensor]]:
        """As :meth:`loss_terms`, without the instance loss, which knows classes alone (heads/README 3.7)."""
        if "student_logits" not in out.extra:
            return {"bag": (1.0, loss)}
        teacher, full = out.logits, out.embedding
        assert full is not None  # forward gives one an output
        if self.detach_teacher:
            teacher, full = teacher.detach(), full.detach()
        losses = {
            "bag": loss,
            "kl": apart(out.extra["student_logits"], teacher),
            "embed": F.mse_loss(out.extra["student_embedding"].float(), full.float()),
            "rate": (out.extra["rate"] - self.retention) ** 2,
        }
        return {name: (self.weights[name], term) for name, term in losses.items()}

    def notes(self, out: MILOutput) -> dict[str, Tensor]:
        """The share kept: of the random masks in training, which the rate loss steers, and of the hard one in
        evaluation, which it does not."""
        return {"kept": out.extra["rate"]}


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``KL(softmax(teacher) || softmax(student))`` of logits [C]."""
    log_teacher, log_student = torch.log_softmax(teacher, 0), torch.log_softmax(student, 0)
    return (log_teacher.exp() * (log_teacher - log_student)).sum()


def straight_through(soft: Tensor) -> Tensor:
    """``1[s > 0.5]`` in the forward pass, the gradient of s in the backward pass."""
    hard = (soft > 0.5).to(soft.dtype)
    return hard - soft.detach() + soft


def gumbel_mask(scores: Tensor, tau: float, generator: torch.Generator | None = None) -> Tensor:
    """Random mask of training, 0 or 1, shaped as ``scores``: 1 with probability ``sigma(score)`` whatever ``tau`` is.

    ``s = sigma((A + g1 - g2) / tau)`` with Gumbel noise, whose difference is logistic: ``log u - log(1 - u)``.
    """
    u = torch.rand(scores.shape, generator=generator, device=scores.device, dtype=scores.dtype)
    u = u.clamp(UNIFORM_EPS, 1 - UNIFORM_EPS)
    return straight_through(torch.sigmoid((scores + torch.log(u) - torch.log1p(-u)) / tau))


def union_rate(mask: Tensor) -> Tensor:
    """Share of the instances that any class keeps: mask [C, N] -> scalar, straight-through to the sum over classes."""
    total = mask.sum(0)
    return ((total > 0.5).to(total.dtype) - total.detach() + total).mean()


def masked_softmax(scores: Tensor, mask: Tensor, *, joint: bool = False) -> Tensor:
    """Softmax of each row over the instances with mask 1: scores, mask [C, N] -> weights [C, N], 0 where the mask is 0.

    With ``joint`` over all rows together, so that all weights sum to 1 and not those of each row.

    The largest kept score is subtracted, so nothing overflows; the gradient reaches the mask. Each row must keep
    something.
    """
    top = scores.detach().masked_fill(mask.detach() < 0.5, -torch.inf).amax((0, 1) if joint else 1, keepdim=True)
    weights = mask * torch.exp((scores - top).clamp(max=EXPONENT_LIMIT))
    return weights / weights.sum((0, 1) if joint else 1, keepdim=True)


def settle(mask: Tensor, scores: Tensor, share: float = FALLBACK_SHARE) -> tuple[Tensor, Tensor]:
    """A mask in which every class keeps something (heads/README 3.7).

    A class that keeps nothing gets the union of all classes; if that is empty too, the ``max(1, ceil(share N))``
    instances of the highest mean score.

    Args:
        mask: [C, N] of 0 and 1 (its gradient is passed on); scores: [C, N].

    Returns:
        the mask, and bool [C], the classes that had kept nothing.
    """
    hard = mask.detach() > 0.5
    empty = ~hard.any(1)
    if not empty.any():
        return mask, empty
    instead = hard.any(0)
    if empty.all():
        instead = torch.zeros_like(instead)
        n = max(1, math.ceil(share * len(instead)))
        instead[scores.detach().mean(0).argsort(descending=True, stable=True)[:n]] = True
    filled = torch.where(empty[:, None], instead.to(mask.dtype), hard.to(mask.dtype))
    return filled + mask - mask.detach(), empty
