"""``lrmil distill-encoder``: pairs + HR encoder -> LR encoder (LRMIL stage 1)."""

from __future__ import annotations

from pathlib import Path

import typer

from lrmil_cli.commands import cohort, encoder_options, head_options, options, stage1_options
from lrmil_cli.commands.inputs import where_slides_are
from lrmil_cli.commands.next_step import after_encoder
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError


def distill_encoder(
    ctx: typer.Context,
    pairs: stage1_options.Pairs,
    encoder: encoder_options.Encoder,
    output: stage1_options.Output,
    student: stage1_options.Student = None,
    layers: stage1_options.Layers = "lrmil",
    final_loss: stage1_options.FinalLoss = None,
    lambda_final: stage1_options.LambdaFinal = 1.0,
    normalize: stage1_options.Normalize = "none",
    weighting: stage1_options.Weighting = "region",
    epochs: stage1_options.Epochs = 50,
    patience: stage1_options.Patience = 20,
    batch_size: stage1_options.BatchSize = 64,
    lr: stage1_options.LearningRate = None,
    warmup: stage1_options.Warmup = 200,
    clip: stage1_options.Clip = 1.0,
    freeze_blocks: stage1_options.FreezeBlocks = 0,
    steps_per_epoch: stage1_options.StepsPerEpoch = None,
    max_tiles_per_slide: stage1_options.MaxTilesPerSlide = None,
    slides: stage1_options.Slides = None,
    label: cohort.Label = None,
    task: cohort.TaskName = None,
    time: cohort.Time = None,
    event: cohort.Event = None,
    drop_missing: cohort.DropMissing = False,
    classes: cohort.Classes = None,
    class_map: cohort.ClassMap = None,
    fold: stage1_options.Fold = None,
    folds: head_options.Folds = 5,
    by_site: cohort.BySite = None,
    teacher: stage1_options.Teacher = None,
    cache: stage1_options.Cache = None,
    embedding: encoder_options.Embedding = None,
    input_size: encoder_options.InputSize = None,
    student_input_size: stage1_options.StudentInputSize = None,
    random_init: stage1_options.RandomInit = False,
    init: stage1_options.Init = "teacher",
    allow_fractional_regions: stage1_options.AllowFractionalRegions = False,
    augment: stage1_options.Augment = False,
    workers: options.Workers = None,
    on_bad_tile: options.OnBadTile = "fail",
    device: options.Device = "auto",
    seed: options.Seed = 0,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Stage 1: distil the HR encoder into an LR encoder.

    A copy of the HR encoder, or a smaller --student, learns to see in LR tiles what the HR encoder sees in the HR tiles
    under them. No labels are used.
    """
    from lrmil_cli.distill.distill_encoder import collect, run
    from lrmil_cli.distill.learner import paired_blocks
    from lrmil_cli.distill.settings import Stage1Settings, stage1_default
    from lrmil_cli.distill.small_student import load_student
    from lrmil_cli.distributed import join
    from lrmil_cli.encoders.aliases import licence_warning
    from lrmil_cli.encoders.spec import load_encoder
    from lrmil_cli.encoders.vit import check_grid, parse_layers

    report = Report(json)
    final_loss = stage1_default("final_loss", student) if final_loss is None else final_loss
    lr = stage1_default("lr", student) if lr is None else lr
    for flag, value, choices in (
        ("--final-loss", final_loss, ("none", "uniform", "attention")),
        ("--normalize", normalize, ("none", "ln")),
        ("--weighting", weighting, ("region", "child")),
        ("--init", init, ("teacher", "random")),
    ):
        if value not in choices:
            raise UsageError(f"{flag} {value}: choose one of {', '.join(choices)}")
    if student is None and student_input_size is not None:
        raise UsageError("--student-input-size is of --student ARCH; that of a copy of the HR encoder is --input-size")
    given = ctx.get_parameter_source("init")
    if student is not None and given is not None and given.name == "COMMANDLINE":
        raise UsageError("--init is of a copy of the HR encoder; --student starts as ARCH@FILE, or --random-init, says")
    if lr <= 0 or clip <= 0:
        raise UsageError("--lr and --clip must be above 0")
    if "{fold}" in output and fold is None:
        raise UsageError("-o with {fold} needs --fold K, which takes its place")
    if by_site is not None and fold is None:
        raise UsageError("--by-site says how folds are drawn; give --slides and --fold too")
    if fold is not None and slides is None:
        raise UsageError("--fold needs --slides slides.csv, the manifest with the folds")
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
        listed, places = None, {}
        if slides and fold is not None:
            listed = cohort.read_cohort(report, slides, ctx.params, need_slides=False)
            places = {e.slide_id: e.path for e in listed}
        elif slides:
            places = where_slides_are(slides)
        paired = collect(pairs, listed, fold, folds, teacher, seed, places)
        if paired.left_out:
            report.warn(
                f"{paired.left_out} of {paired.pairs} HR tiles are left out: they overlap others, "
                "or lie off the cells of their LR tile; tile the HR side with `lrmil tile` to learn from all"
            )
        tile_px = paired.slides[0].header["hr"]["settings"]["tile_px"]
        ratio = paired.slides[0].ratio
        model = load_encoder(
            encoder,
            tile_px=tile_px,
            ratio=ratio,
            input_size=input_size,
            embedding=embedding,
            random_init=random_init and student is None,
            warn=report.warn,
        )
        report.encoder(model.info)
        if student is None:
            learner = model
            check_grid(model, ratio, allow_fractional=allow_fractional_regions)
        else:
            learner = load_student(
                student,
                model,
                tile_px=tile_px,
                ratio=ratio,
                input_size=student_input_size,
                random_init=random_init,
                seed=seed,
                allow_fractional=allow_fractional_regions,
                warn=report.warn,
            )
            report.encoder(learner.info)
        for warning in dict.fromkeys(licence_warning(e.info) for e in (model, learner)):
            if warning:
                report.warn(warning)
        if learner.grid % ratio:
            report.warn(f"{learner.grid} tokens a side do not divide by {ratio}: tokens on a border mix two HR tiles")
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
        last = max(paired_blocks(settings.layers, model.depth, learner.depth))
        if settings.freeze_blocks > last and final_loss == "none":
            raise UsageError(f"--freeze-blocks {freeze_blocks} leaves nothing to train below block {last}")
        result = run(
            paired,
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
            student=None if student is None else (learner, student),
        )
        report.end(f"{target}: {result.text}", after_encoder(str(target), encoder, slides))
        report.result(
            {
                "command": "distill-encoder",
                "status": "skipped" if result.there else "ok",
                "output": str(target),
                **result.numbers,
            }
        )
