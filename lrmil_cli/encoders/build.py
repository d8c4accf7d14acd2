"""From an architecture and weights to an :class:`Encoder`."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from lrmil_cli.encoders.aliases import ALIASES, CONCH
from lrmil_cli.encoders.checkpoint import State
from lrmil_cli.encoders.vit import Encoder, EncoderInfo, ViT
from lrmil_cli.encoders.weights import load_weights, timm_format
from lrmil_cli.errors import UsageError

#: Arguments that are ours to decide, or that would make timm read other files; never taken from a config or a file.
OWN_ARGS = {
    "img_size",
    "num_classes",
    "dynamic_img_size",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
}


def build_encoder(
    info: EncoderInfo, tensors: State, where: str, *, input_size: int | None = None, embedding: str | None = None
) -> Encoder:
    """An :class:`Encoder` of ``info`` with the weights ``tensors``.

    Raises:
        InputError: the weights do not fit the architecture.
    """
    if input_size is not None:
        info = replace(info, image_size=input_size)
    if embedding is not None:
        info = replace(info, embedding=embedding)
    return Encoder(model_with_weights(info.architecture, info.image_size, info.arch_args, tensors, where).eval(), info)


def create_vit(architecture: str, image_size: int | None, arch_args: dict[str, Any]) -> ViT:
    """A ViT with random weights.

    Args:
        image_size: input side in px; None for the architecture's own.
        arch_args: for timm, with classes by name; arguments of :data:`OWN_ARGS` are left out.

    Raises:
        UsageError: timm does not know it, it cannot take that size, or it has no constant token grid.
    """
    import timm
    from timm.layers import SwiGLUPacked

    classes: dict[str, Any] = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}
    args = {k: classes.get(v, v) if k.endswith("_layer") else v for k, v in arch_args.items() if k not in OWN_ARGS}
    if image_size is not None:
        args["img_size"] = image_size
    if architecture != CONCH and not timm.is_model(architecture):
        raise unknown_architecture(architecture)
    try:
        if architecture == CONCH:
            from lrmil_cli.encoders.conch import Conch

            model: nn.Module = Conch(**args)
        else:
            model = timm.create_model(architecture, pretrained=False, num_classes=0, **args)
    except (TypeError, AssertionError, ValueError, RuntimeError) as e:
        raise UsageError(
            f"encoder {architecture}: cannot be built{f' for {image_size} px input' if image_size else ''} "
            f"({' '.join(str(e).split())[:100]}); stage 1 needs a ViT"
        ) from e
    return as_vit(model, architecture)


def as_vit(model: nn.Module, name: str) -> ViT:
    """The same model, if it has blocks, one constant token grid, and prefix tokens apart from the spatial ones.

    Raises:
        UsageError: hierarchical or convolutional trunk, or a class token that joins late.
    """
    forward = getattr(model, "forward_intermediates", None)
    if not (
        hasattr(model, "blocks")
        and isinstance(getattr(model, "embed_dim", None), int)
        and getattr(getattr(model, "patch_embed", None), "grid_size", None)
        and forward is not None
        and "return_prefix_tokens" in inspect.signature(forward).parameters
    ):
        raise UsageError(f"encoder {name}: not a plain ViT (no constant token grid); choose a vit_* model of timm")
    return cast(ViT, model)


def unknown_architecture(architecture: str) -> UsageError:
    """The error for a name that is neither an alias nor an architecture of timm."""
    import timm

    near = timm.list_models(f"*{architecture[:12]}*")[:3]
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return UsageError(
        f"encoder {architecture!r}: no such timm architecture, alias or file; {hint}"
        f"aliases (see `lrmil info --encoders`): {', '.join(ALIASES)}"
    )


def model_with_weights(
    architecture: str, size: int, args: dict[str, Any], tensors: State, where: str, *, convert: bool = False
) -> ViT:
    """The model with ``tensors``, in float32, for parameters. None are drawn at random first, which takes 3 s for a
    ViT-L.

    Args:
        convert: the tensors may be in names that timm has to change.

    Raises:
        UsageError, InputError: as :func:`create_vit`, :func:`timm_format` and :func:`load_weights`.
    """
    tensors = {k: v.float() for k, v in tensors.items()}
    with torch.device("meta"):
        model = create_vit(architecture, size, args)
    load_weights(model, timm_format(tensors, model, where) if convert else tensors, where)
    if any(b.is_meta for b in model.buffers()):  # tables of rotary positions are computed, not stored
        model = create_vit(architecture, size, args)
        load_weights(model, timm_format(tensors, model, where) if convert else tensors, where)
    return model
