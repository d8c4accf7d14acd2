"""``--encoder SPEC``: from what the user writes to an :class:`Encoder` (method 11.1).

An alias (``uni``, see :mod:`lrmil_cli.encoders.aliases`) · ``hf-hub:ORG/NAME`` · a timm name · ``NAME@FILE``, an alias
or timm name with local weights · ``local-dir:PATH``, a folder with config.json and weights · a ``.safetensors`` file
made by ``lrmil distill-encoder`` · ``demo-vit``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lrmil_cli.encoders.aliases import ALIASES, CONCH, IMAGENET, Alias, find_alias
from lrmil_cli.encoders.sizes import default_input_size
from lrmil_cli.encoders.vit import EMBEDDINGS, Encoder, EncoderInfo, info_from_json
from lrmil_cli.encoders.weights import (
    State,
    conch_state,
    folder_config,
    hub_config,
    hub_file,
    hub_state,
    load_weights,
    read_state,
    read_weights,
    strip_prefixes,
    timm_format,
    unreachable,
)
from lrmil_cli.errors import UsageError
from lrmil_cli.files.header import make_header
from lrmil_cli.files.tensors import load_tensors, save_tensors

DEMO_VIT = Path(__file__).with_name("demo_vit.safetensors")

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


@dataclass(frozen=True)
class Source:
    """What a spec stands for, before a model is built.

    Attributes:
        name, architecture, arch_args, base, license: as in :class:`EncoderInfo`.
        rgb: mean and std; None where nobody says. native: input side in px; patch: side in px, None if not known yet.
        tensors: the weights; None for random ones, or for those that timm gets itself. convert: timm may have to rename them.
        embedding: what its authors use for MIL.
    """

    name: str
    architecture: str
    rgb: tuple[Any, Any] | None
    native: int
    patch: int | None
    tensors: State | None
    base: str
    license: str
    arch_args: dict[str, Any] = field(default_factory=dict)
    convert: bool = False
    embedding: str = "cls"


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
        input_size: S, wins over the default (method 11.1).
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
    ours = DEMO_VIT if spec == "demo-vit" else Path(spec) if spec.endswith(".safetensors") and "@" not in spec else None
    if random_init and (ours is not None or "@" in spec or spec.startswith(("hf-hub:", "local-dir:"))):
        raise UsageError(
            f"--random-init makes no sense with the weights of {spec}; give an alias or a timm architecture"
        )
    if ours is not None:
        encoder = load_encoder_file(ours, input_size=input_size, embedding=embedding)
    else:
        encoder = _from_source(find_source(spec, random_init), tile_px, ratio, input_size, embedding, random_init, warn)
    return encoder.eval().requires_grad_(False)


def absolute_spec(spec: str) -> str:
    """The same encoder from any working directory: a path in it, whole or after ``@`` or ``local-dir:``, made absolute."""
    import timm

    if spec == "demo-vit" or find_alias(spec) or timm.is_model(spec):  # a name wins over a folder of that name
        return spec
    for mark in ("local-dir:", "@", ""):
        name, found, path = spec.rpartition(mark) if mark else ("", "", spec)
        if (found or not mark) and path and Path(path).exists():
            return f"{name}{found}{Path(path).absolute()}"
    return spec


def load_encoder_file(path: str | Path, *, input_size: int | None = None, embedding: str | None = None) -> Encoder:
    """Load an encoder file of ours.

    Raises:
        InputError: not an encoder file (a model is not one either), or damaged.
    """
    header, tensors = load_tensors(path, "encoder")
    info = info_from_json(header, str(path))
    return build_encoder(info, tensors, str(path), input_size=input_size, embedding=embedding)


def save_encoder(path: str | Path, encoder: Encoder, history: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Write an encoder file.

    Raises:
        MachineError: the file cannot be written.
    """
    header = make_header("encoder", settings=settings, history=history, **encoder.info.as_json())
    # Weights of a checkpoint may be parts of one block of memory, which safetensors refuses.
    save_tensors(path, {k: v.clone() for k, v in encoder.weights().items()}, header)


def build_encoder(
    info: EncoderInfo,
    tensors: dict[str, torch.Tensor],
    where: str,
    *,
    input_size: int | None = None,
    embedding: str | None = None,
) -> Encoder:
    """An :class:`Encoder` of ``info`` with the weights ``tensors``.

    Raises:
        InputError: the weights do not fit the architecture.
    """
    changes = {k: v for k, v in (("image_size", input_size), ("embedding", embedding)) if v is not None}
    info = EncoderInfo(**{**info.__dict__, **changes})
    model = _with_weights(
        info.architecture, info.image_size, info.arch_args, {k: v.float() for k, v in tensors.items()}, where
    )
    return Encoder(model.eval(), info)


def create_vit(architecture: str, image_size: int | None, arch_args: dict[str, Any]) -> torch.nn.Module:
    """A ViT with random weights.

    Args:
        image_size: input side in px; None for the architecture's own.
        arch_args: for timm, with classes by name; arguments of :data:`OWN_ARGS` are left out.

    Raises:
        UsageError: timm does not know it, it cannot take that size, or it has no constant token grid.
    """
    import timm
    from timm.layers import SwiGLUPacked

    classes = {"SwiGLUPacked": SwiGLUPacked, "SiLU": torch.nn.SiLU}
    args = {k: classes.get(v, v) if k.endswith("_layer") else v for k, v in arch_args.items() if k not in OWN_ARGS}
    if image_size is not None:
        args["img_size"] = image_size
    if architecture != CONCH and not timm.is_model(architecture):
        raise _unknown(architecture)
    try:
        if architecture == CONCH:
            from lrmil_cli.encoders.conch import Conch

            model = Conch(**args)
        else:
            model = timm.create_model(architecture, pretrained=False, num_classes=0, **args)
    except (TypeError, AssertionError, ValueError, RuntimeError) as e:
        raise UsageError(
            f"encoder {architecture}: cannot be built{f' for {image_size} px input' if image_size else ''} "
            f"({' '.join(str(e).split())[:100]}); stage 1 needs a ViT"
        ) from e
    check_is_vit(model, architecture)
    return model


def check_is_vit(model: torch.nn.Module, name: str) -> None:
    """Stage 1 needs blocks, one constant token grid, and prefix tokens apart from the spatial ones.

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


def _unknown(architecture: str) -> UsageError:
    import timm

    near = timm.list_models(f"*{architecture[:12]}*")[:3]
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return UsageError(
        f"encoder {architecture!r}: no such timm architecture, alias or file; {hint}"
        f"aliases (see `lrmil info --encoders`): {', '.join(ALIASES)}"
    )


def find_source(spec: str, random_init: bool = False) -> Source:
    """What ``spec`` stands for; weights of files and of the hub are read here, those of plain timm names are not.

    Raises:
        UsageError, InputError, MachineError: as :func:`load_encoder`.
    """
    import timm

    name, _, file = spec.partition("@")
    alias = find_alias(name)
    if alias is not None:
        return _alias(alias, name, Path(file) if file else None, random_init)
    if spec.startswith("local-dir:"):
        return _folder(Path(spec.removeprefix("local-dir:")))
    if spec.startswith("hf-hub:"):
        if "/" in file or "\\" in file:  # what follows the @ of a page is a revision of it
            raise UsageError(
                f"encoder {spec}: local weights go with an alias or a timm name, as NAME@FILE, or into a folder with "
                "config.json, as local-dir:PATH"
            )
        return _timm_config(spec, *hub_config(spec), hub_state(spec))
    if timm.is_model(name):
        cfg = timm.get_pretrained_cfg(name)
        tensors = read_weights(Path(file)) if file else None
        source = _timm_config(
            f"{name}@{Path(file).name}" if file else name, cfg.to_dict() if cfg else {}, name, {}, tensors
        )
        return replace(source, base=name, convert=False)
    if Path(spec).is_dir():
        return _folder(Path(spec))
    raise _unknown(name)


def _alias(alias: Alias, name: str, file: Path | None, random_init: bool) -> Source:
    """``name`` is the alias or its hub name; ``file`` the local weights."""
    architecture, args, tensors = alias.architecture, alias.arch_args, None
    if file is not None:
        tensors = read_state(file)
    elif architecture == CONCH and not random_init:
        tensors = read_state(hub_file(alias, "pytorch_model.bin"))
    elif not random_init:
        # The page's own config wins where it speaks; the table has what a config cannot carry.
        _, architecture, own = hub_config(f"hf-hub:{alias.hub}", alias)
        args = {**args, **_without_own(own)}
        tensors = hub_state(f"hf-hub:{alias.hub}", alias)
    if tensors is not None:
        tensors = conch_state(tensors) if architecture == CONCH else strip_prefixes(tensors)
    return Source(
        f"{name}@{file.name}" if file else name,
        architecture,
        alias.rgb,
        alias.native,
        alias.patch,
        tensors,
        f"hf-hub:{alias.hub}",
        alias.license,
        args,
        embedding=alias.embedding,
    )


def _folder(folder: Path) -> Source:
    return _timm_config(f"local-dir:{folder.name}", *folder_config(folder), read_state(folder))


def _timm_config(
    name: str, about: dict[str, Any], architecture: str, args: dict[str, Any], tensors: State | None
) -> Source:
    """Of timm's description of a model: ``about`` its pretraining, architecture and arguments.

    Native input side and patch side are those that the weights show, which may differ from timm's entry.
    """
    rgb = (about["mean"], about["std"]) if about.get("mean") and about.get("std") else None
    native, patch = int((about.get("input_size") or (3, 224, 224))[-1]), None
    if tensors is not None and "patch_embed.proj.weight" in tensors:
        patch = int(tensors["patch_embed.proj.weight"].shape[-1])
        if "pos_embed" in tensors:  # class and register tokens never reach the next square
            native = int(tensors["pos_embed"].shape[1] ** 0.5) * patch
    return Source(
        name,
        architecture,
        rgb,
        native,
        patch,
        tensors,
        name,
        str(about.get("license") or "unknown"),
        _without_own(args),
        convert=True,
    )


def _without_own(args: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in args.items() if k not in OWN_ARGS}


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
    if source.tensors is not None:
        model = _with_weights(
            source.architecture, size, source.arch_args, source.tensors, source.name, convert=source.convert
        )
    else:
        model = (
            create_vit(source.architecture, size, source.arch_args) if random_init else _pretrained(source.name, size)
        )
    if source.rgb is None:
        warn(f"encoder {source.name}: its config names no mean and std; ImageNet's are taken")
    mean, std = source.rgb or IMAGENET
    chosen = embedding or ("cls" if getattr(model, "cls_token", None) is not None else "mean")
    notes = ["random weights, not pretrained"] if random_init else []
    if source.embedding not in ("cls", chosen):
        notes.append(f"its authors use --embedding {source.embedding} for MIL")
    info = EncoderInfo(
        name=source.name,
        architecture=source.architecture,
        arch_args=source.arch_args,
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


def _with_weights(
    architecture: str, size: int, args: dict[str, Any], tensors: State, where: str, *, convert: bool = False
) -> torch.nn.Module:
    """The model with ``tensors`` for parameters. None are drawn at random first, which takes 3 s for a ViT-L.

    Raises:
        UsageError, InputError: as :func:`create_vit` and :func:`load_weights`.
    """
    with torch.device("meta"):
        model = create_vit(architecture, size, args)
    load_weights(model, timm_format(tensors, model) if convert else tensors, where)
    if any(b.is_meta for b in model.buffers()):  # tables of rotary positions are computed, not stored
        model = create_vit(architecture, size, args)
        load_weights(model, timm_format(tensors, model) if convert else tensors, where)
    return model


def _pretrained(name: str, size: int) -> torch.nn.Module:
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
        return timm.create_model(name, pretrained=True, num_classes=0, img_size=size)
    except Exception as e:  # the hub client has dozens of errors; all mean that the weights cannot be had
        raise unreachable(name, e) from e


def _patch_side(source: Source) -> int:
    """Pixels under one token, along a side; also of a hybrid encoder, whose tokens are cut from feature maps.

    Raises:
        UsageError: as :func:`create_vit`, and before anything is downloaded.
    """
    with torch.device("meta"):
        model = create_vit(source.architecture, None, source.arch_args)
    return int(model.feature_info[-1]["reduction"])
