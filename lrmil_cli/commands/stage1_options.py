"""Options of ``lrmil distill-encoder`` alone: what stage 1 matches, how it trains, and on which slides."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

Pairs = Annotated[
    list[str],
    typer.Argument(metavar="PAIRS|DIR...", help="Pairs tables, or folders of them."),
]
Output = Annotated[
    str,
    typer.Option("-o", "--output", metavar="FILE.safetensors", help="The LR encoder; {fold} is replaced by --fold."),
]

# ---- what learns -----------------------------------------------------------------------------------------------------
Student = Annotated[
    Optional[str],
    typer.Option(
        "--student",
        metavar="ARCH[@FILE]",
        help="Distil into this smaller ViT, such as vit_small_patch16_224: with timm's own weights, those of FILE, or "
        "(--random-init) random ones; anything that --encoder takes.  [default: a copy of --encoder; official code]",
    ),
]
StudentInputSize = Annotated[
    Optional[int],
    typer.Option(
        "--student-input-size",
        min=8,
        help="Side in px that LR tiles are resized to for --student.  "
        "[default: by the student; ours: the first from its own size on whose patches divide by the ratio]",
    ),
]
RandomInit = Annotated[
    bool,
    typer.Option(
        "--random-init",
        help="Random weights, said in the files: of --encoder, for dry runs; with --student of the student alone.",
    ),
]

# ---- what is matched -------------------------------------------------------------------------------------------------
Layers = Annotated[
    str,
    typer.Option(
        "--layers",
        help="Blocks to distil: 0,1,10, negative from the end, lrmil (0,1,-2) or vitkd (0,1,-1).  "
        "[default: lrmil; official code. The paper says as ViTKD, whose code has vitkd]",
        show_default=False,
    ),
]
FinalLoss = Annotated[
    Optional[str],
    typer.Option(
        "--final-loss",
        help="Also match the final embedding: none, uniform, or attention (needs --teacher).  "
        "[default: none; paper. The official code has attention. With --student uniform; ours: eq. 2 alone leaves its "
        "embedding as it was]",
    ),
]
LambdaFinal = Annotated[
    float,
    typer.Option(
        "--lambda-final",
        min=0.0,
        help="Weight of the final loss.  [default: 1; ours: the official code leaves it open]",
        show_default=False,
    ),
]
Normalize = Annotated[
    str,
    typer.Option(
        "--normalize",
        help="none, or ln: LayerNorm both sides before comparing.  [default: none; official code]",
        show_default=False,
    ),
]
Weighting = Annotated[
    str,
    typer.Option(
        "--weighting",
        help="region: every LR tile counts alike; child: every HR tile.  [default: region; official code]",
        show_default=False,
    ),
]
AllowFractionalRegions = Annotated[
    bool,
    typer.Option("--allow-fractional-regions", help="Share border tokens where the grid does not divide."),
]

# ---- how it is trained -----------------------------------------------------------------------------------------------
Epochs = Annotated[
    int,
    typer.Option(
        "--epochs",
        min=1,
        help="Epochs at most.  [default: 50; ours: the paper's number is not known to us]",
        show_default=False,
    ),
]
Patience = Annotated[
    int,
    typer.Option(
        "--patience",
        min=1,
        help="Epochs without a better validation loss before stopping.  [default: 20; paper]",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        min=1,
        help="LR tiles a step.  [default: 64; ours: the official code leaves it open]",
        show_default=False,
    ),
]
LearningRate = Annotated[
    Optional[float],
    typer.Option(
        "--lr",
        help="Learning rate (Adam).  [default: 1e-5; ours: to fine-tune, gently; the paper's value is not known to us. "
        "With --student 1e-4; ours: it has more to learn]",
    ),
]
Warmup = Annotated[
    int,
    typer.Option(
        "--warmup",
        min=0,
        help="Steps of linear warm-up.  [default: 200; ours: the paper mentions none]",
        show_default=False,
    ),
]
Clip = Annotated[
    float,
    typer.Option(
        "--clip",
        help="Gradient norm at most.  [default: 1; ours: against channels with outliers]",
        show_default=False,
    ),
]
FreezeBlocks = Annotated[
    int,
    typer.Option(
        "--freeze-blocks",
        min=0,
        help="Blocks at the start that stay as they are.  [default: 0; official code]",
        show_default=False,
    ),
]
StepsPerEpoch = Annotated[
    Optional[int],
    typer.Option(
        "--steps-per-epoch",
        min=1,
        help="End an epoch after so many steps, for large cohorts; other LR tiles come in the next.",
    ),
]
Init = Annotated[
    str,
    typer.Option(
        "--init",
        help="teacher: start from the HR weights; random: for tests.  [default: teacher; official code]",
        show_default=False,
    ),
]
Augment = Annotated[
    bool,
    typer.Option(
        "--augment",
        help="Turn and flip LR tiles and their HR targets together: eight views, for small cohorts.  "
        "[default: off; official code]",
    ),
]

# ---- on which slides -------------------------------------------------------------------------------------------------
MaxTilesPerSlide = Annotated[
    Optional[int],
    typer.Option(
        "--max-tiles-per-slide",
        min=1,
        help="LR tiles drawn of a slide that has more; time and cache shrink in proportion.",
    ),
]
Slides = Annotated[
    Optional[str],
    typer.Option(
        "--slides",
        metavar="slides.csv|DIR",
        help="Where the slides are, if they have moved: a manifest, or a folder with sub-folders. With --fold a "
        "manifest: train on the training slides of that fold only.",
    ),
]
Fold = Annotated[
    Optional[int],
    typer.Option(
        "--fold",
        min=1,
        help="Fold of --slides (split, fold or fold_1.. columns, or the folds of --teacher).",
    ),
]
Teacher = Annotated[
    Optional[str],
    typer.Option("--teacher", metavar="DIR", help="Teacher folder, for its folds and its attention."),
]
Cache = Annotated[
    Optional[str],
    typer.Option("--cache", metavar="DIR", help="Where HR targets are kept.  [default: <output>.cache]"),
]
