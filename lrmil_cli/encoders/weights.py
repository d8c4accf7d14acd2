"""Tensors of a checkpoint into a model, strictly, by the names and grids of today's timm."""

from __future__ import annotations

import math
import sys

import torch

from lrmil_cli.encoders.checkpoint import MARK, State, few
from lrmil_cli.encoders.vit import ViT
from lrmil_cli.errors import InputError


def timm_format(tensors: State, model: torch.nn.Module, where: str) -> State:
    """Weights in the names of today's timm, position embeddings on the model's grid, by timm's own conversion for such
    a model.

    Raises:
        InputError: the patches are of another side, which timm would resample.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    own, theirs = model.state_dict().get(MARK), tensors.get(MARK)
    if own is not None and theirs is not None and theirs.ndim == own.ndim == 4 and theirs.shape[2:] != own.shape[2:]:
        raise InputError(
            f"{where}: the weights do not fit the architecture; their patches are of {theirs.shape[-1]} px, "
            f"its of {own.shape[-1]} px"
        )
    try:
        return convert(dict(tensors), model)
    except (RuntimeError, AssertionError, ValueError, KeyError, AttributeError, TypeError):
        return tensors  # of no layout that timm knows; loading them as they are says which do not fit


def load_weights(model: ViT, tensors: State, where: str) -> None:
    """Make ``tensors`` the model's own, strictly; position embeddings of another grid are interpolated (bicubic,
    antialiased).

    Raises:
        InputError: missing, unexpected or misshapen tensors; the message lists the first of them.
    """
    from timm.layers import resample_abs_pos_embed

    own = model.state_dict()
    if not any(k.startswith("head.") for k in own):
        tensors = {k: v for k, v in tensors.items() if not k.startswith(("head.", "fc."))}
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise InputError(
            f"{where}: the weights do not fit the architecture; missing: {few(missing)}; unexpected: {few(unexpected)}"
        )
    position = tensors.get("pos_embed")
    if position is not None and position.ndim == 3 and position.shape != own["pos_embed"].shape:
        prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
        spatial = position.shape[1] - prefix
        if spatial > 0 and math.isqrt(spatial) ** 2 == spatial:  # else it is of another layout, which is refused
            grid = list(model.patch_embed.grid_size)
            tensors = {**tensors, "pos_embed": resample_abs_pos_embed(position.float(), grid, num_prefix_tokens=prefix)}
    wrong = [
        f"{k} {list(v.shape)} for {list(own[k].shape)}" for k, v in sorted(tensors.items()) if v.shape != own[k].shape
    ]
    if wrong:
        raise InputError(
            f"{where}: the weights do not fit the architecture; of another shape: {few(wrong)}; name the one they are "
            "of, as NAME@FILE"
        )
    model.load_state_dict(tensors, assign=True)


def conch_state(state: State) -> State:
    """The part of CONCH's checkpoint that the encoder needs, under our names (encoders/README 5.1).

    What belongs to the text tower and to captions is left out; all other names pass, so that loading complains of them.
    """
    left_out = (
        "visual.attn_pool_caption.",
        "visual.ln_caption.",
        "visual.proj_contrast",
        "text.",
        "text_decoder.",
        "logit_scale",
    )
    renamed = {
        "visual.trunk.": "",
        "visual.attn_pool_contrast.": "attn_pool.",
        "visual.ln_contrast.": "attn_pool.ln_out.",
    }
    out = {}
    for key, value in state.items():
        if not key.startswith(left_out):
            old = next((p for p in renamed if key.startswith(p)), "")
            out[renamed.get(old, "") + key[len(old) :]] = value
    return out
