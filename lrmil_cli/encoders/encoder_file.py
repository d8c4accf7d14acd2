"""Encoder files, as ``lrmil distill-encoder`` writes them: weights and what is known of them (encoders/README 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrmil_cli.encoders.build import build_encoder
from lrmil_cli.encoders.vit import Encoder, info_from_json
from lrmil_cli.files.header import make_header
from lrmil_cli.files.tensors import load_tensors, save_tensors


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
