"""``lrmil train-teacher``: slides.csv + HR tiles + HR encoder -> teacher folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from lrmil_cli.commands import cohort, encoder_options, head_options, options
from lrmil_cli.commands.next_step import after_teacher
from lrmil_cli.commands.report import Report
from lrmil_cli.errors import UsageError

Output = Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Folder of the teacher.")]
Tiles = Annotated[
    Optional[str],
    typer.Option("--tiles", metavar="DIR", help="Folder of HR tile tables; goes with --encoder."),
]
Features = Annotated[
    Optional[str],
    typer.Option(
        "--features",
        metavar="DIR",
        help="Where HR features are kept and found.  [default: <output>/features]  "
        "Without --tiles and --encoder: <slide_id>.h5 files of TRIDENT, CLAM, STAMP or lrmil, "
        "trained on as they are.",
    ),
]


OnBadSlide = Annotated[
    str,
    typer.Option(
        "--on-bad-slide",
        help="fail, or skip: leave out slides that cannot be read, or whose features cannot be used, and say which; "
        "all feature files are read first then.",
    ),
]


def train_teacher(
    ctx: typer.Context,
    manifest: options.Manifest,
    output: Output,
    tiles: Tiles = None,
    encoder: encoder_options.EncoderOrNone = None,
    features: Features = None,
    label: cohort.Label = None,
    task: cohort.TaskName = None,
    loss: cohort.Loss = None,
    time: cohort.Time = None,
    event: cohort.Event = None,
    intervals: cohort.Intervals = None,
    risk_set: cohort.RiskSet = None,
    bag: cohort.BagName = None,
    drop_missing: cohort.DropMissing = False,
    classes: cohort.Classes = None,
    class_map: cohort.ClassMap = None,
    head: head_options.Head = "abmil",
    head_option: head_options.HeadOption = None,
    gated: head_options.Gated = False,
    proj_dim: head_options.ProjDim = 0,
    classifier: head_options.Classifier = None,
    folds: head_options.Folds = 5,
    by_site: cohort.BySite = None,
    fold: head_options.Fold = None,
    seeds: head_options.Seeds = 1,
    recipe: head_options.Recipe = "common",
    lr: head_options.LearningRate = None,
    epochs: head_options.Epochs = None,
    patience: head_options.Patience = None,
    weight_decay: head_options.WeightDecay = None,
    class_weights: head_options.ClassWeights = False,
    balanced_sampling: head_options.BalancedSampling = False,
    embedding: encoder_options.Embedding = None,
    input_size: encoder_options.InputSize = None,
    random_init: encoder_options.RandomInit = False,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    on_bad_tile: options.OnBadTile = "fail",
    dtype: options.Dtype = None,
    on_bad_slide: OnBadSlide = "fail",
    device: options.Device = "auto",
    memory: options.Memory = None,
    compile: options.Compile = False,
    seed: options.Seed = 0,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train the HR teacher: one MIL head a fold.

    Missing features are embedded first, from --tiles by --encoder; or give --features alone, with files that are there
    already. Out-of-fold predictions, metrics and curves stand beside the heads.
    """
    from lrmil_cli.device import pick_device
    from lrmil_cli.encoders.compiled import compile_encoder
    from lrmil_cli.encoders.spec import load_encoder
    from lrmil_cli.files.patients import patients_of
    from lrmil_cli.targets.task import PATIENT
    from lrmil_cli.training import teacher
    from lrmil_cli.training.bags import embed_cohort, read_cohort, tile_tables
    from lrmil_cli.training.crossval import head_spec
    from lrmil_cli.training.folds import make_folds
    from lrmil_cli.training.out_of_fold import scores_text
    from lrmil_cli.training.patients import patient_bags
    from lrmil_cli.training.recipes import recipe_options, train_settings
    from lrmil_cli.training.streamed import room_for

    report = Report(json)
    options.check_dtype(dtype)
    if on_bad_slide not in ("fail", "skip"):
        raise UsageError(f"--on-bad-slide {on_bad_slide}: choose fail or skip")
    _check_source(
        tiles,
        encoder,
        features,
        {
            "--embedding": embedding,
            "--input-size": input_size,
            "--random-init": random_init or None,
            "--compile": compile or None,
            "--dtype": dtype,
            "--on-bad-tile": None if on_bad_tile == "fail" else on_bad_tile,
        },
    )
    own = recipe_options(recipe, head, head_options.head_options(gated, proj_dim, classifier, head_option))
    asked, of_patients = cohort.task_asked(ctx.params), cohort.bag_asked(ctx.params) == PATIENT
    spec = head_spec(head, own, asked)
    settings = train_settings(recipe, head, {name: ctx.params[name] for name in head_options.OF_TRAINING}, asked)
    where = pick_device(device)
    room = room_for(where, options.memory_bytes(memory))
    labelled = cohort.read_cohort(report, manifest, ctx.params, need_slides=tiles is not None)
    grouped = patients_of if of_patients else lambda manifest: manifest
    make_folds(
        grouped(labelled), folds, seed
    )  # before anything is encoded: what is wrong with folds should be said at once
    left_out: dict[str, str] | None = {} if on_bad_slide == "skip" else None
    kept = Path(features) if features else Path(output) / "features"
    if encoder is None or tiles is None:
        bags = read_cohort(labelled, kept, device=where, room=room, left_out=left_out, say=report.say, warn=report.warn)
    else:
        tables = tile_tables(labelled, tiles)
        model = load_encoder(
            encoder,
            tile_px=tables[0][1]["settings"]["tile_px"],
            input_size=input_size,
            embedding=embedding,
            random_init=random_init,
            warn=report.warn,
        )
        report.encoder(model.info)
        if compile:
            compile_encoder(model, tables[0][1]["settings"]["tile_px"], where)
        bags = embed_cohort(
            model,
            labelled,
            tables,
            kept,
            device=where,
            room=room,
            batch_size=batch_size,
            workers=workers,
            on_bad_tile=on_bad_tile,
            left_out=left_out,
            dtype=dtype,
            overwrite=overwrite,
            say=report.say,
        )
    if left_out:
        for reason in left_out.values():
            report.warn(f"left out: {reason}")
        report.say(f"{len(left_out)} of {len(labelled)} slides left out (--on-bad-slide skip)")
        labelled = labelled.without(left_out)
    labelled = grouped(labelled)
    bags = patient_bags(labelled, bags, room)
    parts = make_folds(labelled, folds, seed)
    header, there = teacher.train_teacher(
        labelled, parts, bags, spec, settings, output, kept, fold=fold, seeds=seeds, overwrite=overwrite, say=report.say
    )
    if header is None:
        report.say(f"{output}: fold {fold} is there; the same command without --fold puts the teacher together")
        return report.result({"command": "train-teacher", "status": "ok", "output": output, "fold": fold})
    m = header["metrics"]
    tested = f"{sum((parts == 'test').any(axis=1))} held-out {'patients' if of_patients else 'slides'}"
    scores = f"{scores_text(m, labelled.task)} on {tested}"
    text = f"{output}: {'up to date; ' if there else ''}{scores}"
    report.end(text, after_teacher(manifest, output, head, encoder))
    report.result(
        {
            "command": "train-teacher",
            "status": "skipped" if there else "ok",
            "output": output,
            "metrics": m,
            "folds": header["folds"],
        }
    )


def _check_source(tiles: str | None, encoder: str | None, features: str | None, of_encoder: dict[str, object]) -> None:
    """Features are made (``tiles`` and ``encoder``) or read as they are (``features`` alone).

    Raises:
        UsageError: neither, or options that would do nothing.
    """
    if (tiles is None) != (encoder is None):
        raise UsageError(
            "--tiles and --encoder go together; leave out both to train on the files in --features as they are"
        )
    if encoder is not None:
        return
    if features is None:
        raise UsageError("give --tiles and --encoder to embed the slides, or --features with a folder of feature files")
    useless = [name for name, value in of_encoder.items() if value is not None]
    if useless:
        raise UsageError(f"{useless[0]} belongs to --encoder; features that are there already stay as they are")
