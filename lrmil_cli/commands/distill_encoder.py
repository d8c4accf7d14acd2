"""``lrmil distill-encoder``: pairs + HR encoder -> LR encoder (LRMIL stage 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from lrmil_cli.commands import options
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError


def distill_encoder(
    pairs: Annotated[
        list[str], typer.Argument(metavar="PAIRS|DIR...", help="Pairs tables, or folders of them.", show_default=False)
    ],
    encoder: options.Encoder,
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.safetensors",
            help="The LR encoder; {fold} is replaced by --fold.",
            show_default=False,
        ),
    ],
    layers: Annotated[
        str,
        typer.Option(
            "--layers", help="Blocks to distil: 0,1,10, negative from the end, lrmil (0,1,-2) or vitkd (0,1,-1)."
        ),
    ] = "lrmil",
    final_loss: Annotated[
        str,
        typer.Option(
            "--final-loss", help="Also match the final embedding: none, uniform, or attention (needs --teacher)."
        ),
    ] = "none",
    lambda_final: Annotated[float, typer.Option("--lambda-final", min=0.0, help="Weight of the final loss.")] = 1.0,
    normalize: Annotated[
        str, typer.Option("--normalize", help="none, or ln: LayerNorm both sides before comparing.")
    ] = "none",
    weighting: Annotated[
        str, typer.Option("--weighting", help="region: every LR tile counts alike; child: every HR tile.")
    ] = "region",
    epochs: options.Epochs = 50,
    patience: Annotated[
        int, typer.Option("--patience", min=1, help="Epochs without a better validation loss before stopping.")
    ] = 20,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="LR tiles a step.")] = 64,
    lr: options.LearningRate = 1e-5,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Steps of linear warm-up.")] = 200,
    clip: Annotated[float, typer.Option("--clip", help="Gradient norm at most.")] = 1.0,
    freeze_blocks: Annotated[
        int, typer.Option("--freeze-blocks", min=0, help="Blocks at the start that stay as they are.")
    ] = 0,
    steps_per_epoch: Annotated[
        Optional[int],
        typer.Option("--steps-per-epoch", min=1, help="Redefine an epoch, for large cohorts.", show_default=False),
    ] = None,
    max_tiles_per_slide: Annotated[
        Optional[int], typer.Option("--max-tiles-per-slide", min=1, help="Cap big slides.", show_default=False)
    ] = None,
    slides: Annotated[
        Optional[str],
        typer.Option(
            "--slides",
            metavar="slides.csv",
            help="With --fold: train on the training slides of that fold only.",
            show_default=False,
        ),
    ] = None,
    fold: Annotated[
        Optional[int],
        typer.Option(
            "--fold",
            min=1,
            help="Fold of --slides (split, fold or fold_1.. columns, or the folds of --teacher).",
            show_default=False,
        ),
    ] = None,
    folds: options.Folds = 5,
    teacher: Annotated[
        Optional[str],
        typer.Option(
            "--teacher", metavar="DIR", help="Teacher folder, for its folds and its attention.", show_default=False
        ),
    ] = None,
    cache: Annotated[
        Optional[str],
        typer.Option(
            "--cache", metavar="DIR", help="Where HR targets are kept.  [default: <output>.cache]", show_default=False
        ),
    ] = None,
    embedding: options.Embedding = None,
    input_size: options.InputSize = None,
    random_init: options.RandomInit = False,
    init: Annotated[
        str, typer.Option("--init", help="teacher: start from the HR weights; random: for tests.")
    ] = "teacher",
    allow_fractional_regions: Annotated[
        bool, typer.Option("--allow-fractional-regions", help="Share border tokens where the grid does not divide.")
    ] = False,
    augment: Annotated[
        bool,
        typer.Option(
            "--augment", help="Turn and flip LR tiles and their HR targets together: eight views, for small cohorts."
        ),
    ] = False,
    workers: options.Workers = None,
    on_bad_tile: options.OnBadTile = "fail",
    device: options.Device = "auto",
    seed: options.Seed = 0,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Stage 1: distil the HR encoder into an LR encoder.

    A copy of the HR encoder learns to see in LR tiles what the HR encoder sees in the HR tiles under them. No labels
    are used.
    """
    from lrmil_cli.distill.distill_encoder import collect, run
    from lrmil_cli.distill.settings import Stage1Settings
    from lrmil_cli.distributed import join
    from lrmil_cli.encoders.aliases import licence_warning
    from lrmil_cli.encoders.spec import load_encoder
    from lrmil_cli.encoders.vit import check_grid, parse_layers

    report = Report(json)
    for flag, value, choices in (
        ("--final-loss", final_loss, ("none", "uniform", "attention")),
        ("--normalize", normalize, ("none", "ln")),
        ("--weighting", weighting, ("region", "child")),
        ("--init", init, ("teacher", "random")),
    ):
        if value not in choices:
            raise UsageError(f"{flag} {value}: choose one of {', '.join(choices)}")
    if lr <= 0 or clip <= 0:
        raise UsageError("--lr and --clip must be above 0")
    if "{fold}" in output and fold is None:
        raise UsageError("-o with {fold} needs --fold")
    if (fold is None) != (slides is None):
        raise UsageError("--slides and --fold go together")
    if final_loss == "attention" and (teacher is None or fold is None):
        raise UsageError(
            "--final-loss attention needs --teacher, --slides and --fold: attention of test slides must not be used"
        )
    target = Path(output.replace("{fold}", str(fold)))
    if target.suffix != ".safetensors":
        raise UsageError(f"-o {target}: the encoder's name must end in .safetensors")
    with join(device) as (world, where):
        if not world.first:
            report.mute()
        cohort = collect(pairs, slides, fold, folds, teacher, seed)
        if cohort.left_out:
            report.warn(
                f"{cohort.left_out} of {cohort.pairs} HR tiles are left out: they overlap others, or lie off the cells of their LR tile; "
                "tile the HR side with `lrmil tile` to learn from all"
            )
        tile_px = cohort.slides[0].header["hr"]["settings"]["tile_px"]
        ratio = cohort.slides[0].ratio
        model = load_encoder(
            encoder,
            tile_px=tile_px,
            ratio=ratio,
            input_size=input_size,
            embedding=embedding,
            random_init=random_init,
            warn=report.warn,
        )
        report.encoder(model.info)
        forbidden = licence_warning(model.info)
        if forbidden:
            report.warn(forbidden)
        check_grid(model, ratio, allow_fractional=allow_fractional_regions)
        if model.grid % ratio:
            report.warn(f"{model.grid} tokens a side do not divide by {ratio}: tokens on a border mix two HR tiles")
        settings = Stage1Settings(
            parse_layers(layers, model.depth),
            lr,
            epochs,
            patience,
            batch_size,
            warmup,
            clip,
            normalize,
            weighting,
            final_loss,
            lambda_final,
            freeze_blocks,
            steps_per_epoch,
            max_tiles_per_slide,
            init,
            augment,
            seed,
        )
        if settings.freeze_blocks > max(settings.layers) and final_loss == "none":
            raise UsageError(
                f"--freeze-blocks {freeze_blocks} leaves nothing to train below block {max(settings.layers)}"
            )
        result = run(
            cohort,
            model,
            encoder,
            settings,
            target,
            cache=Path(cache) if cache else target.with_suffix(".cache"),
            device=where,
            overwrite=overwrite,
            say=report.say,
            workers=workers,
            on_bad_tile=on_bad_tile,
            world=world,
        )
        report.say(f"{target}: {result.text}")
        report.result(
            {
                "command": "distill-encoder",
                "status": "skipped" if result.there else "ok",
                "output": str(target),
                **result.numbers,
            }
        )
