"""A few tiles in a model file with what the model says of them, so that another machine can see whether it computes the
same (models/README 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrmil_cli.encoders.vit import Encoder
from lrmil_cli.errors import InputError
from lrmil_cli.files.tensors import load_tensors
from lrmil_cli.heads import Bag, MILHead, PyramidBag
from lrmil_cli.models.model_file import number_of_outputs

#: Of the tensors of a fixture; the names after it are those of :class:`Fixture`, features with the encoder's number.
PREFIX = "fixture."


@dataclass(frozen=True)
class Outputs:
    """What a model says of n tiles as one bag: features float32 [n, D_e] of each encoder, and of each head its
    attention [H, n] and its probabilities [H, C], not calibrated; of a task without classes its logits [H, K]."""

    features: list[np.ndarray]
    attention: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Fixture:
    """Of a model file.

    Attributes:
        about: ``of`` (``slide`` or ``painted``), ``tiles`` (how slides are tiled), ``answer`` (calibrated).
        tiles: uint8 [n, P, P, 3]; coords: int64 [n, 2]; expected: what the model said of them where it was made.
    """

    about: dict[str, Any]
    tiles: np.ndarray
    coords: np.ndarray
    expected: Outputs


def outputs_of(
    encoders: Sequence[Encoder],
    heads: Sequence[MILHead],
    encoder_of: Sequence[int],
    tiles: np.ndarray,
    coords: np.ndarray,
    classes: bool = True,
) -> Outputs:
    """What encoders and heads say of tiles, on the device they are on.

    For a head that zooms, each tile is its own only child.

    Args:
        encoder_of: for each head its encoder; tiles: uint8 [n, P, P, 3]; coords: int64 [n, 2].
        classes: whether logits are of classes.
    """
    where = next(encoders[0].parameters()).device
    with torch.inference_mode():
        pixels = torch.from_numpy(np.ascontiguousarray(tiles)).to(where)
        features = [e(pixels)["final"].float() for e in encoders]
        corners = torch.from_numpy(coords).to(where)
        outs = [head(*_bag(head, features[n], corners)) for head, n in zip(heads, encoder_of)]
        attention = torch.stack([o.attention.cpu().double() for o in outs])
        logits = torch.stack([o.logits.cpu().double() for o in outs])
        probabilities = torch.softmax(logits, 1) if classes else logits
    return Outputs([f.cpu().numpy() for f in features], attention.numpy(), probabilities.numpy())


def _bag(head: MILHead, features: Tensor, corners: Tensor) -> Bag | PyramidBag:
    if head.takes != "pyramid":
        return Bag(features, corners)
    levels = int(head.config()["options"]["levels"])
    itself = torch.arange(len(features), device=features.device)[:, None]
    return PyramidBag((features,) * levels, (itself,) * (levels - 1))


def fixture_tensors(tiles: np.ndarray, coords: np.ndarray, expected: Outputs) -> dict[str, Tensor]:
    """Tensors of a model file that hold a fixture."""
    arrays = {
        "tiles": tiles,
        "coords": coords,
        "attention": expected.attention,
        "probabilities": expected.probabilities,
    }
    arrays |= {f"features{n}": f for n, f in enumerate(expected.features)}
    return {PREFIX + k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}


def read_fixture(path: str) -> tuple[dict[str, Any], Fixture]:
    """Header and fixture of a model file.

    Raises:
        InputError: no model, damaged, or without a fixture.
    """
    header, tensors = load_tensors(path, "model")
    if "fixture" not in header:
        raise InputError(
            f"{path}: holds no tiles to verify it by (it is of an earlier version); train it again, or compare the "
            "predictions of a slide that both places have"
        )
    own = {k.removeprefix(PREFIX): v.numpy() for k, v in tensors.items() if k.startswith(PREFIX)}
    try:
        features = [own[f"features{n}"] for n in range(len(header["encoders"]))]
        expected = Outputs(features, own["attention"], own["probabilities"])
        found = Fixture(dict(header["fixture"]), own["tiles"], own["coords"], expected)
        n, heads, outputs = len(found.tiles), len(header["heads"]), number_of_outputs(header)
        if not (
            found.tiles.ndim == 4
            and n == len(found.coords)
            and all(len(f) == n for f in features)
            and expected.attention.shape == (heads, n)
            and expected.probabilities.shape == (heads, outputs)
            and len(found.about["answer"]) == outputs
        ):
            raise ValueError("shapes")
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path}: the tiles to verify it by are damaged ({e!r}); copy or make the file again") from e
    return header, found
