"""TransMIL (Shao et al. 2021): two Nystroem-attention layers with a convolutional position encoding between them.

The attention is derived: the class token's exact attention in layer 2, of which the Nystroem form is an approximation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrmil_cli.device import full_precision
from lrmil_cli.errors import UsageError
from lrmil_cli.heads.base import MILHead, MILOutput, check_bag, register


def pseudo_inverse(g: Tensor, iterations: int = 6) -> Tensor:
    """Iterative Moore-Penrose inverse of attention matrices [heads, m, m].

    ``Z0 = G^T / (r q)`` with the largest row and column sums of ``|G|`` over all heads together;
    ``Z <- Z (13 I - G Z (15 I - G Z (7 I - G Z))) / 4``.
    """
    eye = torch.eye(g.shape[-1], device=g.device, dtype=g.dtype)
    z = g.transpose(-1, -2) / (g.abs().sum(-1).max() * g.abs().sum(-2).max())
    for _ in range(iterations):
        gz = g @ z
        z = z @ (13 * eye - gz @ (15 * eye - gz @ (7 * eye - gz))) / 4
    return z


def _wide(t: Tensor) -> Tensor:
    """float32, or float64 as it is: the pseudo-inverse does not survive half precision."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


class NystromAttention(nn.Module):
    """Self-attention of [n, E] tokens through ``landmarks`` means of consecutive rows, and a convolution of the values.

    Zero rows in front fill the sequence up to a multiple of ``landmarks``; of the result the last n rows are kept.
    """

    def __init__(self, width: int, heads: int, landmarks: int, iterations: int, dropout: float):
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Conv2d(heads, heads, (33, 1), padding=(16, 0), groups=heads, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        q, k, v, pad = self.split(y)
        with full_precision(y.device):
            f, z, b = self.factors(_wide(q), _wide(k))
            attended = (f @ z) @ (b @ _wide(v))
        mixed = attended.to(v.dtype) + self.mix(v.unsqueeze(0))[0]
        return self.dropout(self.out(mixed.transpose(0, 1).flatten(1)))[pad:]

    def split(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Scaled queries, keys, values [heads, n', d] of the padded tokens, and how many rows were put in front."""
        pad = -len(y) % self.landmarks
        q, k, v = (
            t.unflatten(1, (self.heads, -1)).transpose(0, 1)
            for t in self.qkv(nn.functional.pad(y, (0, 0, pad, 0))).chunk(3, dim=1)
        )
        return q * q.shape[-1] ** -0.5, k, v, pad

    def factors(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``F`` [heads, n', m], pseudo-inverse ``Z`` [heads, m, m], ``B`` [heads, m, n']."""
        qm, km = (t.unflatten(1, (self.landmarks, -1)).mean(2) for t in (q, k))
        f = torch.softmax(q @ km.transpose(1, 2), -1)
        g = torch.softmax(qm @ km.transpose(1, 2), -1)
        b = torch.softmax(qm @ k.transpose(1, 2), -1)
        return f, pseudo_inverse(g, self.iterations), b

    def first_token(self, y: Tensor, how: str) -> Tensor:
        """Attention of the first token to the others, mean over heads, [n - 1], a distribution.

        ``exact``: softmax of its query with their keys. ``nystrom``: its row of ``F Z B``, without what the
        approximation makes negative, renormalised.
        """
        q, k, _, pad = self.split(y)
        with full_precision(y.device):
            q, k = _wide(q), _wide(k)
            if how == "exact":
                return torch.softmax((k[:, pad + 1 :] @ q[:, pad].unsqueeze(2)).squeeze(2), -1).mean(0)
            f, z, b = self.factors(q, k)
            row = ((f[:, pad].unsqueeze(1) @ z) @ b).squeeze(1).mean(0)[pad + 1 :].clamp(min=0)
            return row / row.sum().clamp(min=1e-12)


class _PPEG(nn.Module):
    """Position encoding: three depthwise convolutions over the square of instance tokens [S*S, E], added to them."""

    def __init__(self, width: int):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in (7, 5, 3))

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        image = tokens.T.unflatten(1, (side, side)).unsqueeze(0)
        return (image + sum(c(image) for c in self.convolutions))[0].flatten(1).T


@register("transmil")
class TransMIL(MILHead):
    """Transformer over all instances: Nystroem attention, and convolutions over their square.

    Class token and instances, laid out as a square in reading order (by ``coords`` where they are given).

    Args:
        embed_dim: E; heads: of both layers; landmarks: m, E / 2 if None; iterations: of the pseudo-inverse.
        dropout: after the output projection of both layers.
        attention: "exact" (the class token's softmax in layer 2) or "nystrom" (the published heatmap).
    """

    attention_kind = "derived"
    classes_only = ""
    sources = {
        "embed_dim": "official code",
        "heads": "official code",
        "landmarks": "official code (half of embed_dim)",
        "iterations": "official code",
        "dropout": "official code",
        "attention": "ours: a distribution, which the published row is not",
    }

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        of_classes: bool = True,
        *,
        embed_dim: int = 512,
        heads: int = 8,
        landmarks: int | None = None,
        iterations: int = 6,
        dropout: float = 0.1,
        attention: str = "exact",
    ):
        if attention not in ("exact", "nystrom"):
            raise UsageError(f"transmil option attention={attention}: choose exact or nystrom")
        if embed_dim % heads:
            raise UsageError(f"transmil options: embed_dim {embed_dim} must be a multiple of heads {heads}")
        super().__init__(in_dim, num_classes, of_classes)
        self.attention = attention
        self.project = nn.Sequential(nn.Linear(in_dim, embed_dim), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(embed_dim))
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.layer1, self.layer2 = (
            NystromAttention(embed_dim, heads, landmarks or embed_dim // 2, iterations, dropout) for _ in range(2)
        )
        self.position = _PPEG(embed_dim)
        self.classifier = nn.Linear(embed_dim, num_classes)

    def forward(
        self, features: Tensor, coords: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> MILOutput:
        check_bag(features, self.in_dim)
        n = len(features)
        order = torch.arange(n, device=features.device)
        if coords is not None:
            order = reading_order(coords.to(features.device))
        h = self.project(features[order])
        side = math.isqrt(n - 1) + 1  # the smallest square that holds them
        x = torch.cat([self.class_token.unsqueeze(0), h, h[: side * side - n]])
        x = x + self.layer1(self.norm1(x))
        x = torch.cat([x[:1], self.position(x[1:], side)])
        y = self.norm2(x)
        x = x + self.layer2(y)
        bag = self.norm(x[0])
        weights, copies = self.layer2.first_token(y, self.attention), side * side - n
        weights = torch.cat([weights[:copies] + weights[n:], weights[copies:n]])  # copies go to their original
        back = order.argsort()
        scores = torch.log(weights.clamp(min=1e-12))[back]
        logits = self.classifier(bag).float()
        return MILOutput(logits, scores, torch.softmax(scores, 0), bag, extra={"instances": h[back]})


def reading_order(coords: Tensor) -> Tensor:
    """Row by row, left to right: coords [N, 2] of (x, y) -> int64 [N]."""
    by_x = coords[:, 0].argsort(stable=True)
    return by_x[coords[by_x, 1].argsort(stable=True)]
