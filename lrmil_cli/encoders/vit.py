"""The encoder: a ViT, its preprocessing, and the three things that are needed from it (encoders/README 1).

* spatial tokens after any block, without class and register tokens;
* the summary of a tile after any block (class token, or the mean token where there is none);
* the embedding that MIL works on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrmil_cli.encoders.sizes import valid_sizes
from lrmil_cli.errors import InputError, UsageError
from lrmil_cli.files.tensors import tensors_digest

EMBEDDINGS = ("cls", "mean", "cls+mean", "pool")


class PatchEmbed(nn.Module):
    """Of a :class:`ViT`, what cuts an image into tokens."""

    grid_size: tuple[int, int]


class ViT(nn.Module):
    """What the ViTs of timm have in common and we rely on; a type only, which :mod:`lrmil_cli.encoders.build` checks.

    Class and register tokens (``num_prefix_tokens``, ``cls_token``) are what some have and others do not.
    """

    blocks: nn.Sequential
    embed_dim: int
    patch_embed: PatchEmbed
    feature_info: list[dict[str, Any]]
    forward_features: Callable[[Tensor], Tensor]
    forward_head: Callable[..., Tensor]
    forward_intermediates: Callable[..., Any]


class Encoding(TypedDict, total=False):
    """What an encoder says of B tiles.

    Attributes:
        tokens: {block: [B, g, g, D]}; summary: {block: [B, D]}, class token or mean token; both of the raw residual
            stream, of the blocks that were asked for.
        final: [B, D_e], the embedding, where it was asked for.
    """

    tokens: dict[int, Tensor]
    summary: dict[int, Tensor]
    final: Tensor


@dataclass(frozen=True)
class EncoderInfo:
    """What must be known to rebuild an encoder and to use it as it was trained.

    Attributes:
        name: what the user called it.
        architecture, arch_args: for ``timm.create_model``, classes by name (JSON types only).
        image_size: input side S in px; mean, std: of RGB in 0..1.
        embedding: one of :data:`EMBEDDINGS`, what MIL gets.
        base, license: encoder it was distilled from (or itself) and its licence as far as known.
        random_init: the weights are random; every file made with it says so.
        distilled: how stage 1 was run, None for an encoder as published.
    """

    name: str
    architecture: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    embedding: str = "cls"
    arch_args: dict[str, Any] = field(default_factory=dict)
    mpp: float | None = None
    base: str = ""
    license: str = "unknown"
    random_init: bool = False
    distilled: dict[str, Any] | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types, for metadata."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


def info_from_json(values: dict[str, Any], where: str) -> EncoderInfo:
    """The inverse of :meth:`EncoderInfo.as_json`; keys it does not know are left out.

    Raises:
        InputError: a needed key is missing or of the wrong type.
    """
    known = {k: values[k] for k in EncoderInfo.__dataclass_fields__ if k in values}
    try:
        info = EncoderInfo(
            **{**known, "mean": tuple(map(float, known["mean"])), "std": tuple(map(float, known["std"]))}
        )
        if not (
            isinstance(info.architecture, str)
            and isinstance(info.image_size, int)
            and isinstance(info.arch_args, dict)
            and len(info.mean) == len(info.std) == 3
            and info.embedding in EMBEDDINGS
        ):
            raise ValueError("a value of the wrong type")
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{where}: the encoder's metadata is incomplete ({e}); copy or make the file again") from e
    return info


class Encoder(nn.Module):
    """A timm ViT with its preprocessing. Input is always uint8 RGB tiles as they are read from a slide.

    Attributes:
        depth: number of blocks L; width: token width D; grid: tokens along a side g; embed_dim: width of the embedding.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: ViT, info: EncoderInfo):
        super().__init__()
        self.model = model
        self.info = info
        self.depth = len(model.blocks)
        self.num_prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.has_class_token = self.num_prefix > 0 and getattr(model, "cls_token", None) is not None
        if info.embedding.startswith("cls") and not self.has_class_token:
            raise UsageError(f"encoder {info.name} has no class token; use --embedding mean")
        self.width = model.embed_dim
        self.register_buffer("mean", torch.tensor(info.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(1, 3, 1, 1), persistent=False)
        self.grid = int(model.patch_embed.grid_size[0])
        patch = int(model.feature_info[-1]["reduction"])
        # timm would leave out the pixels of the last, incomplete row and column
        if self.grid * patch != info.image_size:
            raise UsageError(
                f"encoder {info.name}: --input-size {info.image_size} is not a multiple of its patch side, {patch} px"
            )
        # Tokens of zeros through the head alone tell the width of any embedding; the blocks would take seconds.
        any_ = next(model.parameters())
        shape = (1, self.num_prefix + self.grid**2, self.width)
        with torch.no_grad():
            final = self.embed(torch.zeros(shape, dtype=any_.dtype, device=any_.device))
        if final.ndim != 2:
            raise UsageError(f"encoder {info.name} has no pooling of its own; use --embedding cls, mean or cls+mean")
        self.embed_dim = final.shape[1]

    def weights(self) -> dict[str, Tensor]:
        """State dict of the timm model."""
        return self.model.state_dict()

    def digest(self) -> str:
        """Which weights, preprocessing and embedding: decides whether features can be reused."""
        i = self.info
        rgb = "-".join(f"{v:.4g}" for v in (*i.mean, *i.std))
        return tensors_digest(self.weights()) + f"-{i.image_size}-{i.embedding}-{rgb}"

    def preprocess(self, tiles: Tensor) -> Tensor:
        """uint8 [B, P, P, 3] -> float [B, 3, S, S]; resized whole (never cropped, a crop would break the geometry)."""
        x = tiles.permute(0, 3, 1, 2).float() / 255
        size = self.info.image_size
        if x.shape[-1] != size or x.shape[-2] != size:
            x = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return (x - self.mean) / self.std

    def forward(self, tiles: Tensor, layers: tuple[int, ...] = (), *, need_final: bool = True) -> Encoding:
        """Encode tiles.

        Args:
            tiles: uint8 [B, P, P, 3].
            layers: zero-based blocks to return tokens of.
            need_final: without it the blocks after the last layer asked for are not run.
        """
        x = self.preprocess(tiles)
        out: Encoding = {"tokens": {}, "summary": {}}
        if layers:
            wanted = sorted(set(layers))
            result = self.model.forward_intermediates(
                x,
                indices=wanted,
                return_prefix_tokens=True,
                norm=False,
                output_fmt="NLC",
                intermediates_only=not need_final,
                stop_early=not need_final,
            )
            last, items = result if need_final else (None, result)
            for l, item in zip(wanted, items):
                # timm gives a bare tensor where the model has no prefix token
                spatial, prefix = item if isinstance(item, (tuple, list)) else (item, None)
                out["tokens"][l] = spatial.reshape(spatial.shape[0], self.grid, self.grid, -1)
                out["summary"][l] = prefix[:, 0] if self.has_class_token else spatial.mean(1)
        else:
            last = self.model.forward_features(x) if need_final else None
        if last is not None:
            out["final"] = self.embed(last)
        return out

    def embed(self, tokens: Tensor) -> Tensor:
        """Embedding [B, D_e] of the final, normalised tokens [B, prefix + g*g, D] (encoders/README 1.3)."""
        kind = self.info.embedding
        if kind == "pool":
            return self.model.forward_head(tokens, pre_logits=True)
        parts = []
        if kind in ("cls", "cls+mean"):
            parts.append(tokens[:, 0])
        if kind in ("mean", "cls+mean"):
            parts.append(tokens[:, self.num_prefix :].mean(1))
        return torch.cat(parts, dim=1)


def parse_layers(text: str, depth: int) -> tuple[int, ...]:
    """Blocks to distil: a list ("0,1,10"), negative indices counted from the end, or a name.

    Names: ``lrmil`` = (0, 1, L-2), the default of the official code; ``vitkd`` = (0, 1, L-1).

    Raises:
        UsageError: not a list of blocks that the encoder has.
    """
    names = {"lrmil": "0,1,-2", "vitkd": "0,1,-1"}
    try:
        layers = [int(v) for v in names.get(text.strip().lower(), text).split(",") if v.strip()]
    except ValueError as e:
        raise UsageError(f"--layers {text}: give zero-based blocks such as 0,1,10, or lrmil, or vitkd") from e
    resolved = [l + depth if l < 0 else l for l in layers]
    bad = [l for l, r in zip(layers, resolved) if not 0 <= r < depth]
    if bad or not resolved:
        raise UsageError(f"--layers {text}: the encoder has blocks 0 to {depth - 1}")
    return tuple(sorted(set(resolved)))


def check_grid(encoder: Encoder, ratio: int, *, allow_fractional: bool = False) -> None:
    """The LR token grid must split evenly into the cells of the HR tiles.

    Raises:
        UsageError: it does not; the message lists input sizes that do.
    """
    if encoder.grid % ratio and not allow_fractional:
        size = encoder.info.image_size
        near = sorted(sorted(valid_sizes(size // encoder.grid, ratio), key=lambda s: abs(s - size))[:3])
        raise UsageError(
            f"encoder {encoder.info.name}: {encoder.grid} x {encoder.grid} tokens at {size} px do not divide into "
            f"{ratio} x {ratio} cells; use --input-size {' or '.join(map(str, near))}, or --allow-fractional-regions"
        )
