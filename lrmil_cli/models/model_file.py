"""The model file: encoders and one head a fold in one safetensors file (models/README). It is only written, read and
checked here; who predicts with it is in `inference`, and what the methods that read HR tiles add, in `selective`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrmil_cli.encoders.build import build_encoder
from lrmil_cli.encoders.vit import Encoder, info_from_json
from lrmil_cli.errors import InputError
from lrmil_cli.files.tensors import load_tensors, save_tensors
from lrmil_cli.heads import MILHead
from lrmil_cli.heads.checkpoint import rebuild_head
from lrmil_cli.slides.tiles import TileSettings, settings_from_json
from lrmil_cli.targets.task import task_of


@dataclass
class Model:
    """What a model file holds, of any method.

    Attributes:
        header: as models/README 2 lists it.
        encoders: one, or one a fold; heads: one a fold; encoder_of: which encoder each head reads.
        classes: names in logit order; tiles: how a slide is tiled at the lowest magnification that is looked at.
    """

    header: dict[str, Any]
    encoders: list[Encoder]
    heads: list[MILHead]
    encoder_of: list[int]
    classes: tuple[str, ...]
    tiles: TileSettings

    def to(self, device: torch.device) -> Model:
        for module in (*self.encoders, *self.heads):
            module.to(device)
        return self


def save_model(
    path: str | Path,
    header: dict[str, Any],
    encoders: Sequence[Encoder],
    heads: Sequence[MILHead],
    encoder_of: list[int],
    rest: dict[str, Tensor] | None = None,
) -> None:
    """Write a model file.

    Args:
        header: all that encoders and heads do not say themselves; rest: the tensors that a method has besides, under
            names of its own.

    Raises:
        MachineError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = dict(rest or {})
    for e, encoder in enumerate(encoders):
        tensors |= {f"encoder{e}.{k}": v for k, v in encoder.weights().items()}
    for h, head in enumerate(heads):
        tensors |= {f"head{h}.{k}": v for k, v in head.state_dict().items()}
    about = {
        "encoders": [e.info.as_json() for e in encoders],
        "heads": [h.config() for h in heads],
        "encoder_of": encoder_of,
    }
    # safetensors refuses tensors that share memory; two folds never do, but two names of one encoder would.
    save_tensors(path, {k: v.clone() for k, v in tensors.items()}, {**header, **about})


def load_model(path: str | Path) -> Model:
    """Open a model file of LRMIL on the CPU, in evaluation mode.

    Raises:
        InputError: not a model file, of another method, or damaged.
    """
    return load_parts(path, ("lrmil",))[0]


def load_parts(path: str | Path, methods: Collection[str] | None = None) -> tuple[Model, dict[str, Tensor]]:
    """Encoders and heads of a model file of any of ``methods`` (None: of all there are), and all its tensors.

    Raises:
        InputError: as :func:`load_model`.
    """
    header, tensors = load_tensors(path, "model")
    method = header.get("method", "lrmil")
    if methods is not None and method not in methods:
        needed = " or ".join(methods)
        raise InputError(
            f"{path}: a model of method {method}; here one of {needed} is needed (distill-student --method)"
        )
    return model_of(header, tensors, path), tensors


def number_of_outputs(header: dict[str, Any]) -> int:
    """Numbers that a head of a model gives: one a class, or those of its task.

    Raises:
        KeyError, ValueError: the header is damaged.
    """
    if task_of(header).classes:
        return len(header["classes"])
    if len(header["outputs"]) != len(header["heads"]):
        raise ValueError("heads and what their numbers mean do not fit")
    return int(header["heads"][0]["num_classes"])


def model_of(header: dict[str, Any], tensors: dict[str, Tensor], path: str | Path) -> Model:
    """Encoders and heads of their metadata and tensors, as :func:`save_model` writes them; ``path`` for messages.

    Raises:
        InputError: they do not fit.
    """

    def part(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        infos, configs, of = header["encoders"], header["heads"], [int(i) for i in header["encoder_of"]]
        classes, tiles = tuple(header["classes"]), header["tiles"]
        outputs = number_of_outputs(header)
        if len(of) != len(configs) or not of or not all(0 <= i < len(infos) for i in of):
            raise ValueError("heads and encoders do not fit")
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path}: the model's metadata is incomplete ({e}); run `lrmil distill-student` again") from e
    encoders = [
        build_encoder(info_from_json(i, str(path)), part(f"encoder{n}."), str(path)).eval().requires_grad_(False)
        for n, i in enumerate(infos)
    ]
    heads = [rebuild_head(c, part(f"head{n}."), str(path)) for n, c in enumerate(configs)]
    for n, head in zip(of, heads):
        if head.in_dim != encoders[n].embed_dim or head.num_classes != outputs:
            raise InputError(f"{path}: head and encoder do not fit; run `lrmil distill-student` again")
    return Model(header, encoders, heads, of, classes, settings_from_json(tiles, str(path)))
