"""Options about the encoder: which one, and what of it is the feature of a tile."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

_ENCODER = typer.Option(
    "--encoder",
    metavar="SPEC",
    help="An alias (conch, uni, virchow2, ...: `lrmil info --encoders`), hf-hub:ORG/NAME, a timm name, "
    "NAME@weights.bin (alias or timm name with local weights), local-dir:FOLDER, a file made by distill-encoder, "
    "or demo-vit.",
)
Encoder = Annotated[str, _ENCODER]
EncoderOrNone = Annotated[Optional[str], _ENCODER]
Embedding = Annotated[
    Optional[str],
    typer.Option(
        "--embedding",
        help="What of the encoder is the feature of a tile: cls, mean, cls+mean or pool.  "
        "[default: as the encoder says, else cls; official code]",
    ),
]
InputSize = Annotated[
    Optional[int],
    typer.Option(
        "--input-size",
        min=8,
        help="Side in px that tiles are resized to for the encoder.  "
        "[default: by the encoder; ours: the first from its own size on whose patches divide by the ratio]",
    ),
]
RandomInit = Annotated[
    bool,
    typer.Option("--random-init", help="Random encoder weights, for dry runs; the files say so."),
]
