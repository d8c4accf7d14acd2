"""CONCH's image tower: a timm ViT with an attentional pooler (encoders/README 5.1)."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class AttentionalPooler(nn.Module):
    """One learned query attends to all tokens of the trunk. Parameters bear the names of the published checkpoint.

    Args:
        width: of the tokens; dim: of the query and of the result; heads: of the attention.
    """

    def __init__(self, width: int, dim: int, heads: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, dim))
        self.ln_q = nn.LayerNorm(dim)
        self.ln_k = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(dim, heads, kdim=width, vdim=width, batch_first=True)
        self.ln_out = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, n, width], class token included -> [B, dim]."""
        key = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), -1, -1)
        pooled, _ = self.attn(query, key, key, need_weights=False)
        return self.ln_out(pooled)[:, 0]


class Conch(VisionTransformer):
    """The trunk, whose head is the pooler; the projection after it is for retrieval and left out."""

    def __init__(self, pool_dim: int = 512, pool_heads: int = 8, **trunk: Any):
        super().__init__(num_classes=0, **trunk)
        pooler = AttentionalPooler(self.embed_dim, pool_dim, pool_heads)
        self.attn_pool = pooler  # type: ignore[assignment]  # timm's is another, not built here; files hold this name

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        """Pooled, unprojected embedding [B, pool_dim] of the final tokens [B, 1 + g*g, D]."""
        return self.attn_pool(x)
