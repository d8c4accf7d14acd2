"""Options of ``lrmil predict`` for models that pick the HR tiles to read (AHDMIL, HDMIL)."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

KeepMin = Annotated[
    Optional[float],
    typer.Option(
        "--keep-min",
        metavar="F",
        min=0.0,
        max=1.0,
        help="Models of AHDMIL and HDMIL: read this share of the HR tiles at least, the best by score.  [default: 0]",
        show_default=False,
    ),
]
KeepMax = Annotated[
    Optional[float],
    typer.Option(
        "--keep-max",
        metavar="F",
        min=0.0,
        max=1.0,
        help="The same: read this share at most, for a time budget that holds.  [default: 1]",
        show_default=False,
    ),
]
KeepThreshold = Annotated[
    Optional[float],
    typer.Option(
        "--keep-threshold",
        metavar="P",
        help="The same: a class keeps tiles whose screening probability is above P.  [default: 0.5]",
        show_default=False,
    ),
]


def budget_options(least: float | None, most: float | None, threshold: float | None) -> dict[str, float]:
    """Those that were given, by the names of :class:`lrmil_cli.inference.screened_prediction.Budget`."""
    return {k: v for k, v in (("least", least), ("most", most), ("threshold", threshold)) if v is not None}
