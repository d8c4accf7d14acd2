"""ZoomMIL (Thandiackal et al. 2022): look at all tiles of a low magnification, pick some, look at their children."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lrmil_cli.errors import UsageError
from lrmil_cli.heads.base import MILHead, MILOutput, Scorer, check_bag, register
from lrmil_cli.heads.parts import embedding
from lrmil_cli.heads.topk import perturbed_topk, top_rows


@register("zoommil")
class ZoomMIL(MILHead):
    """Learned zooming through a pyramid of tiles.

    Each level has its own ``E_t``, scorer ``A_t`` and, but for the last, a scorer ``Aaux_t`` that only selects:
    ``h = E_t(x)``, ``M_t = sum softmax(A_t(h)) h``, ``u = softmax(Aaux_t(h))``; the children of the k parents with the
    largest ``u`` are the next level's tiles; ``logits = W (M_0 + M_1 + ...) + b``. In training the selection is a
    perturbed top-k.

    Our choices where tiles without tissue are missing from the tables: a parent without children is not picked while
    there are others; in training, where slots blend parents, a child is there if the picked parents that have it weigh
    a half or more.

    Args:
        levels: of the pyramid; k: parents picked at each; samples, sigma: draws and width of the perturbation.
        embed_dim, hidden, dropout: of ``E_t`` and the gated scorers.
    """

    attention_kind = "native"
    takes = "pyramid"
    classes_only = ""
    sources = {
        "levels": "ours: 5x and 20x, which LRMIL has anyway; published with three",
        "k": "official code",
        "samples": "official code",
        "sigma": "official code",
        "embed_dim": "official code",
        "hidden": "official code",
        "dropout": "official code (its configurations, the class has none)",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        of_classes: bool = True,
        *,
        levels: int = 2,
        k: int = 12,
        samples: int = 100,
        sigma: float = 0.002,
        embed_dim: int = 512,
        hidden: int = 256,
        dropout: float = 0.25,
    ):
        if levels not in (2, 3) or k < 1 or samples < 1 or sigma <= 0:
            raise UsageError("zoommil options: levels must be 2 or 3, k and samples at least 1, sigma above 0")
        super().__init__(in_dim, num_classes, of_classes)
        self.levels, self.k, self.samples, self.sigma = levels, k, samples, sigma
        self.project = nn.ModuleList(embedding(in_dim, embed_dim, dropout) for _ in range(levels))
        self.scorers = nn.ModuleList(Scorer(embed_dim, hidden, gated=True, dropout=dropout) for _ in range(levels))
        self.selectors = nn.ModuleList(
            Scorer(embed_dim, hidden, gated=True, dropout=dropout) for _ in range(levels - 1)
        )
        self.classifier = nn.Linear(embed_dim, num_classes)

    def forward(
        self,
        levels: Sequence[Tensor],
        children: Sequence[Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> MILOutput:
        """A pyramid bag (:class:`lrmil_cli.heads.PyramidBag`), called as ``head(*bag)``.

        Args:
            levels: features [N_t, D] of each level; in evaluation the last ones may be missing, the selection then ends
                before them.
            children: int64 [N_t, r_t] of each level but the last, rows in the next one, -1 for a child that is not
                there.

        Returns:
            scores and attention over the lowest level; ``extra``, in evaluation, with ``selected<t>``, rows of level t
            that were picked, and of each deeper level ``looked<t>``, rows that were looked at (-1 for a child that is
            not there), with their ``attention<t>``; in training with ``agreement``, how often draws agree on a slot.
        """
        if isinstance(levels, Tensor) or children is None:
            raise UsageError(
                "head zoommil looks at a pyramid of tiles; train it with `lrmil distill-student --method zoommil`"
            )
        check_bag(levels[0], self.in_dim)
        if self.training:
            return self._blend(levels, children, generator)
        return self._pick(levels, children)

    def _pick(self, levels: Sequence[Tensor], children: Sequence[Tensor]) -> MILOutput:
        """Evaluation: ``rows`` of a level are looked at, and the children of the best k are the next level's rows."""
        rows = torch.arange(len(levels[0]), device=levels[0].device)
        extra: dict[str, Tensor] = {}
        pooled, scores = [], []
        for t in range(len(levels)):
            there = rows >= 0
            h, own = self._look(t, _rows_of(levels[t], rows) if t else levels[0], there)
            scores.append(own)
            if t == 0:
                extra["instances"] = h
            if not bool(there.any()):
                break
            attention = torch.softmax(own, 0)
            pooled.append(attention.to(h.dtype) @ h)
            if t:
                extra[f"looked{t}"], extra[f"attention{t}"] = rows, attention
            if t == self.levels - 1:
                break
            kin = _rows_of(children[t], rows, -1)
            # A parent without children has nothing to show, as long as there are others.
            able = there & (kin >= 0).any(1)
            if not bool(able.any()):
                break
            picked = top_rows(self._wish(t, h, able), min(self.k, int(able.sum())))
            extra[f"selected{t}"] = rows[picked]
            rows = kin[picked].flatten()
        return self._answer(pooled, scores[0], extra)

    def _blend(
        self, levels: Sequence[Tensor], children: Sequence[Tensor], generator: torch.Generator | None
    ) -> MILOutput:
        """Training: a slot is the mean of the parents that the draws put there, and so are its children."""
        x, there = levels[0], torch.ones(len(levels[0]), dtype=torch.bool, device=levels[0].device)
        # What lies below each of the rows that are left, as a tree: [n, r_0, D], [n, r_0, r_1, D], ...
        below = [gather_children(levels, children, t) for t in range(1, len(levels))]
        extra: dict[str, Tensor] = {}
        pooled, scores, agreement = [], [], []
        for t in range(len(levels)):
            h, own = self._look(t, x, there)
            scores.append(own)
            if t == 0:
                extra["instances"] = h
            if not bool(there.any()):
                break
            pooled.append(torch.softmax(own, 0).to(h.dtype) @ h)
            if t == self.levels - 1:
                break
            able = there & below[0][1].flatten(1).any(1)
            if not bool(able.any()):
                break
            u = self._wish(t, h, able)
            # Rows that cannot be picked stay out of every draw.
            noise = torch.randn(self.samples, len(u), generator=generator, device=u.device)
            index = able.nonzero().flatten()
            select = perturbed_topk(u[index], min(self.k, len(index)), self.sigma, noise[:, index])
            agreement.append(select.detach().max(1).values.mean())
            mixed = []
            for features, held in below:
                part = torch.einsum("kn,n...d->k...d", select.to(features.dtype), features[index])
                mass = torch.einsum("kn,n...->k...", select, held[index].float())
                mixed.append((part.flatten(0, 1), mass.flatten(0, 1) >= 0.5))
            (x, there), below = mixed[0], mixed[1:]
        if agreement:
            extra["agreement"] = torch.stack(agreement).mean()
        return self._answer(pooled, scores[0], extra)

    def _look(self, t: int, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Instances [n, L] and scores [n] of level t, -inf for rows that are not there."""
        h = self.project[t](x)
        return h, self.scorers[t](h)[0].float().masked_fill(~there, -torch.inf)

    def _wish(self, t: int, h: Tensor, able: Tensor) -> Tensor:
        """What the selection of level t goes by: softmax [n], 0 for rows that are not ``able``."""
        return torch.softmax(self.selectors[t](h)[0].float().masked_fill(~able, -torch.inf), 0)

    def _answer(self, pooled: list[Tensor], scores: Tensor, extra: dict[str, Tensor]) -> MILOutput:
        total = sum(pooled[1:], pooled[0])
        logits = self.classifier(total).float()
        return MILOutput(logits, scores, torch.softmax(scores, 0), total, extra=extra)

    def notes(self, out: MILOutput) -> dict[str, Tensor]:
        """How often the draws of training agree on a slot."""
        return {name: out.extra[name] for name in ("agreement",) if name in out.extra}


def gather_children(levels: Sequence[Tensor], children: Sequence[Tensor], t: int) -> tuple[Tensor, Tensor]:
    """Descendants at level t of the tiles of level 0: features [N_0, r_0, .., r_(t-1), D] and which are there, bool."""
    rows = torch.arange(len(levels[0]), device=levels[0].device)
    for kin in children[:t]:
        rows = _rows_of(kin, rows, -1)
    return _rows_of(levels[t], rows), rows >= 0


def _rows_of(table: Tensor, rows: Tensor, missing: int = 0) -> Tensor:
    """Rows of ``table`` [N, D], filled with ``missing`` for -1."""
    return nn.functional.pad(table, (0, 0, 0, 1), value=missing)[rows]
