"""``--encoder SPEC``: from what the user writes to an :class:`Encoder` (encoders/README 2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lrmil_cli.encoders.aliases import IMAGENET, find_alias
from lrmil_cli.encoders.build import as_vit, create_vit, model_with_weights
from lrmil_cli.encoders.encoder_file import load_encoder_file
from lrmil_cli.encoders.hub import hub_client, unreachable
from lrmil_cli.encoders.sizes import default_input_size
from lrmil_cli.encoders.source import Source, find_source, weights_alone
from lrmil_cli.encoders.vit import EMBEDDINGS, Encoder, EncoderInfo, ViT
from lrmil_cli.errors import UsageError
from lrmil_cli.files.tensors import read_tensor_metadata
from lrmil_cli.progress import phase

DEMO_VIT = Path(__file__).with_name("demo_vit.safetensors")


def load_encoder(
    spec: str,
    *,
    tile_px: int = 256,
    ratio: int = 4,
    input_size: int | None = None,
    embedding: str | None = None,
    random_init: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> Encoder:
    """Load the encoder that ``spec`` names, on the CPU, in evaluation mode.

    Args:
        tile_px: side of the tiles it will get; decides the input size where neither the file nor the user says it.
        ratio: the token grid should divide by it.
        input_size: S, wins over the default (encoders/README 3).
        embedding: one of :data:`EMBEDDINGS`; default: as the file says, else ``cls``, or ``mean`` without class token.
        random_init: take random weights instead of pretrained ones.
        warn: told what had to be guessed.

    Raises:
        UsageError: unknown architecture, or an option that does not fit it.
        InputError: a weights file that cannot be used.
        MachineError: pretrained weights cannot be had.
    """
    if embedding is not None and embedding not in EMBEDDINGS:
        raise UsageError(f"--embedding {embedding}: choose one of {', '.join(EMBEDDINGS)}")
    ours = own_file(spec)
    if random_init and names_weights(spec):
        raise UsageError(
            f"--random-init makes no sense with the weights of {spec}; give an alias or a timm architecture"
        )
    if ours is not None:
        if ours != DEMO_VIT and "lrmil" not in read_tensor_metadata(ours):
            raise weights_alone(spec)
        encoder = load_encoder_file(ours, input_size=input_size, embedding=embedding)
    else:
        with phase(f"loading {spec}"):
            source = find_source(spec, random_init)
            encoder = _from_source(source, tile_px, ratio, input_size, embedding, random_init, warn)
    return encoder.eval().requires_grad_(False)


def names_weights(spec: str) -> bool:
    """Whether a spec says which weights, and not an architecture alone (or an alias, which is one too)."""
    return own_file(spec) is not None or "@" in spec or spec.startswith(("hf-hub:", "local-dir:"))


def own_file(spec: str) -> Path | None:
    """The encoder file of ours that a spec names; None where it names something else."""
    if spec == "demo-vit":
        return DEMO_VIT
    # A path may hold an @ too; NAME@FILE is not there as a file.
    return Path(spec) if spec.endswith(".safetensors") and ("@" not in spec or Path(spec).is_file()) else None


def absolute_spec(spec: str) -> str:
    """The same encoder from any working directory: a path (whole, after ``@`` or ``local-dir:``) is made absolute."""
    import timm

    if spec == "demo-vit" or find_alias(spec) or timm.is_model(spec):  # a name wins over a folder of that name
        return spec
    for mark in ("local-dir:", "", "@"):
        name, found, path = spec.partition(mark) if mark else ("", "", spec)
        if (found or not mark) and path and Path(path).exists():
            return f"{name}{found}{Path(path).absolute()}"
    return spec


def _from_source(
    source: Source,
    tile_px: int,
    ratio: int,
    input_size: int | None,
    embedding: str | None,
    random_init: bool,
    warn: Callable[[str], None],
) -> Encoder:
    patch = source.patch or _patch_side(source)
    size = input_size or default_input_size(patch, source.native, tile_px, ratio)
    architecture, args = source.architecture, source.arch_args
    if source.tensors is not None:
        model = model_with_weights(architecture, size, args, source.tensors, source.name, convert=True)
    else:
        model = create_vit(architecture, size, args) if random_init else _pretrained(source.name, size)
    if source.choice:
        warn(source.choice)
    if source.rgb is None:
        warn(f"encoder {source.name}: its config names no mean and std; ImageNet's are taken")
    mean, std = source.rgb or IMAGENET
    chosen = embedding or ("cls" if getattr(model, "cls_token", None) is not None else "mean")
    notes = ["random weights, not pretrained"] if random_init else []
    if source.embedding not in ("cls", chosen):
        notes.append(f"its authors use --embedding {source.embedding} for MIL")
    before, now = (v.get("pos_embed") for v in (source.tensors or {}, model.state_dict()))
    if before is not None and now is not None and before.shape[1] != now.shape[1]:
        notes.append(f"position embeddings interpolated from {before.shape[1]} to {now.shape[1]}")
    info = EncoderInfo(
        name=source.name,
        architecture=architecture,
        arch_args=args,
        image_size=size,
        mean=tuple(mean),
        std=tuple(std),
        embedding=chosen,
        base=source.base,
        license=source.license,
        random_init=random_init,
        note="; ".join(notes),
    )
    return Encoder(model.eval(), info)


def _pretrained(name: str, size: int) -> ViT:
    """A timm model with the weights that timm has for it.

    Raises:
        MachineError: they cannot be had.
        UsageError: there are none.
    """
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and not cfg.has_weights:
        raise UsageError(
            f"encoder {name}: timm has no pretrained weights for it; give a file as {name}@FILE, or --random-init"
        )
    try:
        with hub_client():
            model = timm.create_model(name, pretrained=True, num_classes=0, img_size=size)
    except Exception as e:  # all of the client's errors mean that the weights cannot be had
        raise unreachable(name, e) from e
    return as_vit(model, name)


def _patch_side(source: Source) -> int:
    """Pixels under one token, along a side; also of a hybrid encoder, whose tokens are cut from feature maps.

    Raises:
        UsageError: as :func:`create_vit`, and before anything is downloaded.
    """
    with torch.device("meta"):
        model = create_vit(source.architecture, None, source.arch_args)
    return int(model.feature_info[-1]["reduction"])
