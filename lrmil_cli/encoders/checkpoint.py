"""Checkpoints: the tensors of a weights file, and where among them a whole ViT stands (encoders/README 2.1).

Nothing is unpickled but tensors.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from lrmil_cli.errors import InputError, no_such_file
from lrmil_cli.files.stand_ins import stand_in

State = dict[str, torch.Tensor]

#: Names under which a folder keeps its weights, the first one found is taken.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
)
#: Parts that torch puts into names where it wraps modules: torch.compile, FSDP, activation checkpointing.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
#: Dicts that training scripts put around a state dict.
CONTAINERS = ("state_dict.", "model_state_dict.", "model.", "module.")
#: The tensor that every ViT of timm has, in any checkpoint whose blocks bear timm's names.
MARK = "patch_embed.proj.weight"

_SHARD = re.compile(r"-\d{5}-of-(\d{5})(?=\.\w+$)")
_CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)")
#: Of a copy whose weights are a moving average, which self-supervised training evaluates and keeps.
_AVERAGED = re.compile(r"(^|[._])(teacher|target|ema)([._]|$)")


def read_state(path: Path) -> State:
    """All tensors of a ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file, of the one in a folder, or of all shards
    that an ``index.json`` lists; dicts in dicts joined by dots, all else left out.

    Torch files load with ``weights_only=True`` or not at all.

    Raises:
        InputError: no such file, damaged, something else under that name, a shard missing, or no tensors in it.
    """
    if path.is_dir():
        found = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
        if found is None:
            raise InputError(f"{path}: no weights in this folder (looked for {', '.join(WEIGHT_FILES)})")
        path = found
    if not path.is_file():
        raise InputError(no_such_file(path, what="weights file"))
    shard = _SHARD.search(path.name)
    if shard and int(shard[1]) > 1:
        path = path.with_name(f"{path.name[: shard.start()]}{path.suffix}.index.json")
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; one of {int(shard[1])} shards was given, which needs it and the rest"
            )
    if path.name.endswith(".index.json"):
        state: State = {}
        for part in _shards(path):
            state |= flat_state(_load(part), str(part))
        return state
    return flat_state(_load(path), str(path))


def flat_state(state: Any, where: str) -> State:
    """The tensors of a loaded checkpoint, dicts in dicts joined by dots, without :data:`WRAPPERS` in their names.

    Raises:
        InputError: there are none.
    """
    out: State = {}

    def take(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            for part in WRAPPERS:
                name = name.replace(part, "")
            out[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                take(inner, f"{name}.{key}" if name else str(key))

    if isinstance(state, dict):  # one bare tensor is no state
        take(state, "")
    if not out:
        raise InputError(f"{where}: holds no state dict of tensors")
    return out


def find_trunk(state: State, where: str) -> tuple[State, str]:
    """The ViT of a checkpoint, from whatever prefix it stands under, with its blocks in one row.

    Returns:
        The trunk, and what should be said of the choice: empty where there is one trunk. Of several the moving average
        is taken. A checkpoint in other names than timm's is left as it is, but for :data:`CONTAINERS`.

    Raises:
        InputError: there are several, and none is the moving average.
    """
    prefixes = [key.removesuffix(MARK) for key in state if key == MARK or key.endswith(f".{MARK}")]
    if not prefixes:
        return unwrapped(state), ""
    chosen, said = prefixes[0], ""
    if "" in prefixes:
        chosen = ""
    elif len(prefixes) > 1:
        averaged = [p for p in prefixes if _AVERAGED.search(p)]
        names = ", ".join(sorted(prefixes))
        if len(averaged) != 1:
            raise InputError(f"{where}: holds several encoders ({names}); save the state_dict() of one as .safetensors")
        chosen = averaged[0]
        said = f"{where} holds several encoders ({names}); {chosen} is taken, as the moving average"
    inside = {key.removeprefix(chosen): value for key, value in state.items() if key.startswith(chosen)}
    return _in_one_row(inside), said


def unwrapped(state: State) -> State:
    """What stands in the innermost of :data:`CONTAINERS`."""
    for name in CONTAINERS:
        inside = {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
        if inside:
            return unwrapped(inside)
    return state


def _in_one_row(state: State) -> State:
    """Blocks in chunks (``blocks.CHUNK.BLOCK.``), as DINOv2 writes them, numbered through.

    DINOv2 counts blocks over all chunks; where they are counted in each chunk, they follow one another.
    """
    found = {key: m for key in state if (m := _CHUNKED.fullmatch(key))}
    places = sorted({(int(m[1]), int(m[2])) for m in found.values()})
    through = len({block for _, block in places}) == len(places)
    number = {place: place[1] if through else n for n, place in enumerate(places)}
    return {
        f"blocks.{number[int(m[1]), int(m[2])]}.{m[3]}" if (m := found.get(key)) else key: value
        for key, value in state.items()
    }


def _shards(index: Path) -> list[Path]:
    """The files that an ``index.json`` names, which stand beside it.

    Raises:
        InputError: no such index, or some of them are not there.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("a shard that is no file name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{index}: {stand_in(index) or 'not a list of shards; download it again'}") from e
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise InputError(
            f"{index}: only the list of {len(names)} shards, no weights; download beside it: {few(missing)}"
        )
    return [index.parent / name for name in names]


def _load(path: Path) -> Any:
    """What a file holds.

    Raises:
        InputError: as :func:`read_state`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    other = stand_in(path)
    if other:
        raise InputError(f"{path}: {other}")
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as e:
        raise InputError(f"{path}: cannot be read as weights ({type(e).__name__}); download or copy it again") from e
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as e:  # of a damaged pickle, anything
        if type(e).__name__ != "UnpicklingError":
            raise InputError(
                f"{path}: cannot be read as weights ({type(e).__name__}); download or copy it again"
            ) from e
        raise not_only_tensors(str(path)) from e


def not_only_tensors(where: str) -> InputError:
    """The error for a pickle that holds anything that would have to be executed."""
    return InputError(f"{where}: holds more than tensors and is not loaded; save its state_dict() as .safetensors")


def few(names: list[str]) -> str:
    """The first names of a list."""
    return "none" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
