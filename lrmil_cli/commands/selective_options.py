"""Options about models that read some HR tiles (AHDMIL, HDMIL, ZoomMIL): of ``distill-student``, and of ``predict``."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from lrmil_cli.commands.student_methods import OF_SCREENING
from lrmil_cli.errors import UsageError

# ---- distill-student --method eagle ----------------------------------------------------------------------------------
Picker = Annotated[
    Optional[str],
    typer.Option(
        "--picker",
        metavar="MODEL.safetensors",
        help="eagle: model of LRMIL, of the same folds, whose attention picks the HR tiles.",
    ),
]
TopHr = Annotated[
    Optional[int],
    typer.Option("--top", min=1, help="eagle: HR tiles of a slide that are read.  [default: 25; paper (EAGLE)]"),
]

# ---- distill-student --method zoommil --------------------------------------------------------------------------------
MidPairs = Annotated[
    Optional[str],
    typer.Option(
        "--mid-pairs",
        metavar="DIR",
        help="zoommil: pairs of a middle magnification with HR, for three levels; "
        "--pairs are then of LR with the middle.",
    ),
]
MidFeatures = Annotated[
    Optional[str],
    typer.Option("--mid-features", metavar="DIR", help="zoommil: features of the middle magnification."),
]

# ---- distill-student --method ahdmil, hdmil --------------------------------------------------------------------------
ScreenPx = Annotated[
    Optional[int],
    typer.Option(
        "--screen-px",
        help="ahdmil, hdmil: side in px of an HR tile's screening image.  [default: 16; paper]",
    ),
]
ScreenSource = Annotated[
    Optional[str],
    typer.Option(
        "--screen-source",
        help="ahdmil, hdmil: cut screening images from lr-tiles, or from a thumbnail of the slide.  "
        "[default: lr-tiles; ours: they are read anyway; the paper cuts a thumbnail]",
    ),
]
Branches = Annotated[
    Optional[int],
    typer.Option(
        "--branches",
        min=1,
        max=2,
        help="ahdmil, hdmil: branches of the screening network.  [default: 2; hdmil: 1; paper]",
    ),
]
PSoft = Annotated[
    Optional[float],
    typer.Option(
        "--p-soft",
        min=0.0,
        max=1.0,
        help="ahdmil, hdmil: chance that a step learns DMIN's raw scores, not its masks.  "
        "[default: 0; official code, with 0.4 for Camelyon16 and 0.1 for TCGA-NSCLC]",
    ),
]
CrossEma = Annotated[
    Optional[float],
    typer.Option(
        "--cross-ema",
        min=0.0,
        max=1.0,
        help="ahdmil: share that each branch takes over of the other after an epoch.  "
        "[default: 0; official code, with 0.2 for Camelyon16]",
    ),
]
FreezeDmin = Annotated[
    Optional[bool],
    typer.Option(
        "--freeze-dmin/--tune-dmin",
        help="ahdmil, hdmil: leave DMIN as the teacher has it, or tune it on what is kept.  "
        "[default: tune; hdmil: freeze; official code]",
    ),
]
LipnLr = Annotated[
    Optional[float],
    typer.Option(
        "--lipn-lr",
        help="ahdmil, hdmil: learning rate of the screening network.  [default: 1e-5; hdmil: 1e-4; official code]",
    ),
]
DminLr = Annotated[
    Optional[float],
    typer.Option("--dmin-lr", help="ahdmil: learning rate of DMIN.  [default: 1e-5; official code]"),
]
KeepRateWindow = Annotated[
    Optional[str],
    typer.Option(
        "--keep-rate-window",
        metavar="A,B|none",
        help="ahdmil, hdmil: share of the HR tiles that a model must keep on validation.  "
        "[default: 0.3,1; hdmil: none; official code]",
    ),
]
OfficialModes = Annotated[
    bool,
    typer.Option(
        "--official-modes",
        help="ahdmil, hdmil: dropout in DMIN's targets and batch statistics in the masks, as the official code.  "
        "[default: off; ours: targets and masks without that noise]",
    ),
]

# ---- predict with a model of AHDMIL or HDMIL -------------------------------------------------------------------------
KeepMin = Annotated[
    Optional[float],
    typer.Option(
        "--keep-min",
        metavar="F",
        min=0.0,
        max=1.0,
        help="Models of AHDMIL and HDMIL: read this share of the HR tiles at least, the best by score.  [default: 0]",
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
    ),
]
KeepThreshold = Annotated[
    Optional[float],
    typer.Option(
        "--keep-threshold",
        metavar="P",
        help="The same: a class keeps tiles whose screening probability is above P.  [default: 0.5; official code]",
    ),
]


def screen_changes(values: dict[str, Any]) -> dict[str, Any]:
    """What the options of AHDMIL change of its settings, by the settings' names.

    Raises:
        UsageError: a kept-rate window that is none.
    """
    names = {
        **{n: n for n in OF_SCREENING},
        "screen_source": "source",
        "keep_rate_window": "window",
        "epochs": "epochs",
        "patience": "patience",
        "seed": "seed",
    }
    changes = {new: values[old] for old, new in names.items() if values[old] is not None}
    if "window" in changes:
        changes["window"] = _window(changes["window"])
    return changes


def _window(text: str) -> tuple[float, float] | None:
    if text == "none":
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError as e:
        raise UsageError(f"--keep-rate-window {text}: give two shares A,B such as 0.3,1, or none") from e
    return low, high


def budget_options(least: float | None, most: float | None, threshold: float | None) -> dict[str, float]:
    """Those that were given, by the names of :class:`lrmil_cli.inference.screened.Budget`."""
    return {k: v for k, v in (("least", least), ("most", most), ("threshold", threshold)) if v is not None}
