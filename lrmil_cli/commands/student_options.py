"""Options of ``lrmil distill-student`` alone, and the check that none is given in vain.

Those of the methods that read some HR tiles are in ``selective_options.py``.
"""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from lrmil_cli.errors import UsageError

# ---- what goes in and comes out --------------------------------------------------------------------------------------
Tiles = Annotated[str, typer.Option("--tiles", metavar="DIR", help="Folder of LR tile tables.")]
Output = Annotated[str, typer.Option("-o", "--output", metavar="MODEL.safetensors", help="The model.")]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        help="lrmil (LR tiles alone); ahdmil, hdmil (a small network picks by LR pixels the HR tiles to read); "
        "zoommil (a head that zooms in).",
    ),
]
Pairs = Annotated[Optional[str], typer.Option("--pairs", metavar="DIR", help="Folder of pairs tables.")]
Teacher = Annotated[Optional[str], typer.Option("--teacher", metavar="DIR", help="Folder made by train-teacher.")]
Features = Annotated[
    Optional[str],
    typer.Option("--features", metavar="DIR", help="HR features.  [default: the folder that teacher.json names]"),
]
LrFeatures = Annotated[
    Optional[str],
    typer.Option("--lr-features", metavar="DIR", help="Where LR features are kept.  [default: <model>.features]"),
]
BaselineEncoder = Annotated[
    Optional[str],
    typer.Option(
        "--baseline-encoder",
        metavar="SPEC",
        help="Encoder of the LR-only student that the receipt compares with.  "
        "[default: the one that --encoder was distilled from]",
    ),
]
NoBaseline = Annotated[
    bool,
    typer.Option("--no-baseline", help="Train no LR-only student; the receipt then lacks it."),
]
Onnx = Annotated[
    bool,
    typer.Option(
        "--onnx",
        help="Also write the model's ONNX graphs, as `lrmil export-onnx` does, for predicting without torch.",
    ),
]

# ---- what the student learns from the teacher ------------------------------------------------------------------------
Preset = Annotated[
    str,
    typer.Option("--preset", help="lrmil, lr-only, patch, bag, bag-soft, bag-hard or official-code."),
]
LambdaBag = Annotated[
    Optional[float],
    typer.Option("--lambda-bag", min=0.0, help="Weight of bag distillation (eq. 3).  [default: 1]"),
]
LambdaSoft = Annotated[
    Optional[float],
    typer.Option("--lambda-soft", min=0.0, help="Weight of soft attention matching (eq. 4).  [default: 1]"),
]
LambdaHard = Annotated[
    Optional[float],
    typer.Option("--lambda-hard", min=0.0, help="Weight of top-/bottom-k supervision (eq. 5).  [default: 0.5]"),
]
TemperatureBag = Annotated[
    Optional[float],
    typer.Option("--temp-bag", help="Temperature of eq. 3.  [default: 1]"),
]
TemperatureAttention = Annotated[
    Optional[float],
    typer.Option("--temp-attn", help="Temperature of eq. 4.  [default: 1]"),
]
RegionAttention = Annotated[
    Optional[str],
    typer.Option(
        "--region-attention",
        help="logmeanexp, mean-logit, logsumexp, max or mean-weight.  [default: logmeanexp]",
    ),
]
SoftReduction = Annotated[
    Optional[str],
    typer.Option("--soft-reduction", help="sum or instances.  [default: sum]"),
]
Hard = Annotated[
    Optional[str],
    typer.Option("--hard", help="attention, or feature (needs --proj-dim to have an effect).  [default: attention]"),
]
K = Annotated[
    Optional[int],
    typer.Option("--k", min=1, help="Regions at the top and at the bottom for eq. 5.  [default: 4]"),
]
Unmatched = Annotated[
    Optional[str],
    typer.Option(
        "--unmatched",
        help="LR tiles without HR: leave-out, or zero (as the official code).  [default: leave-out]",
    ),
]
MissingTeacher = Annotated[
    Optional[str],
    typer.Option(
        "--missing-teacher",
        help="error, or ce-only: train such slides with the label alone.  [default: error]",
    ),
]
AttentionRow = Annotated[
    Optional[str],
    typer.Option(
        "--attention-row",
        help="Of a teacher with attention a class: the row of its predicted class, or of the label.  "
        "[default: predicted]",
    ),
]
Crossfit = Annotated[
    Optional[int],
    typer.Option(
        "--crossfit",
        min=2,
        help="Inner folds for targets by heads that did not see the slide.  [default: off]",
    ),
]

# ---- which method reads which ----------------------------------------------------------------------------------------
#: Those that change the distillation settings of a preset, by the settings' names.
OF_SETTINGS = set(
    "lambda_bag lambda_soft lambda_hard temperature_bag temperature_attention region_attention soft_reduction hard k "
    "unmatched missing_teacher attention_row crossfit".split()
)
#: Those of the screening network of AHDMIL and HDMIL.
OF_SCREENING = set(
    "screen_px screen_source branches p_soft cross_ema freeze_dmin lipn_lr dmin_lr keep_rate_window "
    "official_modes".split()
)
#: Those about LR features and a head trained on them, which LRMIL and ZoomMIL have in common.
OF_TRAINING = set(
    "lr_features batch_size head_option folds recipe lr weight_decay class_weights balanced_sampling".split()
)
#: Parameters that only some methods read. Those in no entry are read by every method.
OF_METHODS: dict[str, set[str]] = {
    "lrmil": OF_SETTINGS
    | OF_TRAINING
    | set("preset baseline_encoder no_baseline onnx head gated proj_dim classifier random_init".split()),
    "ahdmil": OF_SCREENING,
    "hdmil": OF_SCREENING,
    "zoommil": OF_TRAINING | {"mid_pairs", "mid_features"},
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
