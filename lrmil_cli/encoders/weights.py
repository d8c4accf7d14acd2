"""Weights of encoders: from a file, a folder or the hub, into a model, strictly. Nothing is unpickled."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from lrmil_cli.encoders.aliases import CONCH, Alias
from lrmil_cli.encoders.vit import ViT
from lrmil_cli.errors import InputError, LrmilError, MachineError

#: Prefixes under which published checkpoints keep the trunk.
KNOWN_PREFIXES = ("module.", "backbone.", "visual.trunk.", "teacher.", "model.")

#: Names under which a folder keeps its weights, the first one found is taken.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")

State = dict[str, torch.Tensor]


def read_weights(path: Path) -> State:
    """State dict of a ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file, float32, without known prefixes.

    Raises:
        InputError: as :func:`read_state`.
    """
    return strip_prefixes(read_state(path))


def read_state(path: Path) -> State:
    """State dict of a weights file, or of the one in a folder, as it stands there, in float32.

    Torch files load with ``weights_only=True`` or not at all.

    Raises:
        InputError: no such file, damaged, or not a plain state dict.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.is_dir():
        found = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
        if found is None:
            raise InputError(f"{path}: no weights in this folder (looked for {', '.join(WEIGHT_FILES)})")
        path = found
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(str(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as e:
        raise InputError(f"{path}: cannot be read as weights ({type(e).__name__})") from e
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as e:  # of a damaged pickle, anything
        if type(e).__name__ != "UnpicklingError":
            raise InputError(f"{path}: cannot be read as weights ({type(e).__name__})") from e
        raise _not_only_tensors(str(path)) from e
    return plain_state(state, str(path))


def plain_state(state: Any, where: str) -> State:
    """The tensors of a loaded checkpoint, in float32, out of the dict that a training script may have put around them.

    Raises:
        InputError: there is more than tensors in it.
    """
    for key in ("state_dict", "model", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{where}: not a plain state dict of tensors")
    return {k: v.float() for k, v in state.items()}


def strip_prefixes(state: State) -> State:
    """The trunk alone, where a checkpoint keeps it under one or more of :data:`KNOWN_PREFIXES`."""
    while "patch_embed.proj.weight" not in state:
        for prefix in KNOWN_PREFIXES:
            inside = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
            if inside and (
                "patch_embed.proj.weight" in inside or any(k.startswith(p) for k in inside for p in KNOWN_PREFIXES)
            ):
                state = inside
                break
        else:
            break
    return state


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
            f"{where}: the weights do not fit the architecture; missing: {_few(missing)}; "
            f"unexpected: {_few(unexpected)}"
        )
    position = tensors.get("pos_embed")
    if position is not None and position.ndim == 3 and position.shape != own["pos_embed"].shape:
        prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
        spatial = position.shape[1] - prefix
        if spatial > 0 and math.isqrt(spatial) ** 2 == spatial:  # else it is of another layout, and loading says so
            grid = list(model.patch_embed.grid_size)
            tensors = {**tensors, "pos_embed": resample_abs_pos_embed(position.float(), grid, num_prefix_tokens=prefix)}
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as e:
        raise InputError(f"{where}: the weights do not fit the architecture ({' '.join(str(e).split())[:200]})") from e


def timm_format(tensors: State, model: torch.nn.Module) -> State:
    """Weights of a timm folder or hub page in the names of today's timm, by timm's own conversion for such a model."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return convert(tensors, model) if convert else tensors


def folder_config(folder: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Preprocessing, architecture and its arguments from the ``config.json`` that timm writes beside weights.

    Raises:
        InputError: no such folder or file, or not a config of timm.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; an encoder folder holds config.json and the weights "
            "(weights alone go with a name: NAME@FILE)"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        architecture, args = config["architecture"], config.get("model_args") or {}
        about = config.get("pretrained_cfg", config)
        if not (isinstance(architecture, str) and isinstance(args, dict) and isinstance(about, dict)):
            raise ValueError("a value of the wrong type")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(
            f"{path}: not a config of timm ({type(e).__name__}: {e}); weights of other libraries must be converted"
        ) from e
    return about, architecture, args


def hub_config(name: str, alias: Alias | None = None) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The same of ``hf-hub:ORG/NAME``.

    Raises:
        MachineError: the hub does not give it.
    """
    from timm.models import load_model_config_from_hf

    try:
        about, architecture, args = load_model_config_from_hf(name[len("hf-hub:") :])
        return dict(about), architecture, dict(args or {})
    except Exception as e:  # the hub client has dozens of errors; all mean that the model cannot be had
        raise unreachable(name, e, alias) from e


def hub_state(name: str, alias: Alias | None = None) -> State:
    """State dict of ``hf-hub:ORG/NAME``: ``model.safetensors``, or else ``pytorch_model.bin``.

    Raises:
        MachineError: the hub does not give it.
        InputError: there is more than tensors in it.
    """
    from timm.models import load_state_dict_from_hf

    try:
        state = load_state_dict_from_hf(name[len("hf-hub:") :], weights_only=True)
    except Exception as e:  # as above
        if type(e).__name__ == "UnpicklingError":
            raise _not_only_tensors(name) from e
        raise unreachable(name, e, alias) from e
    return plain_state(state, name)


def hub_file(alias: Alias, filename: str) -> Path:
    """Path of one file of an alias's page, downloaded unless it is there.

    Raises:
        MachineError: the hub does not give it.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(alias.hub, filename))
    except Exception as e:  # as above
        raise unreachable(alias.name, e, alias) from e


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


def unreachable(name: str, e: Exception, alias: Alias | None = None) -> LrmilError:
    """The error for weights that the hub does not give: why, and all ways to get them."""
    why = f"encoder {alias.name if alias else name}: pretrained weights cannot be had ({type(e).__name__})"
    if alias is not None:
        first = f"ask for access at {alias.page}, then `hf auth login`; " if alias.access == "gated" else ""
        file = "pytorch_model.bin" if alias.architecture == CONCH else "FILE"
        return MachineError(
            f"{why}; {first}check the network; offline, download the weights from {alias.page} elsewhere and give "
            f"them as {alias.name}@{file} (--encoder {alias.name} --random-init is for dry runs)"
        )
    if name.startswith("hf-hub:"):
        page = f"https://huggingface.co/{name[len('hf-hub:') :].partition('@')[0]}"
        return MachineError(
            f"{why}; check the name and the network; if {page} asks for it, request access and run `hf auth login`; "
            "offline, give a folder with its config.json and weights as local-dir:PATH"
        )
    return MachineError(
        f"{why}; check the network and `hf auth login`, "
        "or give a local file as NAME@FILE, or --random-init for a dry run"
    )


def _not_only_tensors(where: str) -> InputError:
    return InputError(f"{where}: holds more than tensors and is not loaded; save its state_dict() as .safetensors")


def _few(names: list[str]) -> str:
    return "none" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
