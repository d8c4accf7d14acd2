"""Options of ``lrmil distill-student`` that belong to one method, and the check that none is given in vain."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from lrmil_cli.errors import UsageError

Method = Annotated[
    str,
    typer.Option(
        "--method",
        help="lrmil (LR tiles alone); ahdmil, hdmil (a small network picks by LR pixels the HR tiles to read); zoommil (a head that zooms in).",
    ),
]
MidPairs = Annotated[
    Optional[str],
    typer.Option(
        "--mid-pairs",
        metavar="DIR",
        help="zoommil: pairs of a middle magnification with HR, for three levels; --pairs are then of LR with the middle.",
        show_default=False,
    ),
]
MidFeatures = Annotated[
    Optional[str],
    typer.Option(
        "--mid-features", metavar="DIR", help="zoommil: features of the middle magnification.", show_default=False
    ),
]
ScreenPx = Annotated[
    Optional[int],
    typer.Option(
        "--screen-px",
        help="ahdmil, hdmil: side in px of an HR tile's screening image.  [default: 16]",
        show_default=False,
    ),
]
ScreenSource = Annotated[
    Optional[str],
    typer.Option(
        "--screen-source",
        help="ahdmil, hdmil: cut screening images from lr-tiles, or from a thumbnail of the slide.  [default: lr-tiles]",
        show_default=False,
    ),
]
Branches = Annotated[
    Optional[int],
    typer.Option(
        "--branches",
        min=1,
        max=2,
        help="ahdmil, hdmil: branches of the screening network.  [default: 2; hdmil: 1]",
        show_default=False,
    ),
]
PSoft = Annotated[
    Optional[float],
    typer.Option(
        "--p-soft",
        min=0.0,
        max=1.0,
        help="ahdmil, hdmil: chance that a step learns DMIN's raw scores, not its masks.  [default: 0]",
        show_default=False,
    ),
]
CrossEma = Annotated[
    Optional[float],
    typer.Option(
        "--cross-ema",
        min=0.0,
        max=1.0,
        help="ahdmil: share that each branch takes over of the other after an epoch.  [default: 0]",
        show_default=False,
    ),
]
FreezeDmin = Annotated[
    Optional[bool],
    typer.Option(
        "--freeze-dmin/--tune-dmin",
        help="ahdmil, hdmil: leave DMIN as the teacher has it, or tune it on what is kept.  [default: tune; hdmil: freeze]",
        show_default=False,
    ),
]
LipnLr = Annotated[
    Optional[float],
    typer.Option(
        "--lipn-lr",
        help="ahdmil, hdmil: learning rate of the screening network.  [default: 1e-5; hdmil: 1e-4]",
        show_default=False,
    ),
]
DminLr = Annotated[
    Optional[float],
    typer.Option("--dmin-lr", help="ahdmil: learning rate of DMIN.  [default: 1e-5]", show_default=False),
]
KeepRateWindow = Annotated[
    Optional[str],
    typer.Option(
        "--keep-rate-window",
        metavar="A,B|none",
        help="ahdmil, hdmil: share of the HR tiles that a model must keep on validation.  [default: 0.3,1; hdmil: none]",
        show_default=False,
    ),
]
OfficialModes = Annotated[
    bool,
    typer.Option(
        "--official-modes",
        help="ahdmil, hdmil: dropout in DMIN's targets and batch statistics in the masks, as the official code.",
    ),
]

#: Parameters of distill-student that only some methods read. Those in no entry are read by every method.
_SCREENED = {
    "screen_px",
    "screen_source",
    "branches",
    "p_soft",
    "cross_ema",
    "freeze_dmin",
    "lipn_lr",
    "dmin_lr",
    "keep_rate_window",
    "official_modes",
}
OF_METHODS: dict[str, set[str]] = {
    "lrmil": {
        "lr_features",
        "baseline_encoder",
        "no_baseline",
        "preset",
        "lambda_bag",
        "lambda_soft",
        "lambda_hard",
        "temperature_bag",
        "temperature_attention",
        "region_attention",
        "soft_reduction",
        "hard",
        "k",
        "unmatched",
        "missing_teacher",
        "attention_row",
        "crossfit",
        "head",
        "head_option",
        "gated",
        "proj_dim",
        "classifier",
        "folds",
        "recipe",
        "lr",
        "weight_decay",
        "class_weights",
        "balanced_sampling",
        "random_init",
        "batch_size",
        "onnx",
    },
    "ahdmil": _SCREENED,
    "hdmil": _SCREENED,
    "zoommil": {
        "lr_features",
        "head_option",
        "folds",
        "recipe",
        "lr",
        "weight_decay",
        "class_weights",
        "balanced_sampling",
        "batch_size",
        "mid_pairs",
        "mid_features",
    },
}


def check_method(ctx: typer.Context, method: str) -> None:
    """Every option that was given is one that the method reads.

    Raises:
        UsageError: one does nothing here, or there is no such method.
    """
    if method not in OF_METHODS:
        raise UsageError(f"--method {method}: choose one of {', '.join(OF_METHODS)}")
    other = set().union(*OF_METHODS.values()) - OF_METHODS[method]
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name)
        if parameter.name in other and source is not None and source.name == "COMMANDLINE":
            owners = [m for m, own in OF_METHODS.items() if parameter.name in own]
            raise UsageError(
                f"{parameter.opts[0]} does nothing with --method {method}; it belongs to --method {' or '.join(owners)}"
            )


def screen_changes(values: dict[str, Any]) -> dict[str, Any]:
    """What the options of AHDMIL change of its settings, by the settings' names.

    Raises:
        UsageError: a kept-rate window that is none.
    """
    names = {
        **{n: n for n in _SCREENED},
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
