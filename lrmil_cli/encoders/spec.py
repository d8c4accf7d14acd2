"""``--encoder SPEC``: from what the user writes to an :class:`Encoder`.

``demo-vit`` · a timm name · ``hf-hub:ORG/NAME`` · ``NAME@FILE`` (a timm name with local weights) · a ``.safetensors``
file made by ``lrmil distill-encoder``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lrmil_cli.encoders.vit import EMBEDDINGS, Encoder, EncoderInfo, info_from_json, valid_sizes
from lrmil_cli.errors import InputError, MachineError, UsageError
from lrmil_cli.files.header import make_header
from lrmil_cli.files.tensors import load_tensors, save_tensors

DEMO_VIT = Path(__file__).with_name("demo_vit.safetensors")

#: Prefixes under which published checkpoints keep the trunk.
KNOWN_PREFIXES = ("module.", "backbone.", "visual.trunk.", "teacher.", "model.")


def load_encoder(
    spec: str,
    *,
    tile_px: int = 256,
    ratio: int = 4,
    input_size: int | None = None,
    embedding: str | None = None,
    random_init: bool = False,
) -> Encoder:
    """Load the encoder that ``spec`` names, on the CPU, in evaluation mode.

    Args:
        tile_px: side of the tiles it will get; decides the input size where neither the file nor the user says it.
        ratio: the token grid should divide by it.
        input_size: S, wins over the default (method 11.1).
        embedding: one of :data:`EMBEDDINGS`; default: as the file says, else ``cls``, or ``mean`` without class token.
        random_init: take random weights instead of pretrained ones.

    Raises:
        UsageError: unknown architecture, or an option that does not fit it.
        InputError: a weights file that cannot be used.
        MachineError: pretrained weights cannot be had.
    """
    if embedding is not None and embedding not in EMBEDDINGS:
        raise UsageError(f"--embedding {embedding}: choose one of {', '.join(EMBEDDINGS)}")
    file = DEMO_VIT if spec == "demo-vit" else Path(spec) if spec.endswith(".safetensors") and "@" not in spec else None
    if file is not None:
        if random_init:
            raise UsageError(f"--random-init makes no sense with the weights of {spec}")
        encoder = load_encoder_file(file, input_size=input_size, embedding=embedding)
    else:
        encoder = _from_timm(spec, tile_px, ratio, input_size, embedding, random_init)
    return encoder.eval().requires_grad_(False)


def absolute_spec(spec: str) -> str:
    """The same encoder from any working directory: the path in ``FILE.safetensors`` or ``NAME@FILE`` made absolute."""
    name, at, path = spec.rpartition("@")
    if at or spec.endswith(".safetensors"):
        return f"{name}{at}{Path(path).absolute()}"
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
    save_tensors(path, encoder.weights(), header)


def build_encoder(
    info: EncoderInfo, tensors: dict[str, torch.Tensor], where: str, *, input_size: int | None = None, embedding: str | None = None
) -> Encoder:
    """An :class:`Encoder` of ``info`` with the weights ``tensors``.

    Raises:
        InputError: the weights do not fit the architecture.
    """
    changes = {k: v for k, v in (("image_size", input_size), ("embedding", embedding)) if v is not None}
    info = EncoderInfo(**{**info.__dict__, **changes})
    model = create_vit(info.architecture, info.image_size, info.arch_args)
    load_weights(model, {k: v.float() for k, v in tensors.items()}, where)
    return Encoder(model.eval(), info)


def create_vit(architecture: str, image_size: int, arch_args: dict[str, Any]) -> torch.nn.Module:
    """A timm ViT with random weights for input side ``image_size``.

    Raises:
        UsageError: timm does not know it, it cannot take that size, or it has no constant token grid.
    """
    import timm

    if not timm.is_model(architecture):
        near = [n for n in timm.list_models(f"*{architecture[:12]}*")[:3]]
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models('vit*')"
        raise UsageError(f"encoder {architecture!r}: no such timm architecture and no such file; {hint}")
    try:
        model = timm.create_model(architecture, pretrained=False, num_classes=0, img_size=image_size, **arch_args)
    except (TypeError, AssertionError, ValueError, RuntimeError) as e:
        raise UsageError(f"encoder {architecture}: cannot be built for {image_size} px input "
                         f"({' '.join(str(e).split())[:100]}); stage 1 needs a ViT") from e
    check_is_vit(model, architecture)
    return model


def check_is_vit(model: torch.nn.Module, name: str) -> None:
    """Stage 1 needs blocks and one constant token grid.

    Raises:
        UsageError: hierarchical or convolutional trunk.
    """
    if not (hasattr(model, "blocks") and hasattr(model, "embed_dim") and hasattr(model, "forward_intermediates")):
        raise UsageError(f"encoder {name}: not a plain ViT (no constant token grid); choose a vit_* model of timm")


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Load ``tensors`` strictly; position embeddings of another grid are interpolated (bicubic, antialiased).

    Raises:
        InputError: missing, unexpected or misshapen tensors; the message lists the first of them.
    """
    from timm.layers import resample_abs_pos_embed

    tensors = {k: v for k, v in tensors.items() if not k.startswith(("head.", "fc."))} \
        if not any(k.startswith("head.") for k in model.state_dict()) else dict(tensors)
    own = model.state_dict()
    if "pos_embed" in own and "pos_embed" in tensors and tensors["pos_embed"].shape != own["pos_embed"].shape:
        prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
        if tensors["pos_embed"].ndim == 3 and tensors["pos_embed"].shape[-1] == own["pos_embed"].shape[-1]:
            grid = list(model.patch_embed.grid_size)
            tensors["pos_embed"] = resample_abs_pos_embed(tensors["pos_embed"].float(), grid, num_prefix_tokens=prefix)
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as e:
        raise InputError(f"{where}: the weights do not fit the architecture ({' '.join(str(e).split())[:200]})") from e
    if missing or unexpected:
        raise InputError(f"{where}: the weights do not fit the architecture; missing: {_few(missing)}; unexpected: {_few(unexpected)}")


def default_input_size(patch: int, native: int, tile_px: int, ratio: int) -> int:
    """Input side S: the smallest valid size from the native one up to the tile's, else 256 (patch 16) or 224 (patch 14).

    For other patch sizes the fallback is the valid size nearest to 224 (method 11.1).
    """
    fits = [s for s in valid_sizes(patch, ratio, max(native, tile_px)) if native <= s <= tile_px]
    if fits:
        return fits[0]
    return {16: 256, 14: 224}.get(patch) or min(valid_sizes(patch, ratio), key=lambda s: abs(s - 224), default=patch * ratio)


def _from_timm(
    spec: str, tile_px: int, ratio: int, input_size: int | None, embedding: str | None, random_init: bool
) -> Encoder:
    import timm

    name, _, weights = spec.partition("@")
    hub = name.startswith("hf-hub:")
    if hub and random_init:
        raise UsageError(f"--random-init makes no sense with {name}; give a timm architecture")
    if weights and random_init:
        raise UsageError(f"--random-init makes no sense with the weights {weights}")
    if not hub and not timm.is_model(name):
        create_vit(name, 224, {})  # raises with a hint
    tensors = read_weights(Path(weights)) if weights else None
    cfg, architecture, arch_args = _hub_config(name) if hub else (timm.get_pretrained_cfg(name), name, {})
    native, patch = _native_size(architecture, arch_args, cfg, tensors)
    size = input_size or default_input_size(patch, native, tile_px, ratio)
    if tensors is not None or random_init:
        model = create_vit(name, size, {})
        if tensors is not None:
            load_weights(model, tensors, weights)
    else:
        model = _pretrained(name, size)
    cfg = getattr(model, "pretrained_cfg", {}) or {}
    has_class = getattr(model, "cls_token", None) is not None
    info = EncoderInfo(
        name=spec if not weights else f"{name}@{Path(weights).name}",
        architecture=architecture, arch_args=arch_args, image_size=size,
        mean=tuple(cfg.get("mean") or (0.485, 0.456, 0.406)), std=tuple(cfg.get("std") or (0.229, 0.224, 0.225)),
        embedding=embedding or ("cls" if has_class else "mean"),
        base=name, license=str(cfg.get("license") or "unknown"), random_init=random_init,
        note="random weights, not pretrained" if random_init else "",
    )
    return Encoder(model.eval(), info)


def _hub_config(name: str) -> tuple[Any, str, dict[str, Any]]:
    """Pretrained configuration, architecture and its arguments of a model on the hub."""
    from timm.models import load_model_config_from_hf

    try:
        cfg, architecture, arch_args = load_model_config_from_hf(name[len("hf-hub:"):])
        return cfg, architecture, dict(arch_args or {})
    except Exception as e:  # the hub client has dozens of errors; all mean that the weights cannot be had
        raise _unreachable(name, e) from e


def _pretrained(name: str, size: int) -> torch.nn.Module:
    import timm

    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, img_size=size)
    except Exception as e:  # as above; a wrong architecture was ruled out before
        raise _unreachable(name, e) from e
    check_is_vit(model, name)
    return model


def _unreachable(name: str, e: Exception) -> MachineError:
    return MachineError(
        f"encoder {name}: pretrained weights cannot be had ({type(e).__name__}); check the network and `hf auth login`, "
        "or give a local file as NAME@FILE, or --random-init for a dry run"
    )


def _native_size(
    architecture: str, arch_args: dict[str, Any], cfg: Any, tensors: dict[str, torch.Tensor] | None
) -> tuple[int, int]:
    """Native input side and patch side; of local weights from their own tensors, which may differ from timm's entry."""
    import timm

    get = cfg.get if isinstance(cfg, dict) else lambda k, d=None: getattr(cfg, k, d) if cfg is not None else d
    native = int((get("input_size") or (3, 224, 224))[-1])
    if tensors is not None and "patch_embed.proj.weight" in tensors:
        patch = int(tensors["patch_embed.proj.weight"].shape[-1])
        if "pos_embed" in tensors:
            count = tensors["pos_embed"].shape[1]
            side = int(count**0.5)  # class and register tokens never reach the next square
            native = side * patch
        return native, patch
    with torch.device("meta"):
        try:
            model = timm.create_model(architecture, pretrained=False, num_classes=0, **arch_args)
        except (TypeError, RuntimeError, NotImplementedError) as e:
            raise UsageError(f"encoder {architecture}: cannot be built ({' '.join(str(e).split())[:100]})") from e
    check_is_vit(model, architecture)
    return native, int(model.patch_embed.patch_size[0])


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict of a ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file, float32, without known prefixes.

    Nothing is unpickled: torch files load with ``weights_only=True`` or not at all.

    Raises:
        InputError: no such file, damaged, or not a plain state dict.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(str(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as e:
        raise InputError(f"{path}: cannot be read as weights ({type(e).__name__})") from e
    except Exception as e:
        if type(e).__name__ != "UnpicklingError":
            raise
        raise InputError(f"{path}: holds more than tensors and is not loaded; save its state_dict() as .safetensors") from e
    for key in ("state_dict", "model", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{path}: not a plain state dict of tensors")
    for prefix in KNOWN_PREFIXES:
        inside = {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}
        if inside and ("patch_embed.proj.weight" in inside or any(k.startswith(p) for k in inside for p in KNOWN_PREFIXES)):
            state = inside
    return {k: v.float() for k, v in state.items()}


def _few(names: list[str]) -> str:
    return "none" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
