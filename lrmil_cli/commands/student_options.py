"""Options of ``lrmil distill-student`` alone, but for those of AHDMIL, HDMIL and ZoomMIL: ``selective_options.py``."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

# ---- what goes in and comes out --------------------------------------------------------------------------------------
Tiles = Annotated[str, typer.Option("--tiles", metavar="DIR", help="Folder of LR tile tables.")]
Output = Annotated[str, typer.Option("-o", "--output", metavar="MODEL.safetensors", help="The model.")]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        help="lrmil (LR tiles alone); ahdmil, hdmil (a small network picks by LR pixels the HR tiles to read); "
        "zoommil (a head that zooms in); eagle (an LR model picks 25 HR tiles).",
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
AlsoEncoder = Annotated[
    Optional[str],
    typer.Option(
        "--also-encoder",
        metavar="SPEC",
        help="Also train students of this LR encoder (may hold {fold}), such as the distilled copy beside a small one: "
        "a column more in the receipt.",
    ),
]
NoBaseline = Annotated[
    bool,
    typer.Option("--no-baseline", help="Train no LR-only student; the receipt then lacks it."),
]
Keep = Annotated[
    Optional[str],
    typer.Option(
        "--keep",
        help="With --seeds: ensemble (the model holds all heads of a fold; they answer as one), or best (of each fold, "
        "by validation).  [default: ensemble; ours]",
    ),
]
NoFixture = Annotated[
    bool,
    typer.Option(
        "--no-fixture",
        help="Keep no tiles of a validation slide in the model; `lrmil verify` then goes by painted ones.",
    ),
]
NoOnnx = Annotated[
    bool,
    typer.Option(
        "--no-onnx",
        help="Do not write the model's ONNX graphs beside it, as `lrmil export-onnx` does, by which a CPU predicts "
        "without torch.",
    ),
]

# ---- what the student learns from the teacher ------------------------------------------------------------------------
Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        help="What the student learns from. "
        "lrmil: the label, and the teacher's prediction and attention, soft and hard; "
        "bag, bag-soft, bag-hard: parts of that, and "
        "lr-only, patch: the label alone, with the HR encoder as it is, or with the distilled one, "
        "as the rows of the paper's Table 3; "
        "official-code: lrmil with --region-attention mean-logit, --unmatched zero, --soft-reduction instances and "
        "--hard feature, to compare with that code and not for results.  [default: lrmil; paper]",
        show_default=False,
    ),
]
LambdaBag = Annotated[
    Optional[float],
    typer.Option(
        "--lambda-bag",
        min=0.0,
        help="Weight of bag distillation (eq. 3).  "
        "[default: 1; ours: on the scale of the label's loss; the paper's value is not known to us]",
    ),
]
LambdaSoft = Annotated[
    Optional[float],
    typer.Option(
        "--lambda-soft",
        min=0.0,
        help="Weight of soft attention matching (eq. 4).  "
        "[default: 1; ours: on the scale of the label's loss; the paper's value is not known to us]",
    ),
]
LambdaHard = Annotated[
    Optional[float],
    typer.Option(
        "--lambda-hard",
        min=0.0,
        help="Weight of top-/bottom-k supervision (eq. 5).  "
        "[default: 0.5; ours: a secondary term; the paper's value is not known to us]",
    ),
]
TemperatureBag = Annotated[
    Optional[float],
    typer.Option("--temp-bag", help="Temperature of eq. 3.  [default: 1; official code]"),
]
TemperatureAttention = Annotated[
    Optional[float],
    typer.Option("--temp-attn", help="Temperature of eq. 4.  [default: 1; official code]"),
]
RegionAttention = Annotated[
    Optional[str],
    typer.Option(
        "--region-attention",
        help="The teacher's attention on an LR tile, from that on its HR tiles: "
        "logmeanexp (their mean weight), logsumexp (the sum), max, mean-logit (as the official code means to), "
        "or mean-weight (the paper read literally, which is all but uniform).  "
        "[default: logmeanexp; ours: the paper's mean of weights, kept a distribution]",
    ),
]
SoftReduction = Annotated[
    Optional[str],
    typer.Option(
        "--soft-reduction",
        help="Eq. 4: sum, or instances (as the official code: divided by the number of LR tiles).  "
        "[default: sum; ours: the KL divergence as it is defined]",
    ),
]
Hard = Annotated[
    Optional[str],
    typer.Option(
        "--hard",
        help="Eq. 5 acts on: attention, or feature (as the official code; needs --proj-dim to have an effect).  "
        "[default: attention; ours: what the paper is after]",
    ),
]
K = Annotated[
    Optional[int],
    typer.Option(
        "--k",
        min=1,
        help="Regions at the top and at the bottom for eq. 5.  [default: 4; official code]",
    ),
]
Unmatched = Annotated[
    Optional[str],
    typer.Option(
        "--unmatched",
        help="LR tiles without HR: leave-out, or zero (as the official code: the score 0).  "
        "[default: leave-out; ours: the teacher says nothing of them]",
    ),
]
MissingTeacher = Annotated[
    Optional[str],
    typer.Option(
        "--missing-teacher",
        help="Slides that the teacher knows nothing of: error, or ce-only: train them with the label alone.  "
        "[default: error; ours]",
    ),
]
AttentionRow = Annotated[
    Optional[str],
    typer.Option(
        "--attention-row",
        help="Of a teacher with attention a class: the row of its predicted class, or of the label.  "
        "[default: predicted; ours]",
    ),
]
Crossfit = Annotated[
    Optional[int],
    typer.Option(
        "--crossfit",
        min=2,
        help="Inner folds for targets by heads that did not see the slide.  [default: off; official code]",
    ),
]

# ---- what differs from training a teacher ----------------------------------------------------------------------------
HeadOption = Annotated[
    Optional[list[str]],
    typer.Option(
        "--head-option",
        metavar="KEY=VALUE",
        help="An option of the head, such as size=big or subtyping=true; `lrmil info --heads` lists them. "
        "Of --method zoommil: k=12, samples=100, sigma=0.002, embed_dim=512, hidden=256, dropout=0.25 "
        "(its official code). May be repeated.",
    ),
]
Epochs = Annotated[
    Optional[int],
    typer.Option(
        "--epochs",
        min=1,
        help="Epochs at most.  [default: 200, or the recipe's; ours; of ahdmil, hdmil: official code]",
    ),
]
Patience = Annotated[
    Optional[int],
    typer.Option(
        "--patience",
        min=1,
        help="Epochs without a better validation AUC (of ahdmil, hdmil: loss) before stopping.  "
        "[default: 20, or the recipe's; paper; of ahdmil, hdmil: 5, official code]",
    ),
]
